"""Tests with an emulator of the user's own, whose fixture has the scope SCOPE, and without client fixtures."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from container_creation import create

from netmind_rentgpu import AsyncRentGPU, ConfigurationError, RentGPU
from netmind_rentgpu.emulator import Emulator


@pytest.fixture(scope=os.environ["SCOPE"])
def rentgpu_emulator() -> Iterator[Emulator]:
    with pytest.raises(ConfigurationError):
        RentGPU()
    with Emulator(boot_seconds=0) as emulator:
        yield emulator


@pytest.mark.parametrize("number", [1, 2])
def test_leaks(rentgpu_emulator: Emulator, number: int) -> None:
    async def main() -> None:
        async with AsyncRentGPU() as gpu:
            await create(gpu, f"forgotten-{number}")

    asyncio.run(main())
    assert [charge.name for charge in rentgpu_emulator.running][-1] == f"forgotten-{number}"


def test_environment_is_as_before() -> None:
    assert os.environ["NETMIND_API_KEY"] == "the-real-one"
