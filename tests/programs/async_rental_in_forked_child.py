"""Use, detach, enter, close and leave a rental in a forked child; then print how many rentals are left in the parent."""

from __future__ import annotations

import asyncio
import os
import threading

import preamble
from renter import rented

from netmind_rentgpu import AsyncRental, AsyncRentGPU, ClientStateError

preamble.install()
gpu = AsyncRentGPU()


async def use(rental: AsyncRental) -> None:
    """Print which uses of the parent's rental are refused, and end it as far as a child may."""
    for call in (rental.run("true"), rental.detach(), rental.__aenter__()):
        try:
            await call
        except ClientStateError:
            print("refused", flush=True)
    await rental.close()
    await rental.__aexit__(None, None, None)


async def main() -> None:
    """Rent, and fork within the block."""
    async with gpu.rent(image="PyTorch 2.4") as rental:
        if (child := os.fork()) == 0:
            thread = threading.Thread(target=lambda: asyncio.run(use(rental)))
            thread.start()
            thread.join()
            os._exit(0)
        os.waitpid(child, 0)
        print(len(rented()))


asyncio.run(main())
