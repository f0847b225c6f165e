"""Forks of scripts that rent with the blocking client."""

from __future__ import annotations

import pytest
from renters import Service

pytestmark = pytest.mark.slow

ENDS_OF_THE_CHILD = ["the end of the block", "sys.exit", "os._exit", "an error", "collection", "close", "a reap"]


async def test_forked_child_that_ends_in_any_way_deletes_nothing(service: Service) -> None:
    program = await service.run_file("sync_rental_in_forked_child.py", *ENDS_OF_THE_CHILD)
    program.assert_silent(
        "this rental cannot be used: it belongs to another process, from which this one was forked\nusable\n"
        * len(ENDS_OF_THE_CHILD)
    )
    await service.assert_nothing_left()


async def test_daemon_that_closes_all_descriptors_can_rent_and_so_can_its_parent(service: Service) -> None:
    program = await service.run_file("daemon_rents.py")
    program.assert_silent("0\nhello\n2\n0\n")
    await service.assert_nothing_left()


async def test_forked_child_can_rent_for_itself(service: Service) -> None:
    program = await service.run("""
        with RentGPU() as gpu:
            with gpu.rent(**WANTED) as rental:
                if (pid := os.fork()) == 0:
                    with gpu.rent(**WANTED) as own:
                        assert sorted(rented()) == sorted([rental.container.id, own.container.id])
                        own.run("true", check=True)
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
                assert rented() == [rental.container.id]
    """)
    program.assert_silent("")
    await service.assert_nothing_left()
