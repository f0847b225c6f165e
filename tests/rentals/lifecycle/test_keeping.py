"""Kept rentals, whose container outlives its body and belongs to the user."""

from __future__ import annotations

import asyncio
import gc
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from lifecycle import create_again, most_gpus_first, refuse_deletes, set_limits
from rented import IMAGE, PROFILE, client

from netmind_rentgpu import APIConnectionError, AsyncRentGPU, ClientStateError, Container, RentalRecord, RentGPUError
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.container_index import ContainerIndex, ListedContainers
from netmind_rentgpu.rentals.ledger.process_identity import this_process
from netmind_rentgpu.rentals.ledger.store import Ledger
from netmind_rentgpu.rentals.lifecycle.cleanup import Cleanup
from netmind_rentgpu.requests import NewContainer


async def test_kept_rental_outlives_its_body_and_is_not_reaped(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE, keep=True) as rental:
        assert rental.expires_at is None
        assert await gpu.rentals.list() == []
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


@pytest.mark.parametrize("deletes_fail", [False, True])
async def test_kept_rental_has_no_duplicate_although_its_create_was_answered(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, deletes_fail: bool
) -> None:
    create = gpu.containers._create

    async def create_two(new: NewContainer, **options: Any) -> Container:
        container = await create(new, **options)
        await create(new, **options)
        if deletes_fail:
            refuse_deletes(emulator, "all")
        return container

    monkeypatch.setattr(gpu.containers, "_create", create_two)
    set_limits(gpu, deletion=0.5)
    rental = gpu.rent(image=IMAGE, keep=True, key=most_gpus_first)
    if deletes_fail:
        with pytest.raises(RentGPUError, match="503"):
            await rental.__aenter__()
        emulator.faults.clear()
        assert (await gpu.rentals.reap(wait=True)).clean
        emulator.assert_nothing_rented()
    else:
        async with rental:
            pass
        assert [charge.container_id for charge in emulator.running] == [rental.container.id]
    assert await gpu.rentals.list() == []


async def test_kept_rental_starts_once_its_container_is_certainly_the_only_one(
    emulator: Emulator, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client(emulator, state, attrs.evolve(PROFILE, create_lag=timedelta(seconds=2))) as gpu:
        ready = gpu.containers.wait_ready

        async def wait_and_create_again(container_id: int, **keywords: Any) -> Container:
            container = await ready(container_id, **keywords)
            await create_again(gpu, container.name, emulator.charges[0].node_name)
            return container

        monkeypatch.setattr(gpu.containers, "wait_ready", wait_and_create_again)
        emulator.faults.add(Fault("drop", call="create_container", when="after"))
        async with gpu.rent(image=IMAGE, keep=True, key=most_gpus_first) as rental:
            assert [charge.container_id for charge in emulator.running] == [rental.container.id]
        assert await gpu.rentals.list() == []
        assert [charge.container_id for charge in emulator.running] == [rental.container.id]
        await gpu.containers.delete(rental.container.id)


@pytest.mark.parametrize("fails", [False, True])
async def test_kept_rental_cancelled_during_its_final_walk_is_deleted(
    gpu: AsyncRentGPU,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails: bool,
) -> None:
    read = ContainerIndex.read

    async def cancel_and_read(self: ContainerIndex) -> ListedContainers:
        monkeypatch.undo()
        entering.cancel()
        await asyncio.sleep(0.05)
        if fails:
            raise APIConnectionError("it broke", maybe_processed=True)
        return await read(self)

    monkeypatch.setattr(ContainerIndex, "read", cancel_and_read)
    entering = asyncio.create_task(gpu.rent(image=IMAGE, keep=True).__aenter__())
    with pytest.raises(asyncio.CancelledError):
        await entering
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_kept_rental_cancelled_at_its_handover_is_on_record_until_deleted(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Ledger.hand_over

    async def cancel_and_close(self: Ledger, record: RentalRecord, clocks: ClockReading) -> None:
        monkeypatch.setattr(Ledger, "hand_over", close)
        entering.cancel()
        await close(self, record, clocks)

    delete, on_record = Cleanup.delete, list[RentalRecord]()

    async def read_records_and_delete(self: Cleanup, *arguments: Any) -> Any:
        on_record.extend(await gpu.rentals.list())
        return await delete(self, *arguments)

    monkeypatch.setattr(Ledger, "hand_over", cancel_and_close)
    monkeypatch.setattr(Cleanup, "delete", read_records_and_delete)
    entering = asyncio.create_task(gpu.rent(image=IMAGE, keep=True).__aenter__())
    with pytest.raises(asyncio.CancelledError):
        await entering
    # The record is as a process leaves it that is killed during the deletion.
    (record,) = on_record
    assert (record.container_id, record.owner) == (emulator.charges[0].container_id, this_process())
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


async def test_kept_rental_that_cannot_be_deleted_after_a_cancelled_handover_is_on_record(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Ledger.hand_over

    async def cancel_and_close(self: Ledger, record: RentalRecord, clocks: ClockReading) -> None:
        entering.cancel()
        await close(self, record, clocks)

    monkeypatch.setattr(Ledger, "hand_over", cancel_and_close)
    set_limits(gpu, deletion=0.1)
    refuse_deletes(emulator, "all")
    entering = asyncio.create_task(gpu.rent(image=IMAGE, keep=True).__aenter__())
    with pytest.raises(asyncio.CancelledError) as raised:
        await entering
    monkeypatch.undo()
    assert "it is on record" in raised.value.__notes__[0]
    emulator.faults.clear()
    (record,) = await gpu.rentals.list()
    assert record.name.startswith("kept-")
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()
