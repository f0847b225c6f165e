"""Waits on an account in memory, and the requests that their poll rounds sent."""

from __future__ import annotations

import asyncio
from typing import Any

from virtual import Account

from netmind_rentgpu.conditions import status_in
from netmind_rentgpu.models import Container

running = status_in(1)


def asked(account: Account) -> list[str]:
    """Return the requests in short: L for a page of the list, the id for a get of a container."""
    return [path.rpartition("/")[2] or "L" for path in account.asked]


def start_waits(account: Account, *ids: int, timeout: float = 1000) -> list[asyncio.Task[Container]]:
    """Start a wait for each of some containers, all on one client."""
    containers = account.containers()
    return [asyncio.create_task(containers.wait(container_id, until=running, timeout=timeout)) for container_id in ids]


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
