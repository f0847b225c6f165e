"""Clients that rent, and do not wait long for anything."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

from netmind_rentgpu import AsyncRentGPU, Retries, ServiceProfile, Timeouts
from netmind_rentgpu.emulator import Emulator

IMAGE = "PyTorch 2.4"
PROFILE = ServiceProfile(
    list_lag=timedelta(seconds=0.2), create_lag=timedelta(seconds=0.3), delete_lag=timedelta(seconds=0.3)
)
TIMEOUTS = Timeouts(total=2, connect=1, read=0.5, slot=2)


def client(
    emulator: Emulator, state: Path, profile: ServiceProfile = PROFILE, *, token: str | None = None
) -> AsyncRentGPU:
    """Return a client of an emulator, which may be one of several that share a state file."""
    return AsyncRentGPU(
        emulator.token if token is None else token,
        base_url=emulator.url,
        state=state,
        profile=profile,
        timeout=TIMEOUTS,
        retries=Retries(base_delay=0.01, max_delay=0.05),
    )


async def cancel_twice(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and again once it has taken that in."""
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    task.cancel()
