"""A synchronous client, and an emulator in a thread that serves it."""

from __future__ import annotations

from collections.abc import Iterator

import canaries
import pytest

from netmind_rentgpu import RentGPU, Retries
from netmind_rentgpu.emulator import Clock, Emulator


@pytest.fixture
def sync_emulator(clock: Clock) -> Iterator[Emulator]:
    with Emulator(seed=7, boot_seconds=10, token=canaries.TOKEN, clock=clock) as emulator:
        yield emulator


@pytest.fixture
def gpu(sync_emulator: Emulator) -> Iterator[RentGPU]:
    with RentGPU(sync_emulator.token, base_url=sync_emulator.url, retries=Retries(base_delay=0, max_delay=0)) as gpu:
        yield gpu
