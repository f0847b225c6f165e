"""Cancellation of tasks that enter or leave a rental."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from lifecycle import UNCERTAIN, end_uncertainty_on_record, refuse_deletes
from rented import IMAGE, PROFILE, cancel_twice, client
from until import until

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.rentals.ledger.store import Ledger


async def rent_and_leave(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE):
        pass


async def test_timeout_around_a_rental_stays_a_timeout(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as timeout, gpu.rent(image=IMAGE):
            timeout.reschedule(0)
            await asyncio.Event().wait()
    with anyio.CancelScope() as scope:
        async with gpu.rent(image=IMAGE):
            scope.deadline = 0
            await asyncio.Event().wait()
    assert scope.cancelled_caught
    assert len(emulator.charges) == 2
    emulator.assert_nothing_rented()


async def test_entry_cancelled_once_waits_for_the_search_and_the_deletion(emulator: Emulator, state: Path) -> None:
    profile = attrs.evolve(UNCERTAIN, list_lag=timedelta(seconds=1))
    async with client(emulator, state, profile) as gpu:
        emulator.faults.add(Fault("late commit", seconds=0.5))
        entering = asyncio.create_task(gpu.rent(image=IMAGE).__aenter__())
        await until(lambda: bool(emulator.requests.of("list_containers")))
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert len(emulator.charges) == 1
        emulator.assert_nothing_rented()
        # The service may act on the create once more until the create lag is over.
        (record,) = await gpu.rentals.list()
        assert (record.stage, record.container_id, record.owner) == ("abandoned", None, None)
        await end_uncertainty_on_record(gpu)
        assert (await gpu.rentals.reap()).clean
        assert await gpu.rentals.list() == []


async def test_entry_cancelled_twice_gives_up_a_search_that_hangs(emulator: Emulator, state: Path) -> None:
    emulator.faults.add(Fault("drop", call="create_container", when="after"))
    emulator.faults.add(Fault("hang", call="list_containers", times="all"))
    async with AsyncRentGPU(
        emulator.token, base_url=emulator.url, state=state, profile=PROFILE, timeout=300, retries=0
    ) as gpu:
        entering = asyncio.create_task(gpu.rent(image=IMAGE).__aenter__())
        await until(lambda: bool(emulator.requests.of("list_containers")))
        await cancel_twice(entering)
        async with asyncio.timeout(20):
            with pytest.raises(asyncio.CancelledError):
                await entering
        emulator.faults.clear()
        assert (await gpu.rentals.reap(wait=True)).clean
    emulator.assert_nothing_rented()


async def test_entry_cancelled_twice_does_not_wait_for_a_create_that_hangs(emulator: Emulator, state: Path) -> None:
    async with AsyncRentGPU(
        emulator.token, base_url=emulator.url, state=state, profile=PROFILE, timeout=300, retries=0
    ) as gpu:
        emulator.faults.add(Fault("hang", call="create_container"))
        entering = asyncio.create_task(gpu.rent(image=IMAGE).__aenter__())
        await until(lambda: bool(emulator.requests.of("create_container")))
        await cancel_twice(entering)
        async with asyncio.timeout(20):
            with pytest.raises(asyncio.CancelledError):
                await entering
        assert len(await gpu.rentals.list()) == 1


@pytest.mark.parametrize("by_timeout", [False, True])
async def test_leaving_cancelled_once_waits_for_a_service_that_recovers(
    gpu: AsyncRentGPU, emulator: Emulator, by_timeout: bool
) -> None:
    # Each attempt to delete is a call, which is retried itself.
    refuse_deletes(emulator, 10)
    leaving = asyncio.create_task(rent_and_leave(gpu))
    await until(lambda: bool(emulator.requests.of("delete_container")))
    if by_timeout:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await leaving
    else:
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


@pytest.mark.parametrize("body", [False, True], ids=["twice while leaving", "in the block, and while leaving"])
async def test_leaving_cancelled_twice_keeps_the_container_on_record(
    gpu: AsyncRentGPU, emulator: Emulator, body: bool
) -> None:
    refuse_deletes(emulator, "all")
    entered = asyncio.Event()

    async def rent() -> None:
        async with gpu.rent(image=IMAGE):
            entered.set()
            if body:
                await asyncio.Event().wait()

    renting = asyncio.create_task(rent())
    await entered.wait()
    if body:
        renting.cancel()
    await until(lambda: bool(emulator.requests.of("delete_container")))
    if body:
        renting.cancel()
    else:
        await cancel_twice(renting)
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await renting
    assert "could not be deleted" in cancelled.value.__notes__[0]
    emulator.faults.clear()
    (record,) = await gpu.rentals.list()
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


async def test_leaving_cancelled_too_often_is_reported_and_can_be_reaped(
    gpu: AsyncRentGPU, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.faults.add(Fault("hang", call="delete_container", times="all"))
    serving = asyncio.all_tasks()
    leaving = asyncio.create_task(rent_and_leave(gpu))
    await until(lambda: bool(emulator.requests.of("delete_container")))
    # A program may cancel its remaining tasks until none is left; the tasks that serve this test are spared.
    while not leaving.done():
        for task in asyncio.all_tasks() - serving:
            if "Provisioner" in str(task) or task is leaving:
                task.cancel()
        await asyncio.sleep(0.02)
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await leaving
    assert "cancelled too often" in cancelled.value.__notes__[0]
    assert "cancelled too often" in caplog.text
    emulator.faults.clear()
    (record,) = await gpu.rentals.list()
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


async def test_entry_cancelled_while_the_record_of_a_refused_create_is_closed_is_cancelled(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.faults.add(Fault("rate limit", call="create_container", times="all"))
    close = Ledger.close

    async def cancel_and_close(self: Ledger, *arguments: Any, containers: Any = ()) -> None:
        monkeypatch.setattr(Ledger, "close", close)
        entering.cancel()
        await close(self, *arguments, containers=containers)

    monkeypatch.setattr(Ledger, "close", cancel_and_close)
    entering = asyncio.create_task(gpu.rent(image=IMAGE).__aenter__())
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert await gpu.rentals.list() == []
    emulator.assert_nothing_rented()
