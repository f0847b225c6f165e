"""Rentals that end by their expiry or by their budget."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from lifecycle import expire, set_clock
from rented import IMAGE
from responses import Responses
from until import until

from netmind_rentgpu import (
    AsyncRentGPU,
    BudgetExceededError,
    NoMachineError,
    RentalEndedError,
    RentalExpiredError,
    RentalRecord,
    SSHError,
    StateFileError,
)
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.rentals.ledger.store import Ledger


async def test_expired_rental_cancels_its_body_and_raises_rental_expired(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    seen: list[str] = []
    with pytest.raises(RentalExpiredError, match=r"time of rg-.* is up") as raised:
        async with gpu.rent(image=IMAGE, ttl=timedelta(hours=1)) as rental:
            expire(rental)
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
    assert await gpu.rentals.list() == []
    await asyncio.sleep(0)  # a cancellation left over would arrive here


async def test_spent_budget_ends_the_rental(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    (offer, *_) = await gpu.offers()
    assert offer.hourly_price is not None
    with pytest.raises(BudgetExceededError, match=r"budget of rg-.* is spent"):
        async with gpu.rent(image=IMAGE, budget=offer.hourly_price) as rental:
            expire(rental)
            await rental.run("sleep 300")
    emulator.assert_nothing_rented()


@pytest.mark.parametrize(("price", "raises"), [("0", False), ("-1", True), ("-1e-18", True), (-0.25, True)])
async def test_budget_never_ends_a_free_rental_and_refuses_a_negative_price(
    gpu: AsyncRentGPU, emulator: Emulator, caplog: pytest.LogCaptureFixture, price: str | float, raises: bool
) -> None:
    (machine, *_) = await gpu.machines.list()
    services = [f"{emulator.url}/v1/rentgpu/{service}/" for service in ("auths", "images", "containers")]
    with Responses(passthrough=services) as responses:
        listed = [machine.to_dict(json=True) | {"price": price}]
        responses.get(re.compile(r".*/v1/rentgpu/machines.*"), payload=listed, repeat=True)
        rental = gpu.rent(image=IMAGE, budget=0.001, ttl=timedelta(hours=1))
        if raises:
            with pytest.raises(NoMachineError, match="no price that can be read"):
                await rental.__aenter__()
            assert not emulator.requests.of("create_container")
            return
        async with rental:
            assert (rental.hourly_price, rental.spent) == (0, 0)
            assert rental.expires_at is not None
            assert rental.expires_at - (await gpu.rentals.list())[0].intended_at == timedelta(hours=1)
    assert "only its ttl ends the rental" in caplog.text


async def test_expired_rental_ends_however_its_body_reacts(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    with pytest.raises(RentalExpiredError):
        async with gpu.rent(image=IMAGE, ttl=timedelta(hours=1)) as rental:
            expire(rental)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.Event().wait()
            await until(lambda: not emulator.running)
    with pytest.raises(ZeroDivisionError) as raised:
        async with gpu.rent(image=IMAGE, ttl=timedelta(hours=1)) as rental:
            expire(rental)
            try:
                await asyncio.Event().wait()
            finally:
                raise ZeroDivisionError
    assert raised.value
    with pytest.raises(RentalExpiredError):
        # The entry has not ended by then.
        await gpu.rent(image=IMAGE, ttl=timedelta(seconds=0.001)).__aenter__()
    emulator.assert_nothing_rented()


async def test_cancellation_during_expiry_stays_a_cancellation(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async def body() -> None:
        async with gpu.rent(image=IMAGE, ttl=timedelta(hours=1)) as rental:
            expire(rental)
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


async def test_rental_entered_and_left_by_different_tasks_expires(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    rental = gpu.rent(image=IMAGE, ttl=timedelta(hours=1))
    await asyncio.create_task(rental.__aenter__())
    assert (await asyncio.create_task(rental.run("true"))).ok
    expire(rental)
    await until(lambda: not emulator.running)
    with pytest.raises(RentalExpiredError):
        await asyncio.create_task(rental.__aexit__(None, None, None))


@pytest.mark.parametrize("by", [timedelta(hours=-1), timedelta(days=-400)])
async def test_rental_ends_in_time_though_the_clock_is_set_back(
    gpu: AsyncRentGPU, emulator: Emulator, by: timedelta
) -> None:
    with pytest.raises(RentalExpiredError):
        async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=2)) as rental:
            set_clock(gpu, by)
            assert rental.spent is not None
            assert rental.spent >= 0
            await until(lambda: not emulator.running)
    emulator.assert_nothing_rented()


async def test_rental_does_not_end_early_though_the_clock_is_set_forward(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE, ttl=timedelta(hours=1)) as rental:
        set_clock(gpu, timedelta(days=400))
        rental._expiry._ring()
        assert (await rental.run("true")).ok
        assert rental.spent is not None
        assert rental.hourly_price is not None
        assert rental.spent < rental.hourly_price
        record = await rental.detach()
        assert (await gpu.rentals.reap()).deleted == ()
        async with gpu.rentals.attach(record) as attached:
            assert (await attached.run("true")).ok
    emulator.assert_nothing_rented()


async def test_detached_rental_is_reaped_in_time_though_the_clock_is_set_back(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=2)) as rental:
        record = await rental.detach()
    set_clock(gpu, timedelta(hours=-1))
    await until(lambda: record.has_expired(gpu._context.clock()))
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("shift", [timedelta(0), timedelta(hours=2)])
async def test_detached_rental_of_another_boot_expires_by_the_time_of_day(
    gpu: AsyncRentGPU, emulator: Emulator, shift: timedelta
) -> None:
    async with gpu.rent(image=IMAGE, ttl=timedelta(hours=1)) as rental:
        record = await rental.detach()
    set_clock(gpu, shift, boot="another boot")
    assert (await gpu.rentals.reap()).deleted == ((record.name,) if shift else ())
    if not shift:
        # From when it is attached on, it goes by the clock of this boot.
        async with gpu.rentals.attach(record) as attached:
            set_clock(gpu, timedelta(days=400))
            attached._expiry._ring()
            assert (await attached.run("true")).ok
    emulator.assert_nothing_rented()


async def test_spent_budget_names_limit_price_and_deletion(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    with pytest.raises(BudgetExceededError) as spent:
        async with gpu.rent(image=IMAGE, budget=Decimal("0.00003")) as rental:
            await asyncio.sleep(60)
    text = str(spent.value)
    assert f"the budget of {rental.name} is spent since 20" in text
    assert f": 0.00003 USD, at a listed {rental.hourly_price} an hour; " in text
    assert text.endswith(f"the deletion of container {rental.container.id} has begun")
    emulator.assert_nothing_rented()


async def test_deadline_is_raised_though_the_shell_under_way_loses_its_connection(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    # The task that uses the shell is not the one that entered the block, as in a synchronous program.
    rental = gpu.rent(image=IMAGE, ttl=timedelta(seconds=1))
    await asyncio.create_task(rental.__aenter__())
    with pytest.raises(SSHError, match="connection was lost") as lost:
        await rental.shell.run("sleep 60")
    with pytest.raises(RentalExpiredError) as expired:
        await rental.__aexit__(SSHError, lost.value, None)
    assert expired.value.__cause__ is lost.value
    emulator.assert_nothing_rented()


async def test_other_error_of_the_block_is_raised_though_the_time_is_up(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    rental = gpu.rent(image=IMAGE, ttl=timedelta(seconds=1))
    await asyncio.create_task(rental.__aenter__())
    await until(lambda: not emulator.running)
    failed = SSHError("no", stage="command")
    # The block goes on with its own error, because `__aexit__` returns None.
    assert await rental.__aexit__(SSHError, failed, None) is None


def move_deadline(gpu: AsyncRentGPU, name: str, to: datetime) -> None:
    """Write another deadline to a rental's row, as another process may."""
    with closing(sqlite3.connect(gpu._context.ledger.path)) as connection, connection:
        query = "UPDATE rentals SET expires_at = ? WHERE name = ?"
        assert connection.execute(query, (to.isoformat(timespec="microseconds"), name)).rowcount == 1


