"""Stop an event loop while it attaches to a rental, and end without closing anything."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from netmind_rentgpu import AsyncRentGPU

# The client and its tasks stay referenced until the interpreter ends, because a collected task could release the rental.
ALIVE: list[Any] = []


async def main(url: str, token: str, state: str, name: str) -> None:
    """Attach to a rental, and stop the event loop once the record says so."""
    gpu = AsyncRentGPU(token, base_url=url, state=state)
    gpu.containers.get = lambda *_, **__: asyncio.Event().wait()  # type: ignore[assignment,method-assign]  # never answers
    ALIVE.extend([gpu, asyncio.create_task(gpu.rentals.attach(name).__aenter__())])
    while [record.stage for record in await gpu.rentals.list()] != ["ready"]:
        await asyncio.sleep(0.01)
    asyncio.get_running_loop().stop()
    await asyncio.Event().wait()


loop = asyncio.new_event_loop()
ALIVE.append(loop.create_task(main(*sys.argv[1:])))
loop.run_forever()
