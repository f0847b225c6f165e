"""Waiting for what happens by itself, and a look at processes that run."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

# Seconds. A short wait is looked at often, and a long one seldom, because each look takes a part of the machine.
_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.005, 0.05, 1.1


async def until(condition: Callable[[], Any | Awaitable[Any]]) -> None:
    """Wait until a condition is true; it may be asynchronous. The bound is against hanging, and measures nothing."""
    pause = _FIRST_PAUSE
    async with asyncio.timeout(120):
        while True:
            met = condition()
            if await met if inspect.isawaitable(met) else met:
                return
            await asyncio.sleep(pause)
            pause = min(pause * _GROWTH, _LONGEST_PAUSE)


def until_sync(condition: Callable[[], Any]) -> None:
    """Wait, in a program without an event loop, until a condition is true."""
    deadline = time.monotonic() + 120
    pause = _FIRST_PAUSE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(pause)
        pause = min(pause * _GROWTH, _LONGEST_PAUSE)


def is_running(pid: int) -> bool:
    """Return whether a process exists and is no zombie, which waits only for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_line(pid: int) -> str:
    """Return the command line of a process, with spaces between its words; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def command_lines() -> list[str]:
    """Return the command lines of all processes of this machine."""
    found = [command_line(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [line for line in found if line]
