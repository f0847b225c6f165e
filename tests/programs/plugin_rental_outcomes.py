"""Nested tests that use a rental, and that pass, fail, take too long, are cancelled, or are skipped."""

from __future__ import annotations

import asyncio

import anyio
import fixture_plugin
import pytest

from netmind_rentgpu import AsyncRental

pytestmark = fixture_plugin.MARKS


async def test_passes(rental: AsyncRental) -> None:
    assert (await rental.run("echo usable")).stdout == "usable\n"


async def test_fails(rental: AsyncRental) -> None:
    assert not await rental.run("true")


async def test_takes_too_long(rental: AsyncRental) -> None:
    async with asyncio.timeout(0.1):
        await rental.run("sleep 1000")


async def test_takes_too_long_for_anyio(rental: AsyncRental) -> None:
    with anyio.fail_after(0.1):
        await rental.run("sleep 1000")


async def test_is_cancelled(rental: AsyncRental) -> None:
    with anyio.move_on_after(0.1):
        await rental.run("sleep 1000")
    running = asyncio.create_task(rental.run("sleep 1000"))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await rental.run("echo usable")).stdout == "usable\n"


async def test_is_skipped(rental: AsyncRental) -> None:
    pytest.skip("not today")
