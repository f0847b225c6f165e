"""Rentals of the blocking client that are never left: collection, closing, threads, and the interpreter's exit."""

from __future__ import annotations

import pytest
from renters import Service
from short_forms import thinned

from netmind_rentgpu.emulator import Fault

pytestmark = pytest.mark.slow

AT_THE_END = [
    "at the end",
    "at the end, with a shell in use",
    "while the interpreter exits",
    "in a daemon thread",
    "while it is entered by a daemon thread",
    "in a thread that outlives the main one",
]
# These rentals are deleted before the interpreter's end, so that one process can do all of them.
BEFORE_THE_END = [
    "collected",
    "collected with its client",
    "its client closed",
    "its client closed by another thread while it is entered",
    "closed",
]


@pytest.mark.parametrize("end", thinned(["before the interpreter's", *AT_THE_END], every=2))
async def test_rental_never_left_is_deleted(service: Service, end: str) -> None:
    if "entered" in end:
        service.emulator.faults.add(Fault("never starts"))
    ways = [end] if end in AT_THE_END else BEFORE_THE_END
    program = await service.run_file("rental_never_left.py", *ways)
    program.assert_silent("")
    await service.assert_nothing_left()


async def test_exit_waits_for_a_slow_deletion(service: Service) -> None:
    service.emulator.faults.add(Fault("slow", call="delete_container", seconds=5.5))
    program = await service.run("""
        rental = RentGPU().rent(**WANTED)
        rental.__enter__()
    """)
    program.assert_silent("")
    await service.assert_nothing_left()


async def test_exit_deletes_over_a_new_connection_to_a_host_name(service: Service) -> None:
    service.emulator.faults.add(Fault("drop", call="delete_container", times=2))
    program = await service.run("""
        gpu = RentGPU(base_url=os.environ["NETMIND_BASE_URL"].replace("127.0.0.1", "localhost"))
        rental = gpu.rent(**WANTED)
        rental.__enter__()
    """)
    program.assert_silent("")
    await service.assert_nothing_left()
