"""A rental's life: chosen, put on record, rented, used, and gone, whatever happens in between."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import attrs
import canaries
import pytest
from rented import IMAGE, PROFILE, cancel_twice, client, until

from netmind_rentgpu import (
    APIConnectionError,
    AsyncRentGPU,
    BudgetExceededError,
    ClientStateError,
    ConfigurationError,
    Image,
    InsufficientBalanceError,
    InvalidArgumentError,
    LedgerError,
    NoMachineError,
    PaymentType,
    PermissionDeniedError,
    ReleaseError,
    RentalEndedError,
    RentalExpiredError,
    ServerError,
    WaitTimeoutError,
)
from netmind_rentgpu.emulator import Emulator, Fault


def make_twice(gpu: AsyncRentGPU) -> None:
    """Let the service make two containers of each create, and its answer be lost."""
    create = gpu.containers.create

    async def twice(**wanted: Any) -> Any:
        await create(**wanted)
        await create(**wanted)
        raise APIConnectionError("it broke", maybe_processed=True)

    gpu.containers.create = twice  # type: ignore[method-assign]


async def test_it_is_rented_used_and_gone(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    rental = gpu.rent(gpu_name="RTX 4090", image=IMAGE)
    with pytest.raises(ClientStateError, match="not entered yet"):
        _ = rental.container
    assert "nothing is rented yet" in repr(rental)
    async with rental as same:
        assert same is rental
        (charge,) = emulator.running
        assert charge.name == rental.name
        assert charge.container_id == rental.container.id
        assert charge.hourly_price == rental.hourly_price
        assert rental.machine.gpu_name == "NVIDIA_GeForce_RTX_4090"
        assert (await rental.run("echo $((6 * 7))", check=True)).stdout == "42\n"
        (record,) = await gpu.rentals.open()
        assert (record.name, record.stage, record.container_id) == (rental.name, "ready", rental.container.id)
        assert record.expires_at == rental.expires_at
        spent = rental.spent
        assert spent is not None
        assert 0 < spent < Decimal("0.01")
    emulator.assert_nothing_rented()
    assert await gpu.rentals.open() == []
    after = rental.spent
    await asyncio.sleep(0)
    assert rental.spent == after
    with pytest.raises(ClientStateError, match="it was left"):
        await rental.run("true")
    with pytest.raises(ClientStateError, match="it was left"):
        _ = rental.shell
    with pytest.raises(ClientStateError, match="it was left"):
        await rental.__aenter__()
    await rental.close()
    assert len(emulator.requests.of("delete_container")) == 1


async def test_an_error_in_the_block_comes_out_as_it_is(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        async with gpu.rent(image=IMAGE):
            raise ZeroDivisionError
    assert not getattr(raised.value, "__notes__", [])
    emulator.assert_nothing_rented()


async def test_the_service_is_asked_for_little(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE):
        pass
    before = len(emulator.requests)
    async with gpu.rent(image=IMAGE):
        pass
    calls = [request.call for request in list(emulator.requests)[before:]]
    assert calls.count("create_container") == calls.count("delete_container") == 1
    assert set(calls) <= {
        *("create_container", "delete_container", "get_container", "list_containers", "get_auth", "list_machines")
    }
    # It is looked for once more when it is deleted.
    assert calls.count("list_containers") == 1


# Which machine.


async def test_the_next_machine_is_tried_and_the_first_set_aside(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("stock-out", times=2))
    offers = await gpu.offers()
    async with gpu.rent(image=IMAGE) as rental:
        assert rental.machine == offers[2].machine
    # Those that refused are not asked again at once.
    async with gpu.rent(image=IMAGE) as rental:
        assert rental.machine == offers[2].machine
    assert len(emulator.requests.of("create_container")) == 4
    emulator.assert_nothing_rented()


async def test_why_no_machine_could_be_had(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    with pytest.raises(NoMachineError, match=r"none of the 60 machines on offer will do: .* for another GPU") as none:
        await gpu.rent(image=IMAGE, gpu_name="RTX 4090", max_price=Decimal("0.01")).__aenter__()
    assert none.value.refusals == ()
    emulator.faults.add(Fault("stock-out", times="all"))
    with pytest.raises(NoMachineError, match="could be had") as none:
        await gpu.rent(image=IMAGE, gpu_name="RTX 4090").__aenter__()
    tried = len(emulator.requests.of("create_container"))
    assert len(none.value.refusals) == tried > 0
    assert all("free GPUs" in str(refusal.error) for refusal in none.value.refusals)
    # They are set aside, and the reason is still told.
    with pytest.raises(NoMachineError) as again:
        await gpu.rent(image=IMAGE, gpu_name="RTX 4090").__aenter__()
    assert len(again.value.refusals) == tried
    assert len(emulator.requests.of("create_container")) == tried
    # Not all of those there are are tried.
    with pytest.raises(NoMachineError, match=r"5\d have refused") as many:
        await gpu.rent(image=IMAGE).__aenter__()
    assert len(emulator.requests.of("create_container")) == tried + 50
    assert len(many.value.refusals) >= 50


async def test_a_refusal_that_no_other_machine_would_cure_ends_it(state: Path) -> None:
    async with (
        Emulator(seed=7, balance=Decimal(0), token=canaries.TOKEN) as poor,
        client(poor, state) as gpu,
    ):
        with pytest.raises(InsufficientBalanceError):
            await gpu.rent(image=IMAGE).__aenter__()
        assert len(poor.requests.of("create_container")) == 1
        poor.faults.add(Fault("status", call="create_container", status=403))
        with pytest.raises(PermissionDeniedError):
            await gpu.rent(image=IMAGE).__aenter__()
        assert len(poor.requests.of("create_container")) == 2
        poor.assert_nothing_rented()


async def test_offers_are_ranked_by_what_an_hour_costs(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    offers = await gpu.offers(gpus=2, max_price=1)
    prices = [offer.hourly_price for offer in offers]
    assert None not in prices
    assert prices == sorted(prices)  # type: ignore[type-var]  # no None among them
    assert all(offer.hourly_price == 2 * (offer.machine.price or 0) for offer in offers)
    dearest = await gpu.offers(gpus=2, max_price=1, key=lambda offer: -offer.hourly_price)
    assert dearest[0].hourly_price == prices[-1]
    with pytest.raises(InvalidArgumentError, match="may mean any of"):
        await gpu.offers(gpu_name="A100")
    with pytest.raises(InvalidArgumentError, match="key"):
        await gpu.offers(key=lambda offer: offer.nothing)
    assert await gpu.offers(gpu_name="a GPU of next year") == []
    assert not emulator.requests.of("create_container")


@pytest.mark.parametrize(
    "wrong",
    [
        {"gpus": 0},
        {"gpus": 13},
        {"gpu_name": []},
        {"gpu_name": 7},
        {"regions": ""},
        {"max_price": "cheap"},
        {"min_memory": "much"},
        {"min_cuda": "new"},
        {"nvlink": "yes"},
        {"key": 7},
        {"payment_type": "GOLD"},
        {"ttl": 7},
        {"ttl": timedelta(0)},
        {"ttl": timedelta(days=100_000)},
        {"budget": 0},
        {"budget": 1, "keep": True},
        {"image": None},
        {"image": 1.5},
        {"auth": "short"},
        {"auth": 1.5},
        {"timeout": 0},
    ],
    ids=str,
)
async def test_what_cannot_be_asked_for(gpu: AsyncRentGPU, emulator: Emulator, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        gpu.rent(**{"image": IMAGE, **wrong})
    assert raised.value.argument in {*wrong}
    assert not emulator.requests


async def test_without_asyncssh_nothing_is_rented(gpu: AsyncRentGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netmind_rentgpu.ssh.access.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="asyncssh"):
        gpu.rent(image=IMAGE)


# Image and password.


async def test_images_are_meant_in_many_ways(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    own = await gpu.images.create(name="mine", image_name="me/it", image_tag="1", image_label="special")
    official = await gpu.images.get(1)
    for meant, found in (
        (official, 1),
        (1, 1),
        ("PyTorch 2.4", 1),
        ("pytorch/pytorch:2.4.0", 1),
        ("mine", own.id),
        ("special", own.id),
    ):
        async with gpu.rent(image=meant) as rental:
            assert rental.container.image_template_id == found
    for meant, said in (("pytorch", "may be any of"), ("Stable Diffusion web UI", "no official or own image")):
        with pytest.raises(InvalidArgumentError, match=said):
            await gpu.rent(image=meant).__aenter__()
    assert isinstance(official, Image)
    emulator.assert_nothing_rented()


async def test_one_password_for_the_account_is_made_once(gpu: AsyncRentGPU, emulator: Emulator, state: Path) -> None:
    async with gpu.rent(image=IMAGE):
        pass
    async with client(emulator, state) as other, other.rent(image=IMAGE):
        pass
    assert len(emulator.requests.of("create_auth")) == 1
    # Whatever has become of its id, it is found by its content.
    for wrong in ("NULL", "999"):
        with sqlite3.connect(state) as connection:
            connection.execute(f"UPDATE passwords SET auth_id = {wrong}")  # our own words
        connection.close()
        async with client(emulator, state) as other, other.rent(image=IMAGE):
            pass
    assert len(emulator.requests.of("create_auth")) == 1
    async with client(emulator, state) as other, other.rent(image=IMAGE, auth="a password of mine"):
        pass
    auth = await gpu.auths.ensure("a password of mine")
    for given in (auth, auth.id):
        async with gpu.rent(image=IMAGE, auth=given) as rental:
            assert rental.container.auth_id == auth.id


async def test_whoever_fails_to_make_the_password_does_not_hold_up_the_next(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    emulator.faults.add(Fault("status", call="create_auth", status=400))
    with pytest.raises(Exception, match="400"):
        await gpu.rent(image=IMAGE).__aenter__()
    async with asyncio.timeout(10), gpu.rent(image=IMAGE):
        pass


# Doubt.


@pytest.mark.parametrize(
    "fault", [Fault("drop", call="create_container", when="after"), Fault("late commit", seconds=0.1)], ids=str
)
async def test_a_create_whose_answer_is_lost_is_found_and_adopted(
    gpu: AsyncRentGPU, emulator: Emulator, fault: Fault
) -> None:
    emulator.faults.add(fault)
    async with gpu.rent(image=IMAGE) as rental:
        assert [charge.container_id for charge in emulator.running] == [rental.container.id]
        assert (await rental.run("true")).ok
    emulator.assert_nothing_rented()
    assert len(emulator.requests.of("create_container")) == 1


async def test_a_create_that_turns_up_late_is_deleted(emulator: Emulator, state: Path) -> None:
    # Later than the list's lag, so that another is rented; before the end of what is called late.
    emulator.faults.add(Fault("late commit", seconds=0.4))
    patient = attrs.evolve(PROFILE, create_lag=timedelta(seconds=1.5))
    async with client(emulator, state, patient) as gpu, gpu.rent(image=IMAGE) as rental:
        assert len(emulator.requests.of("create_container")) == 2
        assert {record.stage for record in await gpu.rentals.open()} == {"ready", "intended"}
        await until(lambda: bool(emulator.requests.of("delete_container")))
        assert [charge.container_id for charge in emulator.running] == [rental.container.id]
        assert (await rental.run("true")).ok
    emulator.assert_nothing_rented()
    async with client(emulator, state) as gpu:
        assert await gpu.rentals.open() == []


async def test_who_is_cancelled_once_while_it_is_looked_for_waits_for_it(emulator: Emulator, state: Path) -> None:
    patient = attrs.evolve(PROFILE, list_lag=timedelta(seconds=1))
    async with client(emulator, state, patient) as gpu:
        emulator.faults.add(Fault("late commit", seconds=0.5))
        entering = asyncio.create_task(gpu.rent(image=IMAGE).__aenter__())
        await until(lambda: bool(emulator.requests.of("list_containers")))
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert len(emulator.charges) == 1
        emulator.assert_nothing_rented()
        # The service may do it once more until its lag is over.
        (record,) = await gpu.rentals.open()
        assert (record.stage, record.container_id, record.owner) == ("abandoned", None, None)
        assert (await gpu.rentals.reap(wait=True)).clean
        assert await gpu.rentals.open() == []


async def test_what_may_still_turn_up_when_it_is_left_stays_on_record(
    emulator: Emulator, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    patient = attrs.evolve(PROFILE, create_lag=timedelta(seconds=1.5))
    async with client(emulator, state, patient) as gpu:
        emulator.faults.add(Fault("late commit", seconds=1))
        async with gpu.rent(image=IMAGE):
            pass
        (record,) = await gpu.rentals.open()
        assert (record.stage, record.container_id, record.owner) == ("abandoned", None, None)
        assert "may still come to exist" in caplog.text
        assert [one.name for one in (await gpu.rentals.reap()).doubtful] == [record.name]
        report = await gpu.rentals.reap(wait=True)
        assert report.clean
        assert report.deleted == (record.name,)
    emulator.assert_nothing_rented()


async def test_when_all_is_in_doubt_no_third_create_follows(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="create_container", status=502, times="all"))
    with pytest.raises(ServerError):
        await gpu.rent(image=IMAGE).__aenter__()
    assert len(emulator.requests.of("create_container")) == 2
    assert (await gpu.rentals.reap(wait=True)).clean


async def test_where_nothing_can_be_looked_for_no_create_follows(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("drop", call="create_container", when="after"))
    emulator.faults.add(Fault("status", call="list_containers", status=500, times="all"))
    rental = gpu.rent(image=IMAGE)
    entering = asyncio.create_task(rental.__aenter__())
    await until(lambda: len(emulator.requests.of("list_containers")) > 2)
    entering.cancel()
    # Who is cancelled once more does not wait for it.
    await until(lambda: rental._releasing is not None)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert len(emulator.requests.of("create_container")) == 1
    emulator.faults.clear()
    assert (await gpu.rentals.reap(wait=True)).deleted == (emulator.charges[0].name,)
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("balance", [PaymentType.NMT, "NMT", 1, PaymentType(1)])
async def test_prices_are_those_of_the_balance_however_it_is_named(
    gpu: AsyncRentGPU, emulator: Emulator, balance: PaymentType | str | int
) -> None:
    offers = await gpu.offers(payment_type=balance)
    assert {offer.currency for offer in offers} == {"NMT"}
    assert emulator.requests.of("list_machines")[-1].query["currency"] == "NMT"


async def test_no_limit_can_be_kept_to_in_a_currency_that_is_not_known(gpu: AsyncRentGPU) -> None:
    with pytest.raises(InvalidArgumentError, match=r"budget.*currency"):
        gpu.rent(image=IMAGE, payment_type=7, budget=1)
    with pytest.raises(InvalidArgumentError, match=r"max_price.*currency"):
        gpu.rent(image=IMAGE, payment_type=7, max_price=1)
    assert await gpu.offers(payment_type=7)


# The end.


async def test_its_time_is_up(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    seen: list[str] = []
    with pytest.raises(RentalExpiredError, match=r"time of rg-.* is up") as raised:
        async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=1)) as rental:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                seen.append(str(error))
                with pytest.raises(RentalExpiredError):
                    await rental.run("true")
                raise
    assert "is over" in seen[0]
    assert isinstance(raised.value.__cause__, asyncio.CancelledError)
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0
    emulator.assert_nothing_rented()
    assert await gpu.rentals.open() == []
    await asyncio.sleep(0)  # nobody is cancelled any more


async def test_its_budget_is_spent(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    (offer, *_) = await gpu.offers()
    assert offer.hourly_price is not None
    with pytest.raises(BudgetExceededError, match=r"budget of rg-.* is spent"):
        async with gpu.rent(image=IMAGE, budget=offer.hourly_price / 3600) as rental:
            await rental.run("sleep 30")
    emulator.assert_nothing_rented()


async def test_its_time_is_up_whatever_the_block_does(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    with pytest.raises(RentalExpiredError):
        async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=0.5)):
            with pytest.raises(asyncio.CancelledError):
                await asyncio.Event().wait()
            await until(lambda: not emulator.running)
    with pytest.raises(ZeroDivisionError) as raised:
        async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=0.5)):
            try:
                await asyncio.Event().wait()
            finally:
                raise ZeroDivisionError
    assert raised.value
    with pytest.raises(RentalExpiredError):
        # It has not let us in by then.
        await gpu.rent(image=IMAGE, ttl=timedelta(seconds=0.001)).__aenter__()
    emulator.assert_nothing_rented()


async def test_who_is_cancelled_by_others_stays_cancelled(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async def body() -> None:
        async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=0.5)):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                raise

    task = asyncio.create_task(body())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    emulator.assert_nothing_rented()


async def test_a_timeout_around_it_is_a_timeout(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1), gpu.rent(image=IMAGE):
            await asyncio.Event().wait()
    with anyio.move_on_after(1) as scope:
        async with gpu.rent(image=IMAGE):
            await asyncio.Event().wait()
    assert scope.cancelled_caught
    emulator.assert_nothing_rented()


async def test_entered_and_left_by_different_tasks(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    rental = gpu.rent(image=IMAGE, ttl=timedelta(seconds=1.5))
    await asyncio.create_task(rental.__aenter__())
    assert (await asyncio.create_task(rental.run("true"))).ok
    await until(lambda: not emulator.running)
    with pytest.raises(RentalExpiredError):
        await asyncio.create_task(rental.__aexit__(None, None, None))


async def test_what_cannot_be_deleted_is_said_and_stays_on_record(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("netmind_rentgpu.rentals.ends._LONGEST_DELETION", 0.5)
    emulator.faults.add(Fault("status", call="delete_container", status=500, times="all"))
    with pytest.raises(ReleaseError, match="could not be deleted") as raised:
        async with gpu.rent(image=IMAGE) as rental:
            pass
    error = raised.value
    assert (error.name, error.container_id, error.hourly_price) == (
        rental.name,
        rental.container.id,
        rental.hourly_price,
    )
    with pytest.raises(ZeroDivisionError) as body:
        async with gpu.rent(image=IMAGE) as second:
            raise ZeroDivisionError
    assert second.name in body.value.__notes__[0]
    shown = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert len(shown) == 2
    assert f"{rental.hourly_price:f}" in shown[0].getMessage()
    assert rental.name in shown[0].getMessage()
    assert str(rental.container.id) in shown[0].getMessage()
    assert {record.stage for record in await gpu.rentals.open()} == {"abandoned"}
    emulator.faults.clear()
    assert set((await gpu.rentals.reap()).deleted) == {rental.name, second.name}
    emulator.assert_nothing_rented()


async def test_a_client_that_is_closed_releases_what_it_still_has(emulator: Emulator, state: Path) -> None:
    gpu = client(emulator, state)
    rental = await gpu.rent(image=IMAGE).__aenter__()
    late = gpu.rent(image=IMAGE)
    entering = asyncio.create_task(late.__aenter__())
    await until(lambda: len(emulator.requests.of("create_container")) == 2)
    await gpu.close()
    emulator.assert_nothing_rented()
    with pytest.raises(ClientStateError):
        await entering
    with pytest.raises(ClientStateError, match="it was closed"):
        await rental.run("true")
    await rental.__aexit__(None, None, None)
    with pytest.raises(ClientStateError, match="closed"):
        await gpu.rent(image=IMAGE).__aenter__()


async def test_a_container_that_vanishes_ends_the_rental(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        await gpu.containers.delete(rental.container.id)
        with pytest.raises(RentalEndedError, match="is gone"):
            await rental.run("true")
        with pytest.raises(RentalEndedError, match="is gone"):
            _ = rental.shell
    assert await gpu.rentals.open() == []


async def test_a_shell_that_is_lost_is_made_again(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        first = rental.shell
        await gpu.containers.restart(rental.container.id)
        await until(lambda: first.lost)
        await gpu.containers.wait_ready(rental.container.id, timeout=10)
        assert (await rental.run("echo again")).stdout == "again\n"
        assert rental.shell is not first
        await gpu.containers.stop(rental.container.id)
        await until(lambda: rental.shell.lost)
        with pytest.raises(RentalEndedError, match="does not let us in any more"):
            await rental.run("true")
    emulator.assert_nothing_rented()


async def test_one_that_never_lets_us_in_is_deleted(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    for what in ("never starts", "never reachable", "dies"):
        emulator.faults.add(Fault(what))
        with pytest.raises(WaitTimeoutError, match="did not let us log in"):
            await gpu.rent(image=IMAGE, timeout=0.5).__aenter__()
        emulator.assert_nothing_rented()
    assert await gpu.rentals.open() == []


# Left running.


async def test_detached_attached_and_gone(gpu: AsyncRentGPU, emulator: Emulator, state: Path) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
        with pytest.raises(ClientStateError, match="detached"):
            await rental.run("true")
        with pytest.raises(ClientStateError, match="detached"):
            await rental.detach()
    assert [charge.name for charge in emulator.running] == [record.name]
    assert (await gpu.rentals.reap(wait=True)).deleted == ()
    async with client(emulator, state) as other:
        (found,) = await other.rentals.open()
        assert (found.name, found.stage, found.owner) == (record.name, "detached", None)
        async with other.rentals.attach(found) as again:
            assert (await again.run("true")).ok
            assert again.expires_at == rental.expires_at
            assert again.machine.node_name == rental.machine.node_name
            # It is nobody else's meanwhile.
            with pytest.raises(InvalidArgumentError, match="is in use in this process"):
                await gpu.rentals.attach(record.name).__aenter__()
            assert (await gpu.rentals.reap()).deleted == ()
            assert (await again.run("true")).ok
    emulator.assert_nothing_rented()
    with pytest.raises(InvalidArgumentError, match="no rental called"):
        await gpu.rentals.attach(record).__aenter__()


async def test_what_cannot_be_attached_to_stays_detached(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    await gpu.containers.stop(rental.container.id)
    with pytest.raises(WaitTimeoutError):
        await gpu.rentals.attach(record, timeout=0.5).__aenter__()
    attaching = asyncio.create_task(gpu.rentals.attach(record).__aenter__())
    await until(lambda: emulator.requests[-1].call == "get_container" and len(emulator.requests) > 3)
    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching
    (found,) = await gpu.rentals.open()
    assert found.stage == "detached"
    assert len(emulator.running) == 1
    await gpu.containers.restart(rental.container.id)
    async with gpu.rentals.attach(record):
        pass
    emulator.assert_nothing_rented()


async def test_one_that_is_gone_cannot_be_attached_to(gpu: AsyncRentGPU, emulator: Emulator, state: Path) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    # Whoever says that it is gone may be wrong, so that it stays on record.
    emulator.faults.add(Fault("status", call="get_container", status=404))
    with pytest.raises(RentalEndedError, match="is gone"):
        await gpu.rentals.attach(record).__aenter__()
    assert [one.stage for one in await gpu.rentals.open()] == ["detached"]
    await gpu.containers.delete(rental.container.id)
    with pytest.raises(RentalEndedError, match="is gone"):
        await gpu.rentals.attach(record).__aenter__()
    with sqlite3.connect(state) as connection:
        connection.execute("UPDATE rentals SET expires_at = intended_at")
    connection.close()
    assert (await gpu.rentals.reap()).gone == (record.name,)
    assert await gpu.rentals.open() == []
    emulator.assert_nothing_rented()


async def test_who_may_not_attach_changes_nothing(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        for _ in range(2):
            with pytest.raises(InvalidArgumentError, match="is in use in this process"):
                await gpu.rentals.attach(rental.name).__aenter__()
        assert [one.stage for one in await gpu.rentals.open()] == ["ready"]
        assert (await gpu.rentals.reap()).deleted == ()
        assert (await rental.run("true")).ok
    emulator.assert_nothing_rented()


async def test_who_is_cancelled_while_detaching_has_detached(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with gpu.rent(image=IMAGE) as rental:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
            await rental.detach()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(body())
    (record,) = await gpu.rentals.open()
    assert record.stage == "detached"
    assert len(emulator.running) == 1
    async with gpu.rentals.attach(record):
        pass
    emulator.assert_nothing_rented()


async def test_what_was_read_is_claimed_before_it_is_reaped(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rental = await gpu.rent(image=IMAGE).__aenter__()
    ledger = gpu._desk.ledger
    opened = ledger.open

    async def read_long_ago() -> Any:
        records = await opened()
        if not rental._standing.over:
            await rental.detach()
        return records

    monkeypatch.setattr(ledger, "open", read_long_ago)
    assert (await gpu.rentals.reap()).deleted == ()
    assert len(emulator.running) == 1
    (record,) = await gpu.rentals.open()
    async with gpu.rentals.attach(record):
        pass
    emulator.assert_nothing_rented()


async def test_one_whose_name_cannot_be_read_may_be_it(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from netmind_rentgpu.rentals.market import Roll

    walk = Roll._walk

    async def nameless(self: Roll) -> Any:
        found, unreadable = await walk(self)
        return [attrs.evolve(container, name=None) for container in found], unreadable

    monkeypatch.setattr(Roll, "_walk", nameless)
    monkeypatch.setattr("netmind_rentgpu.rentals.doubts._LOOKING_GOES_ON", 0.1)
    emulator.faults.add(Fault("drop", call="create_container", when="after"))
    with pytest.raises(APIConnectionError):
        await gpu.rent(image=IMAGE).__aenter__()
    assert len(emulator.requests.of("create_container")) == 1
    assert len((await gpu.rentals.reap()).failed) == 1
    monkeypatch.undo()
    assert (await gpu.rentals.reap(wait=True)).clean
    emulator.assert_nothing_rented()


async def test_a_404_that_is_wrong_after_a_502_is_not_believed(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="delete_container", status=502))
    emulator.faults.add(Fault("status", call="delete_container", status=404, nth=2))
    async with gpu.rent(image=IMAGE):
        pass
    assert len(emulator.requests.of("delete_container")) == 3
    emulator.assert_nothing_rented()


async def test_who_is_cancelled_in_a_walk_leaves_nothing_behind(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("hang", call="list_containers", times=2))
    first = asyncio.create_task(gpu._desk.roll.call())
    await until(lambda: bool(emulator.requests.of("list_containers")))
    others = [asyncio.create_task(gpu._desk.roll.call()) for _ in range(2)]
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    await until(lambda: len(emulator.requests.of("list_containers")) == 2)
    async with gpu.rent(image=IMAGE) as rental:
        others[0].cancel()
        # It is there, and whoever waited sees it, by a walk of its own.
        assert [one.id for one in await others[1]] == [rental.container.id]


@pytest.mark.parametrize("gives_way", [True, False])
async def test_what_the_service_made_twice_cannot_be_deleted_at_once(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, gives_way: bool
) -> None:
    monkeypatch.setattr("netmind_rentgpu.rentals.ends._LONGEST_DELETION", 0.3)
    make_twice(gpu)
    times = 1 if gives_way else "all"
    emulator.faults.add(Fault("status", call="delete_container", path="*/1002", status=403, times=times))
    with pytest.raises(PermissionDeniedError) as raised:
        await gpu.rent(image=IMAGE, key=lambda offer: -offer.machine.gpu_count).__aenter__()
    # The first is deleted whatever becomes of the second.
    assert [charge.container_id for charge in emulator.running] == ([] if gives_way else [1002])
    assert bool(getattr(raised.value, "__notes__", ())) is not gives_way
    emulator.faults.clear()
    assert (await gpu.rentals.reap(wait=True)).clean
    emulator.assert_nothing_rented()
    assert await gpu.rentals.open() == []


async def test_those_who_wait_for_an_image_share_how_it_fails(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="list_images", status=403, times="all"))
    rentals = [gpu.rent(image=IMAGE) for _ in range(20)]
    ends = await asyncio.gather(*(rental.__aenter__() for rental in rentals), return_exceptions=True)
    assert {type(end) for end in ends} == {PermissionDeniedError}
    assert len(emulator.requests.of("list_images")) <= 3


async def test_who_cancels_the_closing_of_a_client_does_not_keep_it_from_deleting(
    emulator: Emulator, state: Path
) -> None:
    gpu = client(emulator, state)
    emulator.faults.add(Fault("slow", call="create_container", seconds=0.3, when="after"))
    entering = asyncio.create_task(gpu.rent(image=IMAGE).__aenter__())
    await until(lambda: bool(emulator.requests.of("create_container")))
    closing = asyncio.create_task(gpu.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(ClientStateError):
        await entering
    emulator.assert_nothing_rented()


async def test_what_the_service_made_twice_is_deleted_twice(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    make_twice(gpu)
    emulator.faults.add(Fault("status", call="delete_container", status=500))
    async with gpu.rent(image=IMAGE, key=lambda offer: -offer.machine.gpu_count) as rental:
        assert (await rental.run("true")).ok
        assert [charge.container_id for charge in emulator.running] == [rental.container.id]
    emulator.assert_nothing_rented()


async def test_who_reaps_can_be_cancelled(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="create_container", status=502, when="after"))
    emulator.faults.add(Fault("status", call="list_containers", status=500, times="all"))
    rental = gpu.rent(image=IMAGE)
    entering = asyncio.create_task(rental.__aenter__())
    await until(lambda: bool(emulator.requests.of("list_containers")))
    await cancel_twice(entering)
    with pytest.raises(asyncio.CancelledError):
        await entering
    emulator.faults.clear()
    emulator.faults.add(Fault("slow", call="delete_container", seconds=0.3))
    reaping = asyncio.create_task(gpu.rentals.reap(wait=True))
    await until(lambda: bool(emulator.requests.of("delete_container")))
    reaping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reaping
    emulator.assert_nothing_rented()
    assert (await gpu.rentals.reap(wait=True)).clean
    assert await gpu.rentals.open() == []


async def test_a_look_that_fails_is_made_again_after_a_while(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("stock-out"))
    async with gpu.rent(image=IMAGE) as rental:
        emulator.faults.add(Fault("status", call="list_containers", status=403, times="all"))
        await until(lambda: bool(emulator.requests.of("list_containers")))
        assert (await rental.run("sleep 0.3")).ok
        assert len(emulator.requests.of("list_containers")) == 1
        emulator.faults.clear()
    emulator.assert_nothing_rented()


async def test_those_who_wait_for_a_walk_share_how_it_fails(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="list_containers", status=403, times="all"))
    ends = await asyncio.gather(*(gpu._desk.roll.call() for _ in range(20)), return_exceptions=True)
    assert {type(end) for end in ends} == {PermissionDeniedError}
    assert len(emulator.requests.of("list_containers")) <= 2
    emulator.faults.add(Fault("status", call="list_machines", status=403, times="all"))
    ends = await asyncio.gather(*(gpu.offers() for _ in range(20)), return_exceptions=True)
    assert {type(end) for end in ends} == {PermissionDeniedError}
    assert len(emulator.requests.of("list_machines")) <= 2


async def test_detached_and_expired(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=1)) as rental:
        record = await rental.detach()
    assert record.expires_at is not None
    reports: list[Any] = []
    async with asyncio.timeout(20):
        while not reports or not reports[-1].deleted:
            reports.append(await gpu.rentals.reap())
    assert len(reports) > 1
    emulator.assert_nothing_rented()


async def test_kept(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE, keep=True) as rental:
        assert rental.expires_at is None
        assert await gpu.rentals.open() == []
        with pytest.raises(ClientStateError, match="kept"):
            await rental.detach()
        assert (await rental.run("true")).ok
    await gpu.rentals.reap(wait=True)
    await gpu.rentals.reap(by_name=True)
    assert [charge.container_id for charge in emulator.running] == [rental.container.id]
    await gpu.containers.delete(rental.container.id)
    with pytest.raises(ZeroDivisionError):
        async with gpu.rent(image=IMAGE, keep=True) as rental:
            raise ZeroDivisionError
    assert len(emulator.running) == 1
    await gpu.containers.delete(rental.container.id)


# The state file.


@pytest.mark.parametrize("broken", ["no database", "newer", "a folder", "in a file"])
async def test_a_state_file_that_cannot_be_used_is_found_out_before(
    emulator: Emulator, state: Path, broken: str
) -> None:
    state.parent.mkdir(parents=True)
    if broken == "no database":
        state.write_bytes(b"x" * 5000)
    elif broken == "newer":
        with sqlite3.connect(state) as connection:
            connection.execute("PRAGMA user_version = 1000")
        connection.close()
    elif broken == "a folder":
        state.mkdir()
    else:
        state.write_text("")
        state = state / "below"
    async with client(emulator, state) as gpu:
        with pytest.raises(LedgerError):
            await gpu.rent(image=IMAGE).__aenter__()
    assert not emulator.requests.of("create_container")


async def test_a_state_file_that_breaks_meanwhile_loses_nothing(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        with sqlite3.connect(state) as connection:
            connection.execute("DROP TABLE rentals")
        connection.close()
        assert (await rental.run("true")).ok
        with pytest.raises(LedgerError):
            await rental.detach()
    emulator.assert_nothing_rented()
    assert "could not be put on record" in caplog.text


async def test_by_name_needs_no_record(gpu: AsyncRentGPU, emulator: Emulator, tmp_path: Path) -> None:
    async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=0.5)) as rental:
        await rental.detach()
    async with client(emulator, tmp_path / "another" / "file") as other:
        assert await other.rentals.open() == []
        # The expiry in a name is a whole minute's, so that it has not passed yet.
        assert (await other.rentals.reap(by_name=True)).deleted == ()
    assert len(emulator.running) == 1
    await gpu.containers.delete(rental.container.id)
