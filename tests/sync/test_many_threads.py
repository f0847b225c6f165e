"""Many threads, and many clients, in one process."""

from __future__ import annotations

import pytest
from hostile import Hostile
from programs import Program
from served import GET
from short_forms import thinned

pytestmark = pytest.mark.xdist_group("machine")


async def test_many_threads_share_a_client_and_one_loop_thread() -> None:
    program = Program("""
        gpu = RentGPU()
        found = []

        def work():
            for _ in range(20):
                found.append(gpu.containers.get(1).id)

        threads = [threading.Thread(target=work) for _ in range(64)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert found == [1] * 64 * 20
        print([thread.name for thread in threading.enumerate()])
    """)
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("['MainThread', 'netmind_rentgpu']\n")
        assert server.connections <= 64


@pytest.mark.slow
@pytest.mark.parametrize("end", thinned(["del", "close"], every=2))
async def test_many_clients_leave_no_memory_descriptor_or_thread(full: bool, end: str) -> None:
    first, measured = (300, 1000) if full else (100, 200)
    program = Program(file="many_clients.py", arguments=[end, str(first), str(measured)])
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("True 0 0\n")
        assert server.connections == first + measured
