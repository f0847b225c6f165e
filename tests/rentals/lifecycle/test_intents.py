"""Intents without a container: those of owners that may live, those that grew old, and rentals that are still started."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import attrs
import pytest
from lifecycle import create_again, set_clock
from rented import IMAGE, client

from netmind_rentgpu import AsyncRentGPU, ClientStateError, RentalInUseError, RentalRecord
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.names import new_name
from netmind_rentgpu.rentals.ledger.process_identity import this_process
from netmind_rentgpu.rentals.ledger.store import Ledger

ELSEWHERE = attrs.evolve(this_process(), machine="another", boot="another")
HOUR = timedelta(hours=1)


async def put_intent(gpu: AsyncRentGPU, **fields: object) -> RentalRecord:
    """Record an expired intent of a process that may live on another machine."""
    (offer, *_) = await gpu.offers()
    now = gpu._context.clock().wall
    intent = RentalRecord(
        name=new_name(now - HOUR),
        stage="intended",
        node_name=offer.machine.node_name,
        gpus=1,
        hourly_price=offer.hourly_price,
        intended_at=now - 2 * HOUR,
        expires_at=now - HOUR,
        certain_at=now - HOUR,
        owner=ELSEWHERE,
    )
    record = attrs.evolve(intent, **fields)
    await gpu._context.ledger.insert(record)
    return record


async def test_intent_of_an_owner_that_may_live_outlives_every_reap(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    record = await put_intent(gpu)
    for _ in range(2):
        report = await gpu.rentals.reap(wait=True)
        assert (report.deleted, report.gone, report.failed) == ((), (), ())
    assert await gpu.rentals.list() == [record]
    # But a container that it has created is deleted, because the time is up.
    await gpu.auths.create("a-password")
    container = await create_again(gpu, record.name, record.node_name)
    assert (await gpu.rentals.reap(wait=True)).deleted == (record.name,)
    assert container.id not in emulator.running
    assert await gpu.rentals.list() == [record]
    (past,) = await gpu.rentals.history()
    assert (past.name, past.cause) == (record.name, "expired")
    # It stays, although nothing else shows any longer that there was a container.
    await gpu.rentals.release(record, force=True)
    assert await gpu.rentals.history() == [past]
    assert (await gpu.rentals.spent()).lines[0].spent == past.spent


async def test_intent_of_a_dead_owner_is_closed(gpu: AsyncRentGPU) -> None:
    record = await put_intent(gpu, owner=attrs.evolve(this_process(), started="before"))
    assert (await gpu.rentals.reap()).gone == (record.name,)
    assert await gpu.rentals.list() == []


async def test_intent_of_an_owner_that_may_live_is_released_by_force_once_nothing_can_turn_up(
    gpu: AsyncRentGPU,
) -> None:
    record = await put_intent(gpu)
    with pytest.raises(RentalInUseError, match=r"may live on another machine.*add force=True after"):
        await gpu.rentals.release(record)
    assert await gpu.rentals.list() == [record]
    await gpu.rentals.release(record, force=True)
    assert await gpu.rentals.list() == []
    doubtful = await put_intent(gpu, certain_at=gpu._context.clock().wall + HOUR)
    with pytest.raises(RentalInUseError, match="add force=True after"):
        await gpu.rentals.release(doubtful, force=True)
    assert await gpu.rentals.list() == [doubtful]


async def test_create_is_not_sent_for_an_intent_that_grew_old(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert, intents = Ledger.insert, list[str]()

    async def insert_and_stop(self: Ledger, record: RentalRecord, clocks: ClockReading) -> None:
        await insert(self, record, clocks)
        intents.append(record.name)
        if len(intents) < 3:  # the process is stopped for a while, or the machine sleeps
            set_clock(gpu, timedelta(seconds=31), boot=f"boot {len(intents)}")

    monkeypatch.setattr(Ledger, "insert", insert_and_stop)
    async with gpu.rent(image=IMAGE) as rental:
        assert rental.name == intents[-1]
        assert [record.name for record in await gpu.rentals.list()] == [rental.name]
    assert len(intents) == 3
    assert len(emulator.requests.of("create_container")) == 1
    assert [past.name for past in await gpu.rentals.history()] == [rental.name]


async def test_rental_that_is_still_started_is_not_extended(gpu: AsyncRentGPU, emulator: Emulator, state: Path) -> None:
    emulator.faults.add(Fault("never reachable"))
    rental = gpu.rent(image=IMAGE)
    async with client(emulator, state) as other:
        entering = asyncio.create_task(rental.open())
        while not (records := await other.rentals.list()) or records[0].container_id is None:
            await asyncio.sleep(0.01)
        with pytest.raises(RentalInUseError, match="it is still being started; extend it once it is ready"):
            await other.rentals.extend(records[0], ttl=30 * HOUR)
        with pytest.raises(ClientStateError, match="still being started; extend it once it is entered"):
            await rental.extend(ttl=30 * HOUR)
        entering.cancel()
        await asyncio.wait({entering})
    emulator.assert_nothing_rented()
