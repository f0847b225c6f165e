"""Waiting for what happens by itself, and whether a process runs."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any


async def until(condition: Callable[[], Any | Awaitable[Any]]) -> None:
    """Wait until a condition is true; it may be asynchronous. The bound is against hanging, and measures nothing."""
    async with asyncio.timeout(120):
        while True:
            met = condition()
            if await met if inspect.isawaitable(met) else met:
                return
            await asyncio.sleep(0.005)


def until_sync(condition: Callable[[], Any]) -> None:
    """Wait, in a program without an event loop, until a condition is true."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    """Return whether a process exists and is no zombie, which waits only for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
