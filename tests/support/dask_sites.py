"""Clusters on an emulator of isolated containers, work whose results are checked, and the end of a cluster."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import canaries
from distributed import Client
from distributed.scheduler import WorkerState
from isolation import require_isolation
from rented import IMAGE
from until import until

from netmind_rentgpu import AsyncRentGPU, Retries, ServiceProfile
from netmind_rentgpu.dask import RentGPUCluster, Software
from netmind_rentgpu.dask.machine_workers import MachineWorkers, WorkersPhase
from netmind_rentgpu.emulator import Emulator

# The lags of the emulator, which are shorter than those of the service.
_PROFILE = ServiceProfile(
    list_lag=timedelta(seconds=0.2), create_lag=timedelta(seconds=0.3), delete_lag=timedelta(seconds=0.3)
)
SOFTWARE = Software(python=sys.executable, install="never")
"""The software of this machine, whose files the containers see."""
BROKEN = Software(python="/nonexistent/python", install="never")
"""A Python that no machine has."""
MANY = 1000
"""A number of failures that no test reaches."""


@attrs.frozen
class Site:
    """An emulator with a state file for clusters and other clients.

    Attributes:
        change: changes each client of a cluster before that uses it.
    """

    emulator: Emulator
    state: Path
    change: Callable[[AsyncRentGPU], object]

    def client(self) -> AsyncRentGPU:
        """Return another client with the same state file."""
        return AsyncRentGPU(
            self.emulator.token,
            base_url=self.emulator.url,
            state=self.state,
            profile=_PROFILE,
            retries=Retries(base_delay=0.01, max_delay=0.05),
        )

    def cluster(self, n_workers: int, **options: Any) -> RentGPUCluster:
        """Return a cluster that is not started yet."""

        def make() -> AsyncRentGPU:
            gpu = self.client()
            self.change(gpu)
            return gpu

        options = {"image": IMAGE, "software": SOFTWARE, **options}
        return RentGPUCluster(n_workers, client=make, asynchronous=True, **options)

    async def reap(self) -> None:
        """Wait until nothing of lost creates can turn up any more, and their records can be removed."""

        async def is_done() -> bool:
            await gpu.rentals.reap()
            return await gpu.rentals.list() == []

        async with self.client() as gpu:
            await until(is_done)

    async def assert_nothing_left(self) -> None:
        """Check that nothing is rented, on record or reserved."""
        self.emulator.assert_nothing_rented()
        async with self.client() as gpu:
            assert await gpu.rentals.list() == []
            assert await gpu.budgets.list() == []


@asynccontextmanager
async def open_site(
    folder: Path, *, change: Callable[[AsyncRentGPU], object] = lambda _: None, **options: Any
) -> AsyncIterator[Site]:
    """Start an emulator with isolated containers, and check in the end that nothing is rented and no task is left."""
    require_isolation()
    options = {"seed": 7, "boot_seconds": 0.1, "token": canaries.TOKEN, **options}
    before = asyncio.all_tasks()
    async with Emulator(ssh=True, isolated=True, **options) as emulator:
        site = Site(emulator, folder / "clusters" / "state.sqlite3", change)
        of_emulator = asyncio.all_tasks()
        yield site
        await site.assert_nothing_left()
        await until(lambda: not _of_clusters(of_emulator))
    await until(lambda: asyncio.all_tasks() <= before)


def _of_clusters(others: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    return [
        task
        for task in asyncio.all_tasks() - others
        if any(part in str(task.get_coro()) for part in ("RentGPUCluster", "Supervisor", "Mesh", "MachineWorkers"))
    ]


def _tasks() -> tuple[Callable[[int], int], Callable[[int], int]]:
    # In a function, because Dask sends functions of functions by value, and workers cannot import this module.
    def tenfold(number: int) -> int:
        import time

        time.sleep(0.005)
        return 10 * number

    def endless(number: int) -> int:
        import time

        time.sleep(600)
        return number

    return tenfold, endless


tenfold, endless = _tasks()
"""Tasks: ten times a number, after a short time, so that work is under way when a machine is lost; and a task that hangs."""


@asynccontextmanager
async def client_of(cluster: RentGPUCluster) -> AsyncIterator[Client]:
    """Connect a client of a cluster."""
    async with Client(cluster, asynchronous=True) as client:
        yield client


async def finish_work(cluster: RentGPUCluster, tasks: int = 200) -> None:
    """Run tasks on a cluster, and check the result of each."""
    async with client_of(cluster) as client, asyncio.timeout(120):
        assert await client.gather(client.map(tenfold, range(tasks))) == list(range(0, 10 * tasks, 10))


def entries(cluster: RentGPUCluster, *phases: WorkersPhase) -> list[MachineWorkers]:
    """Return the entries of a cluster that are in one of some phases."""
    return [workers for workers in cluster.workers.values() if workers.phase in phases]


async def until_running(cluster: RentGPUCluster, number: int) -> list[MachineWorkers]:
    """Wait until so many entries run, and no others are there."""
    await until(lambda: len(entries(cluster, WorkersPhase.RUNNING)) == number == len(cluster.workers))
    return entries(cluster, WorkersPhase.RUNNING)


async def worker_pid(cluster: RentGPUCluster, name: str, *, nanny: bool = False) -> int:
    """Return the process id of a worker, or of its nanny."""
    async with client_of(cluster) as client:
        (address,) = [worker.address for worker in seen_workers(cluster) if worker.name == name]
        (pid,) = (await client.run(os.getpid, workers=[address], nanny=nanny)).values()
    return int(pid)


def seen_workers(cluster: RentGPUCluster) -> list[WorkerState]:
    """Return the workers that are connected to the scheduler."""
    assert cluster.scheduler is not None
    return list(cluster.scheduler.workers.values())
