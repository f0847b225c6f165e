"""Programs with a cluster that end in every way: nothing stays rented, no process stays, and nothing odd is printed."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sys
from typing import Any

import pytest
from dask_clusters import processes_with
from guardians import guardians
from programs import WARNINGS, Program
from renters import Service
from short_forms import paired, thinned
from until import until

from netmind_rentgpu.emulator import Fault

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the tests look processes up in /proc"),
]


async def run(service: Service, *arguments: str, signals: tuple[signal.Signals, ...] = ()) -> Program:
    """Run the program of a cluster, and send signals once it has come to its place."""
    # Otherwise distributed tells each step on stderr.
    environment = {**service.environment, "DASK_LOGGING__DISTRIBUTED": "warning"}
    program = Program("", environment, measured=False, file="dask_cluster.py", arguments=arguments)
    here = service.folder / "here"
    here.unlink(missing_ok=True)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(program.run(service.emulator.url, WARNINGS))
        for number, sent in enumerate(signals):
            if number == 0:
                await until(lambda: running.done() or here.exists())
            else:
                await asyncio.sleep(0.3)
            if not running.done():
                os.kill(program.pid, sent)
    return program


async def assert_nothing_left(service: Service) -> None:
    """Assert that nothing is rented, nothing is on record, and no process of the cluster is left."""
    await until(lambda: not guardians(service.folder))
    await service.assert_nothing_left()
    await until(lambda: not processes_with(str(service.folder)))


# Dask's own lines: a worker may end within a handshake, a forked child that exits removes a folder of the scheduler, and a
# scheduler with work wants a thread while the program exits, or logs that it was cancelled.
OF_DASK = re.compile(
    r".* distributed\.(comm\.tcp - WARNING - .* TLS handshake failed|diskutils - ERROR"
    r"|scheduler - ERROR - cannot schedule new futures after).*\n"
    # An interrupt before a call of Dask's has begun.
    r"|.* tornado\.application - ERROR - Exception in callback functools\.partial\(<function sync\..*\n"
    r"Traceback.*\n(?: .*\n)+.*\n"
    r"|.* distributed\.scheduler - ERROR - \n(?:Traceback.*\n(?: .*\n)+KeyboardInterrupt\n\n.*\n\n)*"
    r"Traceback.*\n(?: .*\n)+.*CancelledError\n"
)
PLACES = ["before the start", "after the start", "boots", "computes", "closes"]
USES = ["block", "no block", "asynchronous"]


def moments(places: list[str]) -> list[Any]:
    """Return uses and places for `parametrize`: each place always with one of the uses, and with all by `--full`."""
    return [
        pytest.param(use, place, marks=() if number % len(USES) == turn else pytest.mark.full)
        for number, place in enumerate(places)
        for turn, use in enumerate(USES)
    ]


def shown(program: Program) -> str:
    """Return what a program wrote to stderr, without lines of Dask's own."""
    return OF_DASK.sub("", program.errors)


def assert_interrupted(program: Program) -> None:
    """Assert that a program ended as one that Ctrl-C ends, and that stderr shows the one traceback of that."""
    assert program.status == -signal.SIGINT, program.errors
    assert shown(program).startswith("Traceback"), program.errors
    assert shown(program).endswith("\nKeyboardInterrupt\n"), program.errors
    # The first of two is the cancellation by which asyncio passes an interrupt on.
    assert shown(program).count("Traceback") <= 2, program.errors


@pytest.mark.parametrize(("use", "place"), moments(PLACES))
async def test_interrupted_program_leaves_nothing(service: Service, use: str, place: str) -> None:
    program = await run(service, use, place, "logs", signals=(signal.SIGINT,))
    assert_interrupted(program)
    # Not until something else has deleted it.
    service.emulator.assert_nothing_rented()
    await assert_nothing_left(service)


@pytest.mark.parametrize(("use", "place"), moments(["closes", "computes", "boots"]))
async def test_program_interrupted_twice_leaves_nothing(service: Service, use: str, place: str) -> None:
    service.emulator.faults.add(Fault("slow", call="delete_container", seconds=1, times=2))
    program = await run(service, use, place, "guardian", signals=(signal.SIGINT, signal.SIGINT))
    assert program.status == -signal.SIGINT
    assert shown(program).startswith("Traceback")
    assert not re.search("never retrieved|was destroyed|ResourceWarning", program.errors), program.errors
    await assert_nothing_left(service)


@pytest.mark.parametrize(("place", "sent"), paired(PLACES[1:], [signal.SIGTERM, signal.SIGKILL]))
@pytest.mark.parametrize("use", thinned(["asynchronous", "block"], every=2))
async def test_killed_program_leaves_nothing(service: Service, use: str, place: str, sent: signal.Signals) -> None:
    program = await run(service, use, place, "guardian", signals=(sent,))
    assert (program.status, program.output, shown(program)) == (-sent, "", "")
    await assert_nothing_left(service)


@pytest.mark.parametrize("use", thinned(USES, every=3))
async def test_program_that_exits_in_a_block_leaves_nothing(service: Service, use: str) -> None:
    program = await run(service, use, "exits", "logs")
    assert (program.status, program.output, shown(program)) == (3, "", "")
    service.emulator.assert_nothing_rented()
    await assert_nothing_left(service)


@pytest.mark.parametrize("use", thinned(USES, every=3))
async def test_program_with_an_error_leaves_nothing(service: Service, use: str) -> None:
    program = await run(service, use, "raises", "logs")
    assert program.status == 1
    assert shown(program).startswith("Traceback")
    assert shown(program).endswith("\nLookupError: of the program\n")
    assert program.errors.count("Traceback") == 1
    service.emulator.assert_nothing_rented()
    await assert_nothing_left(service)


@pytest.mark.parametrize("place", thinned(["leaves work", "returns"], every=2))
async def test_program_that_never_closes_its_cluster_leaves_nothing(service: Service, place: str, full: bool) -> None:
    # In the full form, longer than the time that Dask gives a cluster at exit.
    service.emulator.faults.add(Fault("slow", call="delete_container", seconds=11 if full else 1, times=2))
    program = await run(service, "no block", place, "logs")
    assert (program.status, program.output, shown(program)) == (0, "ended\n", "")
    await assert_nothing_left(service)


async def test_program_that_ends_at_once_leaves_nothing(service: Service) -> None:
    program = await run(service, "block", "ends at once", "guardian")
    assert (program.status, shown(program)) == (4, "")
    await assert_nothing_left(service)


async def test_forked_children_leave_the_machines_of_their_parent(service: Service) -> None:
    program = await run(service, "block", "forks", "logs")
    assert (program.status, program.output, shown(program)) == (0, "ended\n", "")
    await assert_nothing_left(service)


@pytest.mark.full
async def test_clusters_interrupted_at_random_moments_leave_nothing(service: Service) -> None:
    seed = random.randrange(10**6)
    environment = {**service.environment, "DASK_LOGGING__DISTRIBUTED": "critical"}
    arguments = (str(seed), "10")
    file = "interrupt_dask_clusters.py"
    program = Program("", environment, measured=False, file=file, arguments=arguments)
    await program.run(service.emulator.url, WARNINGS)
    program.assert_silent()
    await assert_nothing_left(service)
