"""Deadlines that move: by the rental's own process and by others, before, at and after the deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
from lifecycle import expire, put_as_it_is, set_limits
from rented import IMAGE, client
from until import until

from netmind_rentgpu import (
    AsyncRental,
    AsyncRentGPU,
    BudgetExceededError,
    ClientStateError,
    InvalidArgumentError,
    RentalEndedError,
    RentalExpiredError,
    RentalNotFoundError,
    RentalRecord,
    StateFileError,
)
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.names import expiry_in
from netmind_rentgpu.rentals.ledger.store import Ledger

HOUR = timedelta(hours=1)


@pytest.fixture
async def another(emulator: Emulator, state: Path) -> AsyncIterator[AsyncRentGPU]:
    """A client of another program: it shares the account and the state file, and has a connection of its own."""
    async with client(emulator, state) as gpu:
        yield gpu


async def test_rental_is_extended_by_its_own_process(
    gpu: AsyncRentGPU, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "netmind_rentgpu")
    async with gpu.rent(image=IMAGE, ttl=timedelta(minutes=30)) as rental:
        before, most = rental.expires_at, rental.max_cost
        record = await rental.extend(ttl=HOUR)
        assert before is not None
        assert most is not None
        assert rental.expires_at == record.expires_at
        assert record.expires_at is not None
        assert record.expires_at > before + timedelta(minutes=29)
        assert rental.max_cost == record.max_cost
        assert (rental.max_cost or 0) > most * Decimal("1.9")
        assert rental._expiry._record == record
        assert (await gpu.rentals.get(rental.name)).expires_at == record.expires_at
        until_moment = record.expires_at + timedelta(minutes=10)
        assert (await rental.extend(until=until_moment)).expires_at == until_moment
        for tracked in rental._provisioner._attempts.values():
            assert tracked.attempt.record.expires_at == until_moment
    assert any(f"{rental.name}: extended until " in record.getMessage() for record in caplog.records)
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


async def test_rental_extended_by_another_process_lives_past_its_first_deadline(
    gpu: AsyncRentGPU, another: AsyncRentGPU, emulator: Emulator
) -> None:
    async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=1.5)) as rental:
        first = rental.expires_at
        moved = await another.rentals.extend(rental.name, ttl=HOUR)
        await until(lambda: rental.expires_at != first)  # the timer has rung, and has read the file
        assert rental.expires_at == moved.expires_at
        assert (await rental.run("true")).ok
    emulator.assert_nothing_rented()


async def test_budget_that_another_process_raises_ends_the_rental_by_the_new_total(
    gpu: AsyncRentGPU, another: AsyncRentGPU, emulator: Emulator
) -> None:
    price = (await gpu.offers())[0].hourly_price
    assert price is not None
    budget = price / 3600 * 2
    with pytest.raises(BudgetExceededError, match=r"the budget of .* is spent"):
        async with gpu.rent(image=IMAGE, budget=budget) as rental:
            assert rental._state.had.record.ends_by_budget
            assert rental.max_cost == pytest.approx(budget, abs=Decimal("0.000001"))
            record = await another.rentals.extend(rental.name, budget=budget * 100)
            assert record.budget == budget * 100
            await until(lambda: rental.expires_at == record.expires_at)
            expire(rental)
            await rental.run("sleep 60")
    emulator.assert_nothing_rented()


async def test_detached_rental_is_extended_and_not_reaped_before_its_new_deadline(
    gpu: AsyncRentGPU, another: AsyncRentGPU, emulator: Emulator
) -> None:
    async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=2)) as rental:
        record = await rental.detach()
    assert record.container_id is not None
    for wanted in (record, record.name, record.name[:8], record.container_id):
        assert (await another.rentals.extend(wanted, ttl=HOUR)).stage == "detached"
    await asyncio.sleep(0)
    (kept,) = await gpu.rentals.list()
    assert kept.expires_at is not None
    assert record.expires_at is not None
    assert kept.expires_at > record.expires_at + timedelta(minutes=50)
    assert (await gpu.rentals.reap()).deleted == ()
    async with gpu.rentals.attach(record) as attached:
        assert attached.expires_at == kept.expires_at
        assert (await attached.extend(ttl=HOUR)).owner is not None
    emulator.assert_nothing_rented()


async def test_extension_after_the_claim_is_refused(
    gpu: AsyncRentGPU, another: AsyncRentGPU, emulator: Emulator
) -> None:
    async with gpu.rent(image=IMAGE, ttl=HOUR) as rental:
        record = await rental.detach()
    await put_as_it_is(gpu, attrs.evolve(record, expires_at=record.intended_at))
    with pytest.raises(RentalExpiredError, match=r"could not extend rental .*: its time is up"):
        await another.rentals.extend(record, ttl=HOUR)
    assert await gpu._context.ledger.claim_for_reap(
        attrs.evolve(record, expires_at=record.intended_at), is_due=lambda _: True
    )
    with pytest.raises(RentalEndedError, match=r"could not extend rental .*: it is over"):
        await another.rentals.extend(record, ttl=HOUR)
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    with pytest.raises(RentalNotFoundError):
        await another.rentals.extend(record, ttl=HOUR)
    emulator.assert_nothing_rented()


async def test_extension_and_expiry_at_once_agree(gpu: AsyncRentGPU, another: AsyncRentGPU, emulator: Emulator) -> None:
    """Either the extension comes first, and the rental goes on, or the claim does, and the extension is refused."""
    for _ in range(4):
        is_extended = False
        try:
            async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=1)) as rental:
                assert rental.expires_at is not None
                await until(lambda: rental._expiry._claiming is not None)
                try:
                    await another.rentals.extend(rental.name, ttl=HOUR)
                    is_extended = True
                except (RentalEndedError, RentalNotFoundError):
                    await rental.run("sleep 60")
                if is_extended:
                    assert (await rental.run("true")).ok
        except RentalExpiredError:
            assert not is_extended
        emulator.assert_nothing_rented()
        assert await gpu.rentals.list() == []


async def test_ceiling_stands_in_the_name_and_bounds_extensions(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE, ttl=HOUR, extendable_to=3 * HOUR) as rental:
        record = await gpu.rentals.get(rental.name)
        ceiling = record.extendable_to
        in_name = expiry_in(rental.name)
        assert ceiling is not None
        assert in_name is not None
        assert timedelta(0) <= in_name - ceiling < timedelta(minutes=1)
        assert record.max_cost_at_ceiling is not None
        assert record.max_cost is not None
        assert record.max_cost_at_ceiling == pytest.approx(3 * record.max_cost, abs=Decimal("0.001"))
        with pytest.raises(
            InvalidArgumentError, match=r"the ceiling in the name of .*; rent with a later extendable_to"
        ):
            await rental.extend(ttl=4 * HOUR)
        assert (await rental.extend(until=ceiling)).expires_at == ceiling
        with pytest.raises(InvalidArgumentError, match=r"extending never shortens; rentals.release\(\) ends it now"):
            await rental.extend(ttl=HOUR)
    async with gpu.rent(image=IMAGE, ttl=HOUR) as rental:
        record = await gpu.rentals.get(rental.name)
        assert record.extendable_to == record.intended_at + 2 * HOUR
    for wrong in (timedelta(minutes=59), 3600, timedelta(0)):
        with pytest.raises(InvalidArgumentError, match="extendable_to: must be a timedelta of at least the ttl"):
            gpu.rent(image=IMAGE, ttl=HOUR, extendable_to=wrong)  # type: ignore[arg-type]  # the mistake
    emulator.assert_nothing_rented()


async def test_rental_that_is_over_or_kept_is_not_extended(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    rental = gpu.rent(image=IMAGE)
    with pytest.raises(ClientStateError, match="not entered yet"):
        await rental.extend(ttl=HOUR)
    async with rental:
        with pytest.raises(InvalidArgumentError, match="ttl: is missing"):
            await rental.extend()
        with pytest.raises(InvalidArgumentError, match="until: must be a datetime with a time zone"):
            await gpu.rentals.extend(rental.name, until=datetime.now(UTC).replace(tzinfo=None))
    with pytest.raises(ClientStateError, match="it was left"):
        await rental.extend(ttl=HOUR)
    async with gpu.rent(image=IMAGE, keep=True) as kept:
        with pytest.raises(ClientStateError, match="this rental is kept"):
            await kept.extend(ttl=HOUR)
        assert (kept.max_cost, kept.expires_at) == (None, None)
    await gpu.containers.delete(kept.container.id)
    emulator.assert_nothing_rented()


async def test_timer_runs_again_if_the_rental_is_extended_while_its_claim_waits(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, waiting, go_on = Ledger.claim_expired, asyncio.Event(), asyncio.Event()

    async def wait_and_claim(self: Ledger, *arguments: Any) -> Any:
        waiting.set()
        await go_on.wait()
        return await claim(self, *arguments)

    with pytest.raises(RentalExpiredError):
        async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=1)) as rental:
            with monkeypatch.context() as patch:
                patch.setattr(Ledger, "claim_expired", wait_and_claim)
                await waiting.wait()
                # As if the extension had been written just before the claim's transaction.
                record = await gpu.rentals.get(rental.name)
                moved = attrs.evolve(record, expires_at=record.present(gpu._context.clock()) + timedelta(seconds=1))
                await put_as_it_is(gpu, moved)
                rental._expiry.move(moved)
                await until(lambda: moved.has_expired(gpu._context.clock()))
                rental._expiry._ring()
                go_on.set()
            await rental.run("sleep 60")
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("fault", ["cancelled", "broken", "hanging"])
async def test_rental_ends_in_time_whatever_happens_to_its_claim(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    set_limits(gpu, claim=0.3)

    async def fail(*_: Any) -> None:
        if fault == "broken":
            raise ValueError("an unreadable row")
        if fault == "cancelled":
            raise asyncio.CancelledError
        await asyncio.sleep(60)

    monkeypatch.setattr(Ledger, "claim_expired", fail)
    with pytest.raises(RentalExpiredError):
        async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=1)) as rental:
            await rental.run("sleep 60")
    emulator.assert_nothing_rented()


async def test_extended_rental_goes_on_although_the_file_cannot_be_written_at_its_first_deadline(
    gpu: AsyncRentGPU, another: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise StateFileError("it is locked")

    async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=1.5)) as rental:
        moved = await another.rentals.extend(rental.name, ttl=HOUR)
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "claim_expired", fail)
            await until(lambda: rental.expires_at == moved.expires_at)
        assert (await rental.run("true")).ok
    emulator.assert_nothing_rented()


async def test_rental_detached_just_before_its_claim_stays_detached(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    detach, detached = Ledger.detach, asyncio.Event()

    async def detach_and_ring(self: Ledger, record: RentalRecord) -> RentalRecord:
        on_file = await detach(self, record)
        expire_in_memory(rental)
        await until(lambda: rental._expiry._claiming is not None and rental._expiry._claiming.done())
        detached.set()
        return on_file

    rental = gpu.rent(image=IMAGE, ttl=HOUR)
    async with rental:
        monkeypatch.setattr(Ledger, "detach", detach_and_ring)
        record = await rental.detach()
    assert detached.is_set()
    assert [kept.stage for kept in await gpu.rentals.list()] == ["detached"]
    assert len(emulator.running) == 1
    await gpu.rentals.release(record)
    emulator.assert_nothing_rented()


def expire_in_memory(rental: AsyncRental) -> None:
    """Let the timer of a rental ring, although the file has a later deadline."""
    timer = rental._expiry
    assert timer._record is not None
    timer._record = attrs.evolve(timer._record, expires_at=timer._record.intended_at)
    timer._ring()


async def test_moment_of_another_zone_is_kept_in_utc(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE, ttl=HOUR, extendable_to=9 * HOUR) as rental:
        assert rental.expires_at is not None
        moment = (rental.expires_at + HOUR).astimezone(timezone(9 * HOUR))
        record = await rental.extend(until=moment)
        assert record.expires_at == moment
        assert record.expires_at is not None
        assert record.expires_at.utcoffset() == timedelta(0)
        assert rental.label is None
    emulator.assert_nothing_rented()


async def test_kept_container_that_another_process_has_ended_is_not_handed_over(
    gpu: AsyncRentGPU, another: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_over = Ledger.hand_over

    async def release_and_hand_over(self: Ledger, record: RentalRecord, clocks: ClockReading) -> None:
        await another.rentals.release(record.name, force=True)
        await hand_over(self, record, clocks)

    monkeypatch.setattr(Ledger, "hand_over", release_and_hand_over)
    with pytest.raises(RentalEndedError, match="another process has ended it"):
        async with gpu.rent(image=IMAGE, keep=True):
            pytest.fail("a container was handed over")
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []
