"""Leaving a rental: its container is deleted for certain, or stays on record."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from lifecycle import set_limits
from rented import IMAGE, PROFILE, client
from until import until

from netmind_rentgpu import AsyncRental, AsyncRentGPU, ClientStateError, ReleaseError, RentalEndedError
from netmind_rentgpu.emulator import Clock, Emulator, Fault, World
from netmind_rentgpu.rentals.lifecycle.cleanup import Cleanup


async def test_container_that_cannot_be_deleted_is_reported_and_stays_on_record(
    gpu: AsyncRentGPU, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    set_limits(gpu, deletion=0.5)
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
    logged = [line for line in caplog.records if line.levelno == logging.ERROR]
    assert len(logged) == 2
    assert f"{rental.hourly_price:f}" in logged[0].getMessage()
    assert rental.name in logged[0].getMessage()
    assert str(rental.container.id) in logged[0].getMessage()
    assert {record.stage for record in await gpu.rentals.list()} == {"abandoned"}
    emulator.faults.clear()
    assert set((await gpu.rentals.reap()).deleted) == {rental.name, second.name}
    emulator.assert_nothing_rented()


async def test_unforeseen_error_while_leaving_is_raised_and_left_to_the_reaper(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise ZeroDivisionError("an unforeseen error")

    with pytest.raises(ReleaseError, match="unforeseen error") as raised:
        async with gpu.rent(image=IMAGE) as rental:
            monkeypatch.setattr(Cleanup, "delete", fail)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    monkeypatch.undo()
    assert (await gpu.rentals.reap(wait=True)).deleted == (rental.name,)
    emulator.assert_nothing_rented()


async def test_wrong_404_after_a_502_does_not_end_the_deletion(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="delete_container", status=502))
    emulator.faults.add(Fault("status", call="delete_container", status=404, nth=2))
    async with gpu.rent(image=IMAGE):
        pass
    assert len(emulator.requests.of("delete_container")) == 3
    emulator.assert_nothing_rented()


async def test_two_404s_do_not_end_the_deletion_of_a_listed_container(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE):
        emulator.faults.add(Fault("status", call="delete_container", status=404))
        emulator.faults.add(Fault("status", call="get_container", status=404))
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


@pytest.mark.parametrize("first", [None, 502], ids=["all 404", "the first 502"])
async def test_404s_do_not_end_the_deletion_of_a_container_not_listed_yet(state: Path, first: int | None) -> None:
    # The emulator's list lag of 20 s passes in 0.5 s of the test.
    world = World(list_lag="20 s")
    async with (
        Emulator(seed=7, boot_seconds=36_000, world=world, clock=Clock(scale=40)) as emulator,
        client(emulator, state, attrs.evolve(PROFILE, list_lag=timedelta(seconds=0.5))) as gpu,
    ):
        # It is cancelled while the container starts.
        entering = asyncio.create_task(gpu.rent(image=IMAGE).__aenter__())
        await until(lambda: bool(emulator.charges))
        # All answers are those of a replica that has not heard of the container yet. While the list may lag, a 404 to the
        # deletion is not believed; after that, a GET and the list are asked, and the GET is wrong, too.
        if first is not None:
            emulator.faults.add(Fault("status", call="delete_container", status=first))
        emulator.faults.add(Fault("status", call="delete_container", status=404, times=3))
        emulator.faults.add(Fault("status", call="get_container", status=404))
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        emulator.assert_nothing_rented()
        assert await gpu.rentals.list() == []


async def test_container_deleted_elsewhere_ends_the_rental(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        await gpu.containers.delete(rental.container.id)
        with pytest.raises(RentalEndedError, match="is gone"):
            await rental.run("true")
        with pytest.raises(RentalEndedError, match="is gone"):
            _ = rental.shell
    assert await gpu.rentals.list() == []


async def test_rental_whose_body_deleted_the_container_is_left_at_once(emulator: Emulator, state: Path) -> None:
    async with client(emulator, state, attrs.evolve(PROFILE, list_lag=timedelta(hours=1))) as gpu:
        async with asyncio.timeout(20):
            async with gpu.rent(image=IMAGE) as rental:
                await gpu.containers.delete(rental.container.id)
        assert await gpu.rentals.list() == []
    emulator.assert_nothing_rented()


async def start_command(rental: AsyncRental) -> asyncio.Task[Any]:
    """Start a command that runs until it is ended, and wait until it runs."""
    running = asyncio.create_task(rental.run("touch begun; exec sleep 1000"))

    async def has_begun() -> bool:
        return (await rental.run("test -e begun")).ok

    await until(has_begun)
    return running


async def test_command_running_when_the_rental_is_left_fails_with_that_reason(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        running = await start_command(rental)
    for use in (running, rental.run("true")):
        with pytest.raises(ClientStateError, match="it was left"):
            await use


async def test_command_running_when_the_rental_is_closed_fails_with_that_reason(gpu: AsyncRentGPU) -> None:
    rental = await gpu.rent(image=IMAGE).__aenter__()
    running = await start_command(rental)
    await rental.close()
    for use in (running, rental.run("true")):
        with pytest.raises(ClientStateError, match="it was closed"):
            await use
