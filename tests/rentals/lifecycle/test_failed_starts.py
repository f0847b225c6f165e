"""Machines that do not start: they are deleted, remembered, and replaced by the next, unless the cause lies elsewhere."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
from rented import IMAGE, PROFILE, cancel_twice, client
from until import until

from netmind_rentgpu import (
    AsyncRentGPU,
    ClientStateError,
    Container,
    ContainerFailedError,
    ContainerGoneError,
    InvalidArgumentError,
    NoMachineError,
    PermissionDeniedError,
    ReleaseError,
    RentalExpiredError,
    RentalRecord,
    RentGPUError,
    ServerError,
    SSHError,
    WaitTimeoutError,
)
from netmind_rentgpu.conditions import status_in
from netmind_rentgpu.emulator import Emulator, Fault, World
from netmind_rentgpu.rentals.lifecycle.starting import is_machines_fault
from netmind_rentgpu.ssh.credentials import ContainerLogin

# Tells at once that the emulator's container has died, so that no test waits for one that does not start.
DIED = status_in(3)


async def nodes(gpu: AsyncRentGPU) -> list[str]:
    """Return the machines in the order in which they are tried."""
    return [offer.machine.node_name for offer in await gpu.offers()]


@pytest.mark.parametrize(
    "fault",
    [Fault("never starts"), Fault("never reachable"), Fault("dies"), Fault("vanishes", seconds=0)],
    ids=lambda fault: fault.what,
)
async def test_next_machine_is_rented_where_the_first_does_not_start(
    gpu: AsyncRentGPU, emulator: Emulator, fault: Fault
) -> None:
    emulator.faults.add(fault)
    first, second, *_ = await nodes(gpu)
    async with gpu.rent(image=IMAGE, start_timeout=5) as rental:
        assert rental.machine.node_name == second
        assert [charge.node_name for charge in emulator.charges] == [first, second]
        assert [charge.node_name for charge in emulator.running] == [second]
        assert (await rental.run("true")).ok
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


async def test_machine_that_fails_is_tried_last_until_it_starts(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    emulator.faults.add(Fault("dies"))
    first, second, third, *_ = await nodes(gpu)
    async with gpu.rent(image=IMAGE, fail=DIED) as rental:
        assert rental.machine.node_name == second
        # Other clients, as in other processes, go by the state file; what is taken is taken.
        async with client(emulator, state) as other, other.rent(image=IMAGE) as theirs:
            assert theirs.machine.node_name != first
        # Another image may start there.
        async with gpu.rent(image="Ubuntu 22.04") as ubuntu:
            assert ubuntu.machine.node_name == first
    # It is never excluded.
    others = [node for node in await nodes(gpu) if node != first]
    async with client(emulator, state) as other:
        async with other.rent(image=IMAGE, exclude=others) as rental:
            assert rental.machine.node_name == first
        async with other.rent(image=IMAGE) as rental:
            assert rental.machine.node_name == first
    assert third in others
    emulator.assert_nothing_rented()


async def test_failed_start_is_forgotten_after_half_an_hour(gpu: AsyncRentGPU, emulator: Emulator, state: Path) -> None:
    emulator.faults.add(Fault("dies"))
    first, *_ = await nodes(gpu)
    async with gpu.rent(image=IMAGE, fail=DIED):
        pass
    now = datetime.now(UTC)
    for minutes, is_remembered in ((29, True), (-29, True), (31, False), (-31, False)):
        then = now + timedelta(minutes=minutes)
        async with client(emulator, state) as other:
            assert (first in (await other._context.starts.of_image(1, then)).failed_on) is is_remembered
            # What another writes then does not make it forget more.
            await other._context.starts.record_soon("another", 1, then, failed=True)
    emulator.assert_nothing_rented()


async def test_other_service_has_a_history_of_its_own(gpu: AsyncRentGPU, emulator: Emulator, state: Path) -> None:
    emulator.faults.add(Fault("dies"))
    async with gpu.rent(image=IMAGE, fail=DIED):
        pass
    async with Emulator(seed=7, boot_seconds=0.02, ssh=True) as another, client(another, state) as other:
        first, *_ = await nodes(other)
        async with other.rent(image=IMAGE) as rental:
            assert rental.machine.node_name == first
        another.assert_nothing_rented()


async def test_three_failed_starts_are_enough(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("dies", times="all"))
    tried = (await nodes(gpu))[:3]
    rental = gpu.rent(image=IMAGE, fail=DIED)
    with pytest.raises(NoMachineError, match="3 machines did not start") as none:
        await rental.__aenter__()
    emulator.assert_nothing_rented()
    refusals = none.value.refusals
    assert [refusal.machine.node_name for refusal in refusals] == tried
    assert [refusal.container_id for refusal in refusals] == [charge.container_id for charge in emulator.charges]
    for refusal in refusals:
        assert isinstance(refusal.error, ContainerFailedError)
        assert f"{refusal.machine.node_name} (container {refusal.container_id}, deleted): " in str(none.value)
    assert isinstance(none.value.__cause__, ContainerFailedError)
    assert rental.spent is not None
    assert 0 <= rental.spent <= sum(charge.hourly_price for charge in emulator.charges)


async def test_image_that_fails_everywhere_is_not_tried_three_times_again(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    emulator.faults.add(Fault("dies", times="all"))
    with pytest.raises(NoMachineError, match="within the last half hour, this image has started on no machine"):
        await gpu.rent(image=IMAGE, fail=DIED).__aenter__()
    async with client(emulator, state) as other:
        with pytest.raises(NoMachineError, match=r"^1 machine did not start"):
            await other.rent(image=IMAGE, fail=DIED).__aenter__()
        assert len(emulator.charges) == 4
        emulator.faults.clear()
        async with other.rent(image=IMAGE):
            pass
        emulator.faults.add(Fault("dies"))
        # It has started since, so that it is the machine's fault now.
        async with other.rent(image=IMAGE, fail=DIED):
            pass
    emulator.assert_nothing_rented()


async def test_no_machine_is_left_after_the_only_one_has_failed(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("dies"))
    first, *others = await nodes(gpu)
    with pytest.raises(NoMachineError, match=rf"1 did not start: {first} \(container 1001, deleted\)"):
        await gpu.rent(image=IMAGE, fail=DIED, exclude=others).__aenter__()
    emulator.assert_nothing_rented()


async def test_time_for_all_of_it_ends_the_search(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("dies"))
    emulator.faults.add(Fault("never starts", nth=2))
    with pytest.raises(WaitTimeoutError, match=r"before that, these machines did not start: .*deleted") as timeout:
        await gpu.rent(image=IMAGE, fail=DIED, timeout=5).__aenter__()
    assert len(timeout.value.pending) == 1
    assert len(emulator.charges) == 2
    emulator.assert_nothing_rented()


async def test_time_for_all_of_it_includes_the_choice_of_a_machine(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("hang", call="list_machines", times="all"))
    async with AsyncRentGPU(emulator.token, base_url=emulator.url, state=gpu._state.path, profile=PROFILE) as patient:
        with pytest.raises(WaitTimeoutError, match=r"no machine allowed a login within 0\.3 s"):
            await patient.rent(image=IMAGE, timeout=0.3).__aenter__()
    emulator.assert_nothing_rented()


async def test_condition_ends_the_wait_for_a_container_that_has_failed(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("dies"))
    first, second, *_ = await nodes(gpu)
    async with gpu.rent(image=IMAGE, fail=DIED) as rental:
        assert rental.machine.node_name == second
    (refusal,) = rental._source.failed.by_node.values()
    assert refusal.machine.node_name == first
    assert isinstance(refusal.error, ContainerFailedError)
    assert str(refusal.error).endswith("status_in(3) is met")
    emulator.assert_nothing_rented()


@pytest.mark.parametrize(("stage", "tried"), [("name", 1), ("connection", 2), ("password", 1)])
async def test_no_other_machine_is_tried_where_the_cause_is_no_machines(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, stage: Any, tried: int
) -> None:
    log_in = ContainerLogin.log_in
    failed: set[int] = set()

    async def fail_first(self: ContainerLogin, container: Container, *arguments: Any, **options: Any) -> Any:
        failed.add(container.id)
        if container.id == min(failed):
            raise SSHError(f"no {stage}", stage=stage)
        return await log_in(self, container, *arguments, **options)

    monkeypatch.setattr(ContainerLogin, "log_in", fail_first)
    rental = gpu.rent(image=IMAGE, start_timeout=2 if tried == 1 else 5)
    if tried == 1:
        with pytest.raises(WaitTimeoutError, match=f"no {stage}"):
            await rental.__aenter__()
    else:
        async with rental:
            pass
    assert len(emulator.charges) == tried
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("value", [None, ""])
async def test_password_that_the_service_does_not_tell_is_raised_without_waiting(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    get = gpu.auths.get

    async def get_without_value(auth_id: int, **options: Any) -> Any:
        return attrs.evolve(await get(auth_id, **options), value=value)

    monkeypatch.setattr(gpu.auths, "get", get_without_value)
    async with asyncio.timeout(60):
        with pytest.raises(SSHError, match="does not return the password") as unknown:
            await gpu.rent(image=IMAGE, auth="a-password-of-ours").__aenter__()
    assert unknown.value.stage == "password"
    assert len(emulator.charges) == 1
    emulator.assert_nothing_rented()


async def test_service_that_fails_is_no_machines_fault(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="get_auth", status=503, times="all"))
    with pytest.raises(WaitTimeoutError) as timeout:
        await gpu.rent(image=IMAGE, auth="a-password-of-ours", start_timeout=1).__aenter__()
    assert isinstance(timeout.value.__cause__, ServerError)
    assert len(emulator.charges) == 1
    emulator.assert_nothing_rented()


async def test_ssh_that_cannot_be_read_is_no_machines_fault(state: Path) -> None:
    world = World(ssh="other text")
    async with Emulator(seed=7, boot_seconds=0.02, world=world) as emulator, client(emulator, state) as gpu:
        with pytest.raises(WaitTimeoutError, match="no endpoint can be read"):
            await gpu.rent(image=IMAGE, start_timeout=1).__aenter__()
        assert len(emulator.charges) == 1
        emulator.assert_nothing_rented()


def timed_out(cause: BaseException | None, **container: Any) -> WaitTimeoutError:
    error = WaitTimeoutError("too long", arrived={}, pending={1: Container(id=1, **container), 2: None})
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (timed_out(None), True),
        (timed_out(None, ssh=""), True),
        (timed_out(None, ssh="  "), True),
        (timed_out(None, ssh="see the console"), False),
        (timed_out(SSHError("x", stage="connection")), True),
        (timed_out(SSHError("x", stage="password")), False),
        (timed_out(SSHError("x", stage="name")), False),
        (timed_out(RentGPUError("the list could not be read")), False),
        (ContainerFailedError("x", container=Container(id=1), arrived={}, pending={}), True),
        (ContainerGoneError("x", container_id=1, container=None, arrived={}, pending={}), True),
        (SSHError("x", stage="connection"), True),
        (SSHError("x", stage="host key"), True),
        (SSHError("x", stage="password"), False),
        (SSHError("x", stage="name"), False),
        (RentGPUError("x"), False),
        (ReleaseError("x", name="n", container_id=None, hourly_price=None), False),
    ],
)
def test_fault_is_the_machines_or_not(error: RentGPUError, *, expected: bool) -> None:
    assert is_machines_fault(error) is expected


async def test_machine_that_does_not_start_and_cannot_be_deleted_stays_on_record(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    emulator.faults.add(Fault("dies"))
    emulator.faults.add(Fault("status", call="delete_container", status=403, times="all"))
    with pytest.raises(ContainerFailedError) as died:
        await gpu.rent(image=IMAGE, fail=DIED).__aenter__()
    assert any("could not be deleted" in note for note in died.value.__notes__)
    # Nothing else was rented meanwhile.
    assert len(emulator.charges) == 1
    emulator.faults.clear()
    assert len((await gpu.rentals.reap()).deleted) == 1
    emulator.assert_nothing_rented()


async def test_budget_and_what_was_spent_include_failed_starts(state: Path) -> None:
    async with Emulator(seed=7, boot_seconds=0.02, ssh=True) as emulator, client(emulator, state) as gpu:
        emulator.faults.add(Fault("dies"))
        price = (await gpu.offers())[0].hourly_price or Decimal(0)
        budget = price  # an hour's
        async with gpu.rent(image=IMAGE, fail=DIED, budget=budget) as rental:
            failed = rental._source.failed.cost or Decimal(0)
            assert failed > 0
            assert (rental.spent or 0) >= round(failed, 6)
            record = rental._state.had.record
            assert record.expires_at is not None
            left = (budget - failed) / (rental.hourly_price or Decimal(1))
            assert abs((record.expires_at - record.intended_at).total_seconds() - float(left) * 3600) < 0.01
        spent = rental.spent or Decimal(0)
        costs = sum((charge.cost for charge in emulator.charges), Decimal(0))
        # It is rounded to a millionth.
        assert spent >= costs * Decimal("0.99") - Decimal("0.0000005")


async def test_budget_that_failed_starts_have_spent_ends_the_search(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.faults.add(Fault("dies"))
    rental = gpu.rent(image=IMAGE, fail=DIED, budget=Decimal("0.5"))
    monkeypatch.setattr(RentalRecord, "cost_until", lambda *_: Decimal("0.5"))
    with pytest.raises(NoMachineError, match=r"the budget was spent on machines that did not start: .*deleted"):
        await rental.__aenter__()
    assert len(emulator.charges) == 1
    emulator.assert_nothing_rented()


async def test_unknown_price_of_a_failed_start_makes_what_was_spent_unknown(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.faults.add(Fault("dies"))
    monkeypatch.setattr("netmind_rentgpu.rentals.selection.offers.hourly_price", lambda *_: None)
    async with gpu.rent(image=IMAGE, fail=DIED) as rental:
        assert rental._source.failed.cost is None
        assert rental.spent is None
    emulator.assert_nothing_rented()


@pytest.fixture
async def failing(gpu: AsyncRentGPU, emulator: Emulator) -> asyncio.Task[Any]:
    """A rental whose first machine dies, and whose others never start."""
    emulator.faults.add(Fault("dies"))
    emulator.faults.add(Fault("never starts", times="all"))
    return asyncio.create_task(gpu.rent(image=IMAGE, fail=DIED).__aenter__())


@pytest.mark.rentgpu_may_leave_unmet_faults
@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("twice", [False, True])
async def test_cancellation_while_a_machine_is_replaced_leaves_nothing(
    gpu: AsyncRentGPU, emulator: Emulator, failing: asyncio.Task[Any], calls: int, *, twice: bool
) -> None:
    def replacing() -> bool:
        of_its_release = emulator.requests.of("delete_container")
        first = emulator.requests.index(of_its_release[0]) if of_its_release else len(emulator.requests)
        return len(emulator.requests) >= first + calls

    await until(replacing)
    if twice:
        await cancel_twice(failing)
    else:
        failing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await failing
    if twice:
        # What nobody wants to wait for is left on record.
        await gpu.rentals.reap(wait=True)
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


@pytest.mark.rentgpu_may_leave_unmet_faults
async def test_rental_that_is_closed_while_a_machine_is_replaced_leaves_nothing(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    emulator.faults.add(Fault("dies"))
    emulator.faults.add(Fault("never starts", times="all"))
    rental = gpu.rent(image=IMAGE, fail=DIED)
    entering = asyncio.create_task(rental.__aenter__())
    await until(lambda: emulator.requests.of("delete_container"))
    await rental.close()
    with pytest.raises(ClientStateError, match="it was closed"):
        await entering
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("ends", ["cancelled", "closed", "timed out"])
async def test_machine_that_cannot_be_deleted_is_reported_however_the_start_ends(
    gpu: AsyncRentGPU, emulator: Emulator, ends: str
) -> None:
    emulator.faults.add(Fault("dies", times="all"))
    emulator.faults.add(Fault("status", call="delete_container", status=403, times="all"))
    delete, deleting, go_on = gpu.containers._delete, asyncio.Event(), asyncio.Event()

    async def delete_once_somebody_leaves(container_id: int, **options: Any) -> Any:
        deleting.set()
        await go_on.wait()
        return await delete(container_id, **options)

    gpu.containers._delete = delete_once_somebody_leaves  # type: ignore[method-assign]  # the moment between two calls
    rental = gpu.rent(image=IMAGE, fail=DIED, timeout=2 if ends == "timed out" else 1800)
    entering = asyncio.create_task(rental.__aenter__())
    await deleting.wait()
    left: RentGPUError | asyncio.CancelledError
    if ends == "cancelled":
        entering.cancel()
        asyncio.get_running_loop().call_soon(go_on.set)
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await entering
        left = cancelled.value
    elif ends == "closed":
        closing = asyncio.create_task(rental.close())
        asyncio.get_running_loop().call_soon(go_on.set)
        with pytest.raises(ReleaseError):
            await closing
        with pytest.raises(ClientStateError) as closed:
            await entering
        left = closed.value
    else:
        asyncio.get_running_loop().call_later(3, go_on.set)
        with pytest.raises((WaitTimeoutError, ContainerFailedError)) as late:
            await entering
        left = late.value
    assert any("could not be deleted" in note for note in left.__notes__)
    assert len(emulator.running) == 1
    emulator.faults.clear()
    assert len((await gpu.rentals.reap()).deleted) == 1
    emulator.assert_nothing_rented()


async def test_rental_is_not_detached_while_it_is_started(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("never starts"))
    rental = gpu.rent(image=IMAGE)
    entering = asyncio.create_task(rental.__aenter__())
    await until(lambda: rental._state.provisioned is not None)
    with pytest.raises(ClientStateError, match="still being started"):
        await rental.detach()
    await rental.close()
    with pytest.raises(ClientStateError):
        await entering
    emulator.assert_nothing_rented()


async def test_kept_rental_survives_a_failed_start(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("dies"))
    async with gpu.rent(image=IMAGE, fail=DIED, keep=True) as rental:
        container_id = rental.container.id
    assert [charge.container_id for charge in emulator.running] == [container_id]
    assert await gpu.rentals.list() == []
    await gpu.containers.delete(container_id)


async def test_nothing_awaits_once_a_kept_rental_is_the_users_own(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the history could not be written for a while, a cancellation would leave the machine behind.
    hanging: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(gpu._context.starts, "record_soon", lambda *_, **__: hanging)
    async with asyncio.timeout(30), gpu.rent(image=IMAGE, keep=True) as rental:
        pass
    await gpu.containers.delete(rental.container.id)
    hanging.cancel()


async def test_expiry_while_a_machine_starts_names_what_did_not_start_before(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    emulator.faults.add(Fault("dies"))
    emulator.faults.add(Fault("never starts", nth=2))
    with pytest.raises(RentalExpiredError) as expired:
        await gpu.rent(image=IMAGE, fail=DIED, ttl=timedelta(seconds=3)).__aenter__()
    assert any("these machines did not start" in note for note in expired.value.__notes__)
    emulator.assert_nothing_rented()


async def test_error_of_the_next_create_names_what_did_not_start_before(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("dies"))
    emulator.faults.add(Fault("status", call="create_container", nth=2, status=403))
    with pytest.raises(PermissionDeniedError) as denied:
        await gpu.rent(image=IMAGE, fail=DIED).__aenter__()
    assert any("these machines did not start" in note for note in denied.value.__notes__)
    emulator.assert_nothing_rented()


async def test_image_that_starts_elsewhere_at_the_same_time_is_not_blamed(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    emulator.faults.add(Fault("dies", nth=2, times=3))
    async with AsyncExitStack() as stack:
        entering = (stack.enter_async_context(gpu.rent(image=IMAGE, fail=DIED)) for _ in range(6))
        rentals = await asyncio.gather(*entering)
        assert len({rental.container.id for rental in rentals}) == 6
    emulator.assert_nothing_rented()


async def test_time_for_all_of_it_blames_no_machine_that_had_less_than_its_own(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    emulator.faults.add(Fault("never starts"))
    with pytest.raises(WaitTimeoutError):
        await gpu.rent(image=IMAGE, timeout=0.5).__aenter__()
    assert (await gpu._context.starts.of_image(1, datetime.now(UTC))).failed_on == frozenset()
    emulator.assert_nothing_rented()


async def test_damaged_history_prevents_no_replacement(gpu: AsyncRentGPU, emulator: Emulator, state: Path) -> None:
    emulator.faults.add(Fault("dies"))
    async with gpu.rent(image=IMAGE, fail=DIED):
        pass
    emulator.faults.add(Fault("dies", times=2))
    with closing(sqlite3.connect(state)) as connection:
        connection.execute("DROP TABLE starts")
        connection.execute(
            "CREATE TABLE starts (origin, node_name, image_id, failed, failed_at CHECK (failed_at < 0), started_at)"
        )
        connection.commit()
    async with client(emulator, state) as other, other.rent(image=IMAGE, fail=DIED):
        pass
    emulator.assert_nothing_rented()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"start_timeout": 0}, "start_timeout"),
        ({"start_timeout": True}, "start_timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"fail": 7}, "fail"),
        ({"exclude": 7}, "exclude"),
        ({"exclude": [7]}, "exclude"),
    ],
)
async def test_unusable_limits_are_refused(gpu: AsyncRentGPU, arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        gpu.rent(image=IMAGE, **arguments)
    assert refused.value.argument == name


async def test_excluded_machines_are_neither_offered_nor_rented(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    first, second, third, *_ = await nodes(gpu)
    offered = [offer.machine.node_name for offer in await gpu.offers(exclude=[first, second])]
    assert offered[0] == third
    async with gpu.rent(image=IMAGE, exclude={first, second}) as rental:
        assert rental.machine.node_name == third
    # A single text is one name.
    async with gpu.rent(image=IMAGE, exclude=first) as rental:
        assert rental.machine.node_name == second
    with pytest.raises(NoMachineError, match="60 have an excluded name"):
        await gpu.rent(image=IMAGE, exclude=await nodes(gpu)).__aenter__()
    emulator.assert_nothing_rented()


async def test_timeout_of_the_whole_start_is_named_and_not_its_rest(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("never starts", times="all"))
    with pytest.raises(WaitTimeoutError) as late:
        await gpu.rent(image=IMAGE, start_timeout=1.5, timeout=2.7).__aenter__()
    # A busy machine may leave no time for a second machine, and then the first one's limit is named.
    named = re.findall(r"within (?:the )?([\d.]+) s", str(late.value))
    assert named
    assert set(named) <= {"1.5", "2.7"}
    emulator.assert_nothing_rented()
