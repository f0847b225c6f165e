"""Rentals without a block, as in a notebook: `open` and `close`."""

from __future__ import annotations

import asyncio
import gc
from datetime import timedelta
from pathlib import Path

import pytest
from lifecycle import expire, set_limits
from rented import IMAGE, PROFILE, TIMEOUTS, client
from until import until, until_sync

from netmind_rentgpu import (
    AsyncRentGPU,
    BudgetExceededError,
    ClientStateError,
    NoMachineError,
    RentalExpiredError,
    RentGPU,
)
from netmind_rentgpu.emulator import Emulator, Fault


async def test_opened_rental_works_until_it_is_closed(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    rental = await gpu.rent(image=IMAGE).open()
    assert (await rental.run("echo here")).stdout == "here\n"
    assert [record.name for record in await gpu.rentals.list()] == [rental.name]
    await rental.close()
    await rental.close()
    emulator.assert_nothing_rented()
    with pytest.raises(ClientStateError, match="it was closed"):
        await rental.run("true")
    with pytest.raises(ClientStateError):
        await rental.open()


async def test_expiry_of_an_opened_rental_cancels_no_task(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    rental = await gpu.rent(image=IMAGE).open()
    expire(rental)
    # This task would be cancelled here.
    await until(lambda: not emulator.running)
    with pytest.raises(RentalExpiredError, match=r"the time of .* is up"):
        await rental.run("true")
    await rental.close()
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_budget_of_an_opened_rental_ends_it(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    rental = await gpu.rent(image=IMAGE, budget=0.00001, ttl=timedelta(hours=1)).open()
    await until(lambda: not emulator.running)
    with pytest.raises(BudgetExceededError):
        await rental.run("true")


async def test_time_that_is_up_while_the_rental_starts_is_raised_by_open(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("never starts"))
    with pytest.raises(RentalExpiredError):
        await gpu.rent(image=IMAGE, ttl=timedelta(seconds=0.5)).open()
    emulator.assert_nothing_rented()
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_cancelled_open_leaves_nothing_rented(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("never starts"))
    opening = asyncio.create_task(gpu.rent(image=IMAGE).open())
    await until(lambda: emulator.running)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    emulator.assert_nothing_rented()


async def test_failed_open_leaves_nothing_rented(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("stock-out", times="all"))
    with pytest.raises(NoMachineError):
        await gpu.rent(image=IMAGE, gpu_name="RTX 4090").open()
    emulator.assert_nothing_rented()


async def test_opened_rental_is_deleted_when_its_client_is_closed(emulator: Emulator, state: Path) -> None:
    async with client(emulator, state) as gpu:
        rental = await gpu.rent(image=IMAGE).open()
        assert len(emulator.running) == 1
    emulator.assert_nothing_rented()
    with pytest.raises(ClientStateError):
        await rental.run("true")


async def test_opened_rental_can_be_detached_and_attached_without_a_block(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    rental = await gpu.rent(image=IMAGE).open()
    record = await rental.detach()
    again = await gpu.rentals.attach(record).open()
    assert (await again.run("true")).ok
    await again.close()
    emulator.assert_nothing_rented()


async def test_rental_closed_while_it_is_opened_ends_the_opening(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("never starts"))
    set_limits(gpu, answer=1.0)
    rental = gpu.rent(image=IMAGE)
    opening = asyncio.create_task(rental.open())
    await until(lambda: emulator.running)
    await rental.close()
    with pytest.raises(ClientStateError, match="closed"):
        await opening
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("ending", ["close", "collect", "close the client"])
def test_opened_rental_of_a_synchronous_client_ends(state: Path, ending: str) -> None:
    with (
        Emulator(seed=7, boot_seconds=0, ssh=True) as emulator,
        RentGPU(emulator.token, base_url=emulator.url, state=state, profile=PROFILE, timeout=TIMEOUTS) as gpu,
    ):
        rental = gpu.rent(image=IMAGE).open()
        assert rental.run("echo here").stdout == "here\n"
        if ending == "close":
            rental.close()
        elif ending == "collect":
            del rental
            gc.collect()
        else:
            gpu.close()
        until_sync(lambda: not emulator.running)


def test_expiry_of_an_opened_synchronous_rental_is_raised_at_its_next_use(state: Path) -> None:
    with (
        Emulator(seed=7, boot_seconds=0, ssh=True) as emulator,
        RentGPU(emulator.token, base_url=emulator.url, state=state, profile=PROFILE, timeout=TIMEOUTS) as gpu,
    ):
        rental = gpu.rent(image=IMAGE, ttl=timedelta(seconds=2)).open()
        with pytest.raises(RentalExpiredError):
            rental.run("sleep 60")
        with pytest.raises(RentalExpiredError):
            rental.run("true")
        rental.close()
        emulator.assert_nothing_rented()
