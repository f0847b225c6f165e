"""Memory of rentals that have ended: freed at once, because a collection of cycles would stop all rentals of a process."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import canaries
import pytest
from rented import IMAGE, client
from until import until

from netmind_rentgpu import AsyncRental, AsyncRentGPU
from netmind_rentgpu.emulator import Emulator, Fault

Enter: TypeAlias = Callable[[AsyncRental], Awaitable[None]]


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
async def slow(state: Path) -> AsyncIterator[AsyncRentGPU]:
    async with (
        Emulator(seed=7, boot_seconds=3600, ssh=True, token=canaries.TOKEN) as emulator,
        client(emulator, state) as gpu,
    ):
        yield gpu
        emulator.assert_nothing_rented()


async def check_freed(
    rental: AsyncRental, use: Enter, *, cancel: bool = False, cancel_once: Callable[[], bool] | None = None
) -> None:
    """Use a rental in a task, until the task ends or is cancelled; check that the rental is freed then."""
    reference, entered = weakref.ref(rental), asyncio.Event()

    async def run(rental: AsyncRental) -> None:
        entered.set()
        await use(rental)

    task = asyncio.create_task(run(rental))
    del rental
    await entered.wait()
    if cancel:
        # At any point of its start, unless a certain one is meant.
        await (asyncio.sleep(0.2) if cancel_once is None else until(cancel_once))
        task.cancel()
    await asyncio.wait({task})
    assert task.cancelled() == cancel
    if not cancel:
        task.result()
    del task
    # A connection that is being closed may still refer to it for a moment.
    await until(lambda: reference() is None)


async def enter(rental: AsyncRental) -> None:
    async with rental:
        await rental.run("true")


async def stay(rental: AsyncRental) -> None:
    async with rental:
        await asyncio.Event().wait()


@pytest.mark.usefixtures("no_collector")
async def test_left_rental_is_freed(gpu: AsyncRentGPU) -> None:
    await check_freed(gpu.rent(image=IMAGE), enter)


@pytest.mark.usefixtures("no_collector")
async def test_rental_with_a_cancelled_user_is_freed(gpu: AsyncRentGPU) -> None:
    await check_freed(gpu.rent(image=IMAGE), stay, cancel=True)


@pytest.mark.usefixtures("no_collector")
async def test_rental_given_up_while_starting_is_freed(slow: AsyncRentGPU) -> None:
    await check_freed(slow.rent(image=1), stay, cancel=True)


@pytest.mark.usefixtures("no_collector")
async def test_rental_given_up_while_being_created_is_freed(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("slow", call="create_container", seconds=0.5))
    await check_freed(gpu.rent(image=IMAGE), stay, cancel=True, cancel_once=lambda: not emulator.faults.unmet)
    emulator.assert_nothing_rented()
