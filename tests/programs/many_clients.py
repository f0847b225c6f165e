"""Use many clients one after the other; print whether memory, file descriptors or threads grew.

Arguments: how a client ends, "close" or "del"; how many are used first, and how many are measured.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import tracemalloc
from pathlib import Path

import preamble

from netmind_rentgpu import RentGPU
from netmind_rentgpu.sync import portal

preamble.install()


async def running_loop() -> asyncio.AbstractEventLoop:
    """Return the loop of the loop thread."""
    return asyncio.get_running_loop()


def use(number: int) -> tuple[int, int, int]:
    """Use some clients; return the memory, descriptors and threads in use afterwards."""
    for _ in range(number):
        gpu = RentGPU()
        gpu.containers.get(1)
        if sys.argv[1] == "close":
            gpu.close()
        else:
            del gpu
    portal.call(asyncio.sleep, 0)  # all that was scheduled has run by now
    while len(asyncio.all_tasks(portal.call(running_loop))) > 1:
        portal.call(asyncio.sleep, 0)
    gc.collect()
    return tracemalloc.get_traced_memory()[0], len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


tracemalloc.start()
before = use(int(sys.argv[2]))
after = use(count := int(sys.argv[3]))
print((after[0] - before[0]) / count < 1024, after[1] - before[1], after[2] - before[2])
if (after[0] - before[0]) / count >= 1024:
    print(before, after)
