"""Tests with an emulator of the user's own, whose fixture has the scope SCOPE, and with client fixtures."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from container_creation import create

from netmind_rentgpu import AsyncRentGPU, Container, RentGPU
from netmind_rentgpu.emulator import Emulator

SCOPE = os.environ["SCOPE"]


@pytest.fixture(scope=SCOPE)
def rentgpu_emulator() -> Iterator[Emulator]:
    with Emulator(boot_seconds=0) as emulator:
        asyncio.run(create_with(emulator, "from-before"))
        yield emulator


async def create_with(emulator: Emulator, name: str) -> Container:
    async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
        return await create(gpu, name)


def test_leaks(rentgpu: RentGPU, rentgpu_emulator: Emulator) -> None:
    asyncio.run(create_with(rentgpu_emulator, "forgotten"))


def test_leaks_nothing(rentgpu: RentGPU, rentgpu_emulator: Emulator) -> None:
    assert len(rentgpu_emulator.running) == (1 if SCOPE == "function" else 2)
    assert os.environ["NETMIND_BASE_URL"] == rentgpu_emulator.url
    assert "NETMIND_RENTGPU_STATE" in os.environ
    with RentGPU() as own:
        assert own.containers.list().first_page().items == rentgpu.containers.list().first_page().items