async def test_deadline_on_file_that_is_later_than_the_owner_believed_counts(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    # As long as a busy machine may need until the rental is ready.
    async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=8)) as rental:
        record = rental._state.had.record
        assert record.expires_at is not None
        move_deadline(gpu, rental.name, record.expires_at + timedelta(hours=1))
        await until(lambda: rental.expires_at != record.expires_at)
        assert rental._expiry._record is not None
        assert rental._expiry._record.expires_at == rental.expires_at == record.expires_at + timedelta(hours=1)
        assert rental._expiry._timer._timer is not None
        assert (await rental.run("true")).ok
        # The owner has written none of it from memory.
        (on_file,) = await gpu.rentals.list()
        assert on_file.expires_at == record.expires_at + timedelta(hours=1)
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


async def test_expiring_rental_is_claimed_before_it_is_deleted(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []
    delete = gpu.containers._delete

    async def note_and_delete(container_id: int, **keywords: Any) -> Any:
        stages.extend(record.stage for record in await gpu.rentals.list())
        return await delete(container_id, **keywords)

    monkeypatch.setattr(gpu.containers, "_delete", note_and_delete)
    with pytest.raises(RentalExpiredError):
        async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=1)) as rental:
            await rental.run("sleep 60")
    assert stages == ["abandoned"]
    assert await gpu.rentals.list() == []
    emulator.assert_nothing_rented()


async def test_rental_expires_although_its_state_file_cannot_be_used(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise StateFileError("the disk is full")

    monkeypatch.setattr(Ledger, "claim_expired", fail)
    with pytest.raises(RentalExpiredError):
        async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=1)) as rental:
            await rental.run("sleep 60")
    emulator.assert_nothing_rented()


async def test_rental_that_another_process_ended_while_it_started_is_not_handed_over(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Ledger.update

    async def close_and_update(self: Ledger, record: RentalRecord) -> None:
        if record.stage == "ready":
            await self.close(record.name, None)
        await update(self, record)

    monkeypatch.setattr(Ledger, "update", close_and_update)
    with pytest.raises(RentalEndedError, match="another process has ended it"):
        async with gpu.rent(image=IMAGE):
            pytest.fail("a rental was handed over")
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


async def test_rental_is_not_reaped_if_its_deadline_has_moved_since_its_record_was_read(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gpu.rent(image=IMAGE, ttl=timedelta(hours=1)) as rental:
        record = await rental.detach()
    assert record.expires_at is not None
    move_deadline(gpu, record.name, record.intended_at)
    ledger = gpu._context.ledger
    read_open = ledger.read_open

    async def read_and_move() -> Any:
        records = await read_open()
        move_deadline(gpu, record.name, record.intended_at + timedelta(hours=1))
        return records

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "read_open", read_and_move)
        assert (await gpu.rentals.reap()).deleted == ()
    assert [kept.stage for kept in await gpu.rentals.list()] == ["detached"]
    move_deadline(gpu, record.name, record.intended_at)
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()
