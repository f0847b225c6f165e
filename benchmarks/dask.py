"""The Dask cluster on emulated machines, beside Dask's own LocalCluster: its start, small tasks, transfers and efficiency.

Each container has a network namespace of its own, so that all traffic between workers passes through SSH, as it does between
rented machines; but all run on this machine, and share its processors. The long tasks sleep, so that their efficiency shows
what the cluster adds to them, and not the number of processors.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cloudpickle
from distributed import Client, LocalCluster, get_worker, wait
from distributed.deploy.cluster import Cluster

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.dask import RentGPUCluster, Software
from netmind_rentgpu.emulator import Emulator

# Rented workers cannot import this module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
WORKERS = (2, 4, 8, 16)
MOST_ROUNDS = 5
SMALL_TASKS = 1000
BYTES = 50_000_000
SECONDS, TASKS_EACH = 0.2, 10
# On a machine with the processors for it.
LEAST_EFFICIENCY = 0.95


def _number(value: int) -> int:
    return value


def _sleep(value: int) -> int:
    time.sleep(SECONDS)
    return value


def _data(seed: int) -> bytes:
    del seed
    return os.urandom(BYTES)


def _size(data: bytes) -> tuple[int, str]:
    return len(data), str(get_worker().address)


def _tasks_per_second(client: Client) -> float:
    began = time.perf_counter()
    wait(client.map(_number, range(SMALL_TASKS), pure=False))
    return SMALL_TASKS / (time.perf_counter() - began)


def _megabytes_per_second(client: Client) -> float:
    """Move data from one worker to another."""
    source, target, *_ = client.nthreads()
    data = client.submit(_data, time.time_ns(), workers=[source])
    wait(data)
    began = time.perf_counter()
    size, at = client.submit(_size, data, workers=[target], pure=False).result()
    assert (size, at) == (BYTES, target)
    return BYTES / 1e6 / (time.perf_counter() - began)


def _efficiency(client: Client, workers: int) -> float:
    """Return the share of the workers' time that goes into tasks that sleep."""
    count = workers * TASKS_EACH
    began = time.perf_counter()
    wait(client.map(_sleep, range(count), pure=False))
    return SECONDS * TASKS_EACH / (time.perf_counter() - began)


def _measure(
    open_cluster: Callable[[int], AbstractContextManager[Cluster]], workers: int, rounds: int
) -> dict[str, float]:
    """Start a cluster, and return its figures, the medians of some rounds."""
    began = time.perf_counter()
    with open_cluster(workers) as cluster, Client(cluster) as client:
        client.wait_for_workers(workers, timeout=300)
        found = {"up, s": time.perf_counter() - began}
        # The first tasks of a worker import what they need.
        _tasks_per_second(client)
        each: dict[str, Callable[[], float]] = {
            "small tasks/s": lambda: _tasks_per_second(client),
            "MB/s between workers": lambda: _megabytes_per_second(client),
            "efficiency": lambda: _efficiency(client, workers),
        }
        for name, measure in each.items():
            found[name] = statistics.median(measure() for _ in range(rounds))
    return found


def run(rounds: int) -> bool:
    """Print the figures; return False if efficiency is too low on a machine with a processor for each worker."""
    rounds = min(rounds, MOST_ROUNDS)
    with tempfile.TemporaryDirectory() as folder, Emulator(ssh=True, isolated=True, boot_seconds=0) as emulator:

        def client() -> AsyncRentGPU:
            return AsyncRentGPU(emulator.token, base_url=emulator.url, state=Path(folder) / "state.sqlite3")

        def rented(workers: int) -> AbstractContextManager[Any]:
            software = Software(python=sys.executable, install="never")
            return RentGPUCluster(workers, image="PyTorch 2.4", software=software, client=client)

        def local(workers: int) -> AbstractContextManager[Any]:
            return LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)

        processors = os.cpu_count() or 1
        print(f"\nDask, {rounds} rounds, {processors} processors; tasks of {SECONDS} s sleep")
        is_efficient = True
        for workers in WORKERS:
            for name, open_cluster in (("rented", rented), ("local", local)):
                found = _measure(open_cluster, workers, rounds)
                shown = ", ".join(f"{figure} {value:.3g}" for figure, value in found.items())
                print(f"  {workers:2} workers, {name:6} {shown}", flush=True)
                if name == "rented" and processors > workers:
                    is_efficient &= found["efficiency"] >= LEAST_EFFICIENCY
    return is_efficient
