"""Rentals that are over: each is kept once, with the cause of its end and its cost, however it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
from lifecycle import UNCERTAIN, expire, put_as_it_is, refuse_deletes, set_clock, set_limits
from rented import IMAGE, cancel_twice, client

from netmind_rentgpu import (
    AsyncRentGPU,
    BudgetExceededError,
    EndCause,
    InvalidArgumentError,
    NoMachineError,
    PastRental,
    PermissionDeniedError,
    ReleaseError,
    RentalEndedError,
    RentalExpiredError,
    RentalRecord,
)
from netmind_rentgpu.conditions import status_in
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.rentals.ledger.process_identity import this_process

HOUR = timedelta(hours=1)


async def the_only(gpu: AsyncRentGPU) -> PastRental:
    (past,) = await gpu.rentals.history()
    return past


async def test_rental_that_was_left_is_kept_with_all_that_was_known(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE, gpus=2, label="sweep-3") as rental:
        container, machine = rental.container, rental.machine
        (record,) = await gpu.rentals.list()
        assert await gpu.rentals.history() == []
        assert (record.gpu_name, record.region, record.image) == (machine.gpu_name, machine.region, IMAGE)
        assert record.created_at is not None
        assert record.ready_at is not None
        assert record.intended_at <= record.created_at <= record.ready_at
    past = await the_only(gpu)
    assert past.ended_at >= record.ready_at
    assert past == PastRental(
        name=rental.name,
        label="sweep-3",
        container_id=container.id,
        gpu_name=machine.gpu_name,
        gpus=2,
        node_name=machine.node_name,
        region=machine.region,
        image=IMAGE,
        hourly_price=rental.hourly_price,
        currency="USD",
        intended_at=record.intended_at,
        created_at=record.created_at,
        ready_at=record.ready_at,
        ended_at=past.ended_at,
        cause="released",
        spent=past.spent,
    )
    assert past.hourly_price is not None
    assert past.spent is not None
    assert rental.spent is not None
    hours = Decimal(str((past.ended_at - past.intended_at).total_seconds())) / 3600
    assert abs(past.spent - past.hourly_price * hours) <= Decimal("0.000001")
    # The rental counts until its deletion began, the past rental until that was proven.
    assert rental.spent <= past.spent
    emulator.assert_nothing_rented()


async def leave(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE):
        pass


async def leave_by_an_error(gpu: AsyncRentGPU) -> None:
    with pytest.raises(ZeroDivisionError):
        async with gpu.rent(image=IMAGE):
            raise ZeroDivisionError


async def close(gpu: AsyncRentGPU) -> None:
    await (await gpu.rent(image=IMAGE).open()).close()


async def cancel_the_start(gpu: AsyncRentGPU) -> None:
    entering = asyncio.create_task(gpu.rent(image=IMAGE, fail=status_in()).__aenter__())
    await until_created(gpu)
    await cancel_twice(entering)
    with pytest.raises(asyncio.CancelledError):
        await entering


async def until_created(gpu: AsyncRentGPU) -> None:
    while not any(record.container_id is not None for record in await gpu.rentals.list()):
        await asyncio.sleep(0.01)


async def let_it_expire(gpu: AsyncRentGPU) -> None:
    with pytest.raises(RentalExpiredError):
        async with gpu.rent(image=IMAGE) as rental:
            expire(rental)
            await asyncio.Event().wait()


async def spend_its_budget(gpu: AsyncRentGPU) -> None:
    with pytest.raises(BudgetExceededError):
        async with gpu.rent(image=IMAGE, budget=1) as rental:
            expire(rental)
            await asyncio.Event().wait()


async def detach_and_release(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    await gpu.rentals.release(record)


async def detach_and_delete_the_container(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        await rental.detach()
    await gpu.containers.delete(rental.container.id)


async def detach_attach_and_leave(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    async with gpu.rentals.attach(record):
        assert await gpu.rentals.history() == []


async def detach_and_reap_late(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    await put_as_it_is(gpu, attrs.evolve(record, expires_at=record.intended_at))
    await gpu.rentals.reap()


async def detach_with_a_budget_and_reap_late(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE, budget=1) as rental:
        record = await rental.detach()
    await put_as_it_is(gpu, attrs.evolve(record, expires_at=record.intended_at, budget=Decimal(0)))
    await gpu.rentals.reap()


async def die(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    dead = attrs.evolve(this_process(), started="before")
    await put_as_it_is(gpu, attrs.evolve(record, stage="ready", owner=dead))
    await gpu.rentals.reap()


async def lose_the_container(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        await gpu.request("DELETE", f"containers/{rental.container.id}")


async def lose_the_container_and_notice(gpu: AsyncRentGPU) -> None:
    with pytest.raises(RentalEndedError):
        async with gpu.rent(image=IMAGE) as rental:
            await gpu.request("DELETE", f"containers/{rental.container.id}")
            await rental.run("true")


async def lose_a_detached_container(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    await gpu.request("DELETE", f"containers/{rental.container.id}")
    await gpu.rentals.release(record)


async def keep(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE, keep=True) as rental:
        pass
    await gpu.containers.delete(rental.container.id)


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (leave, "released"),
        (leave_by_an_error, "released"),
        (close, "released"),
        (cancel_the_start, "released"),
        (let_it_expire, "expired"),
        (spend_its_budget, "budget"),
        (detach_and_release, "released"),
        (detach_and_delete_the_container, "released"),
        (detach_attach_and_leave, "released"),
        (detach_and_reap_late, "expired"),
        (detach_with_a_budget_and_reap_late, "budget"),
        (die, "reaped"),
        (lose_the_container, "gone"),
        (lose_the_container_and_notice, "gone"),
        (lose_a_detached_container, "released"),
        (keep, "kept"),
    ],
)
async def test_past_rental_names_the_cause_of_its_end(
    gpu: AsyncRentGPU, emulator: Emulator, end: Callable[[AsyncRentGPU], Awaitable[None]], cause: EndCause
) -> None:
    if end is cancel_the_start:
        emulator.faults.add(Fault("never reachable"))
    await end(gpu)
    past = await the_only(gpu)
    assert past.cause == cause
    assert past.container_id == emulator.charges[0].container_id
    assert past.spent is None if cause == "kept" else past.spent is not None
    assert await gpu.rentals.list() == []
    emulator.assert_nothing_rented()


async def test_machines_that_did_not_start_are_past_rentals_of_their_own(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("dies", times=2))
    async with gpu.rent(image=IMAGE, fail=status_in(3), label="third") as rental:
        started = rental.name
    history = await gpu.rentals.history(label="third")
    assert [past.cause for past in history] == ["failed", "failed", "released"]
    assert [past.ready_at is None for past in history] == [True, True, False]
    assert [past.container_id for past in history] == [charge.container_id for charge in emulator.charges]
    assert history[-1].name == started
    # Each has its own cost, so that no cost counts twice.
    costs = [past.spent or 0 for past in history]
    assert rental.spent is not None
    assert abs(sum(costs) - rental.spent) < Decimal("0.01")
    (line,) = (await gpu.rentals.spent()).lines
    assert (line.group, line.currency, line.spent, line.rentals) == ("third", "USD", sum(costs), 3)


async def test_last_machine_that_did_not_start_failed_too(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("dies", times="all"))
    with pytest.raises(NoMachineError, match="3 machines did not start"):
        await gpu.rent(image=IMAGE, fail=status_in(3)).open()
    assert [past.cause for past in await gpu.rentals.history()] == ["failed"] * 3
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("what", ["rate limit", "status"])
async def test_refused_creates_are_no_past_rentals(gpu: AsyncRentGPU, emulator: Emulator, what: Any) -> None:
    options = {"status": 409} if what == "status" else {}
    emulator.faults.add(Fault(what, call="create_container", times="all", **options))
    with pytest.raises(Exception, match=r"\w"):
        await gpu.rent(image=IMAGE).open()
    await asyncio.sleep(0)
    assert (await gpu.rentals.reap(wait=True)).clean
    assert await gpu.rentals.history() == []
    assert (await gpu.rentals.spent()).lines == []


async def test_container_of_a_create_that_was_refused_by_mistake_is_a_past_rental(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    emulator.faults.add(Fault("status", call="create_container", status=403, when="after"))
    with pytest.raises(PermissionDeniedError):
        await gpu.rent(image=IMAGE).open()
    assert (await gpu.rentals.reap(wait=True)).clean
    past = await the_only(gpu)
    assert (past.cause, past.created_at) == ("failed", None)
    assert past.spent is not None
    emulator.assert_nothing_rented()


async def test_container_of_a_lost_answer_is_a_past_rental(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="create_container", status=502, when="after"))
    async with gpu.rent(image=IMAGE):
        pass
    assert (await gpu.rentals.reap(wait=True)).clean
    past = await the_only(gpu)
    assert (past.cause, past.spent is None) == ("released", False)
    emulator.assert_nothing_rented()


async def test_rental_whose_deletion_failed_at_first_keeps_its_cause_and_costs_until_it_is_gone(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    set_limits(gpu, deletion=0.1)
    refuse_deletes(emulator, "all")
    with pytest.raises(RentalExpiredError):
        async with gpu.rent(image=IMAGE) as rental:
            expire(rental)
            await asyncio.Event().wait()
    assert await gpu.rentals.history() == []
    (record,) = await gpu.rentals.list()
    assert (record.stage, record.cause, record.ended_at) == ("abandoned", "expired", None)
    emulator.faults.clear()
    set_clock(gpu, HOUR, boot="another")
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    past = await the_only(gpu)
    assert past.cause == "expired"
    assert past.ended_at >= record.intended_at + HOUR


async def test_rental_costs_only_until_its_container_was_gone_though_its_record_stays(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    async with client(emulator, state, UNCERTAIN) as uncertain:
        emulator.faults.add(Fault("status", call="create_container", status=502, when="after"))
        async with uncertain.rent(image=IMAGE):
            pass
        # A second container of that create may still turn up.
        (record,) = await uncertain.rentals.list()
        assert (record.stage, record.cause, record.container_id) == ("abandoned", "released", None)
        assert record.ended_at is not None
        (line,) = (await uncertain.rentals.spent()).lines
        assert line.rentals == 1
        set_clock(uncertain, timedelta(days=2), boot="another")
        assert (await uncertain.rentals.spent()).lines == [line]
        assert (await uncertain.rentals.reap(wait=True)).clean
    past = await the_only(gpu)
    assert (past.cause, past.ended_at, past.spent) == ("released", record.ended_at, line.spent)
    emulator.assert_nothing_rented()


async def test_container_found_to_be_gone_costs_until_its_ceiling_at_most(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    async with gpu.rent(image=IMAGE, ttl=HOUR, extendable_to=2 * HOUR) as rental:
        record = await rental.detach()
    await gpu.request("DELETE", f"containers/{rental.container.id}")
    set_clock(gpu, timedelta(days=3), boot="another")
    assert (await gpu.rentals.reap()).gone == (record.name,)
    past = await the_only(gpu)
    assert (past.cause, past.ended_at) == ("expired", record.extendable_to)
    assert past.hourly_price is not None
    assert past.spent == pytest.approx(2 * past.hourly_price, abs=Decimal("0.001"))
    emulator.assert_nothing_rented()


async def test_rental_released_while_its_owner_leaves_is_kept_once(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    async with client(emulator, state) as other:
        rental = await gpu.rent(image=IMAGE).open()
        await asyncio.gather(rental.close(), other.rentals.release(rental.name, force=True), return_exceptions=True)
    past = await the_only(gpu)
    assert past.cause in ("released", "gone")
    emulator.assert_nothing_rented()


async def test_open_rentals_count_until_now(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE, label="one") as first, gpu.rent(image=IMAGE) as second:
        assert first.hourly_price is not None
        assert second.hourly_price is not None
        set_clock(gpu, 10 * HOUR, boot="another")
        spent = await gpu.rentals.spent(by="label")
        assert {line.group for line in spent.lines} == {"one", None}
        about = 10 * (first.hourly_price + second.hourly_price)
        assert abs(spent.total["USD"] - about) < Decimal("0.1")
        by_gpu = await gpu.rentals.spent(by="gpu")
        assert {line.group for line in by_gpu.lines} == {first.machine.gpu_name, second.machine.gpu_name}
        now = gpu._context.clock().wall
        later = await gpu.rentals.spent(since=now - HOUR)
        assert abs(later.total["USD"] - about / 10) < Decimal("0.1")
        assert (await gpu.rentals.spent(until=now - 20 * HOUR, by="day")).lines == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"since": datetime(2026, 1, 1)}, "since: must be a datetime with a time zone"),  # noqa: DTZ001  # what is refused
        ({"until": "yesterday"}, "until: must be a datetime with a time zone"),
    ],
)
async def test_unusable_periods_are_refused(gpu: AsyncRentGPU, options: dict[str, Any], text: str) -> None:
    for call in (gpu.rentals.history, gpu.rentals.spent):
        with pytest.raises(InvalidArgumentError, match=text):
            await call(**options)


async def test_unusable_groups_and_reversed_periods_are_refused(gpu: AsyncRentGPU) -> None:
    now = gpu._context.clock().wall
    with pytest.raises(InvalidArgumentError, match="until: does not come after since"):
        await gpu.rentals.history(since=now, until=now - HOUR)
    with pytest.raises(InvalidArgumentError, match="by: must be label, gpu or day, not 'month'"):
        await gpu.rentals.spent(by="month")  # type: ignore[arg-type]  # what is refused
    with pytest.raises(InvalidArgumentError, match="label"):
        await gpu.rentals.history(label="")


async def test_failed_deletion_leaves_an_open_rental_and_no_past_one(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    set_limits(gpu, deletion=0.1)
    refuse_deletes(emulator, "all")
    with pytest.raises(ReleaseError):
        await (await gpu.rent(image=IMAGE).open()).close()
    (record,) = await gpu.rentals.list()
    assert isinstance(record, RentalRecord)
    assert (record.cause, await gpu.rentals.history()) == ("released", [])
    emulator.faults.clear()
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    assert (await the_only(gpu)).cause == "released"
