"""A module of which a worker process of multiprocessing imports the function to run."""

from __future__ import annotations

import asyncio

from netmind_rentgpu import AsyncRentGPU, RentGPU

kept: list[object] = []


async def rent_asynchronously() -> None:
    """Enter a rental and never leave it."""
    gpu = AsyncRentGPU()
    kept.append(gpu)
    await gpu.rent(image="PyTorch 2.4").__aenter__()


def rent(synchronously: bool) -> None:
    """Enter a rental with either client, and never leave it."""
    if synchronously:
        gpu = RentGPU()
        rental = gpu.rent(image="PyTorch 2.4")
        kept.append((gpu, rental))
        rental.__enter__()
    else:
        asyncio.run(rent_asynchronously())
