"""Run a notebook whose cells use both clients, in a kernel as Jupyter starts it, and print the cells' outputs."""

from __future__ import annotations

import preamble
from notebooks import run_cells

preamble.install()
CELLS = [
    "import asyncio\nfrom netmind_rentgpu import AsyncRentGPU, NotFoundError, RentGPU\ngpu = RentGPU()",
    "asyncio.get_running_loop().is_running(), len(gpu.machines.list())",
    "[image.name for image in gpu.images.list(page_size=2)][0]",
    "try:\n    gpu.containers.get(1)\nexcept NotFoundError as error:\n    print(error.status)",
    "async with AsyncRentGPU() as other:\n    print(len(await other.machines.list()), len(gpu.machines.list()))",
    "gpu.close()",
]
for cell in run_cells(CELLS).cells:
    for output in cell.outputs:
        print(output.get("text", output.get("data", {}).get("text/plain")).strip())
