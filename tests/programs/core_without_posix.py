"""Run the core where what only POSIX has is missing, on the platform that is named: python core_without_posix.py win32."""

from __future__ import annotations

import asyncio
import importlib
import os
import pkgutil

import hidden_posix  # noqa: F401  # before all others: it hides
import preamble
from renter import HERE, WANTED, rented

import netmind_rentgpu
from netmind_rentgpu import AsyncRentGPU, ClientStateError, RentGPU
from netmind_rentgpu.cli.demo import Demo
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.rentals.ledger.process_identity import ProcessLookup, look_up_process

preamble.install()

# These need POSIX, and say so where they are asked for.
NEED_POSIX = {"netmind_rentgpu.ssh.terminal", "netmind_rentgpu.emulator.processes", "netmind_rentgpu.emulator.shells"}


def import_all() -> None:
    for found in pkgutil.walk_packages(netmind_rentgpu.__path__, "netmind_rentgpu."):
        # Dask needs what this test hides, of POSIX or of Windows.
        is_of_dask = found.name.startswith("netmind_rentgpu.dask")
        if found.name not in NEED_POSIX and not found.name.endswith("__main__") and not is_of_dask:
            importlib.import_module(found.name)


async def rent() -> None:
    async with AsyncRentGPU() as gpu, gpu.rent(**WANTED) as rental:
        (HERE / "up").write_bytes(b"\r\nline\n" * 100_000)
        await rental.shell.upload(HERE / "up", "there")
        await rental.shell.download("there", HERE / "down")
        assert (HERE / "down").read_bytes() == (HERE / "up").read_bytes()
        print((await rental.run("echo asynchronously", check=True)).stdout, end="")
        try:
            await rental.shell.interact()
        except ClientStateError as error:
            print(error)
    assert not rented()


def rent_synchronously() -> None:
    with RentGPU() as gpu, gpu.rent(**WANTED) as rental:
        print(rental.run("echo synchronously", check=True).stdout, end="")
        # Another client's reaper finds that the owner lives.
        with RentGPU() as other:
            assert not other.rentals.reap().deleted
        assert rented()
    assert not rented()


import_all()
asyncio.run(rent())
rent_synchronously()
assert look_up_process(os.getpid()) is not ProcessLookup.GONE
try:
    Emulator(ssh=True)
except NotImplementedError as error:
    print(error)
asyncio.run(Demo().emulated(seed=0, boot_seconds=0.1))
Demo().emulated_synchronously(seed=0, boot_seconds=0.1)
