"""Fixtures of nested tests: an emulator that lives as long as the run, and a rental."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import fixture_plugin
import pytest

from netmind_rentgpu import AsyncRental, AsyncRentGPU
from netmind_rentgpu.emulator import Emulator


@pytest.fixture(scope="session")
def rentgpu_emulator() -> Iterator[Emulator]:
    """Serve until the end of the run, because the plugin's result of a test does not prove the deletion."""
    with Emulator(ssh=True, boot_seconds=0.05) as emulator:
        yield emulator
        emulator.assert_nothing_rented()
        print(f"<{len(emulator.charges)} rented>")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@fixture_plugin.FIXTURE
async def rental(rentgpu_emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncRental]:
    """Rent with a client of the fixture's own, so that the fixture has to delete the rental."""
    state = tmp_path_factory.mktemp("rental") / "state"
    ttl = timedelta(seconds=float(os.environ["RENTAL_TTL"]))
    gpu = AsyncRentGPU(rentgpu_emulator.token, base_url=rentgpu_emulator.url, state=state)
    async with gpu.rent(gpu_name="RTX 4090", image="PyTorch 2.4", ttl=ttl) as rental:
        yield rental
    assert await gpu.rentals.list() == []
    await gpu.close()
