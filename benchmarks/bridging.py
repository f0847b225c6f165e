"""What it costs to call a coroutine function that does nothing from another thread, beside asyncio's own way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from benchmarks.measure import report
from netmind_rentgpu.sync import portal

LIMIT = 1.2
THEIRS = "asyncio.run_coroutine_threadsafe"


async def _nothing() -> None:
    pass


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(500):
        call()
    return (time.perf_counter() - began) / 500 * 1e6


def run(rounds: int) -> bool:
    """Measure the microseconds a call takes."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    candidates: dict[str, Callable[[], object]] = {
        THEIRS: lambda: asyncio.run_coroutine_threadsafe(_nothing(), loop).result(),
        "the client's portal": lambda: portal.call(_nothing),
    }
    try:
        found = [{name: _timed(call) for name, call in candidates.items()} for _ in range(rounds)]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    return report("A call into the event loop", found, THEIRS, "us", {"the client's portal": LIMIT})
