"""A nested test whose rental expires while the test runs."""

from __future__ import annotations

import asyncio

import fixture_plugin
import pytest

from netmind_rentgpu import AsyncRental, RentalExpiredError
from netmind_rentgpu.emulator import Emulator

pytestmark = fixture_plugin.MARKS


async def wait_deleted(emulator: Emulator) -> None:
    """Wait until nothing is rented; the bound is against hanging."""
    async with asyncio.timeout(60):
        while emulator.running:
            await asyncio.sleep(0.01)


async def test_rental_expires(rental: AsyncRental, rentgpu_emulator: Emulator) -> None:
    try:
        await wait_deleted(rentgpu_emulator)
    except asyncio.CancelledError:
        # The expiry cancels the task that entered the block, which may also be the test's.
        assert fixture_plugin.NAME != "pytest-asyncio, one loop"
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        await wait_deleted(rentgpu_emulator)
    with pytest.raises(RentalExpiredError):
        await rental.run("true")
