"""An emulator whose containers can be logged into at once, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import canaries
import pytest
from rented import client
from renters import Service, renting

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.emulator import Emulator


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "state.sqlite3"


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(seed=7, boot_seconds=0.02, token=canaries.TOKEN, ssh=True) as emulator:
        yield emulator


@pytest.fixture
async def gpu(emulator: Emulator, state: Path) -> AsyncIterator[AsyncRentGPU]:
    async with client(emulator, state) as gpu:
        yield gpu


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """Serve machines to programs in processes of their own."""
    async with renting(tmp_path) as service:
        yield service
