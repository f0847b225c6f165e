"""Tests that share one emulator: ids begin again after a reset, and a late create is done in another test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from container_creation import create

from netmind_rentgpu import APIConnectionError, AsyncRentGPU
from netmind_rentgpu.emulator import Clock, Emulator, Fault


@pytest.fixture(scope="session")
def rentgpu_emulator() -> Iterator[Emulator]:
    with Emulator(boot_seconds=0, clock=Clock(scale=0)) as emulator:
        yield emulator


async def rent(name: str) -> None:
    async with AsyncRentGPU() as gpu:
        await create(gpu, name)


@pytest.mark.rentgpu_may_leave_rented
def test_1_leaves_a_container(rentgpu_emulator: Emulator) -> None:
    asyncio.run(rent("left"))


def test_2_leaks_after_a_reset(rentgpu_emulator: Emulator) -> None:
    rentgpu_emulator.reset()
    asyncio.run(rent("forgotten"))


@pytest.mark.rentgpu_may_leave_rented
def test_3_leaves_a_late_create(rentgpu_emulator: Emulator) -> None:
    rentgpu_emulator.faults.add(Fault("late commit", seconds=60))
    with pytest.raises(APIConnectionError):
        asyncio.run(rent("coming"))


def test_4_does_nothing(rentgpu_emulator: Emulator) -> None:
    assert [create.name for create in rentgpu_emulator.pending_creates] == ["coming"]


def test_5_waits(rentgpu_emulator: Emulator) -> None:
    rentgpu_emulator.clock.advance(60)
    assert [charge.name for charge in rentgpu_emulator.running] == ["forgotten", "coming"]
