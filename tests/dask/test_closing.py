"""The end of a cluster in each phase of its workers: it waits for no machine, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dask_sites import (
    BROKEN,
    MANY,
    SOFTWARE,
    client_of,
    entries,
    open_site,
    seen_workers,
    until_running,
    worker_pid,
)
from distributed.core import Status
from until import is_running, until

from netmind_rentgpu import AsyncRentGPU, ClientStateError, ReleaseError, StateFileError
from netmind_rentgpu.dask import RentGPUCluster, Software, supervisor
from netmind_rentgpu.dask.failures import FailuresInARow
from netmind_rentgpu.dask.machine_workers import WorkersPhase
from netmind_rentgpu.emulator import Fault

_LONG = 600.0


@pytest.mark.parametrize(
    ("phase", "software", "boot_seconds"),
    [
        (WorkersPhase.WAITING, BROKEN, 0.1),
        (WorkersPhase.RENTING, SOFTWARE, _LONG),
        (WorkersPhase.PREPARING, Software(setup=(f"sleep {_LONG:.0f}",)), 0.1),
        pytest.param(WorkersPhase.JOINING, SOFTWARE, 0.1, marks=pytest.mark.slow),
    ],
    ids=["waiting", "renting", "preparing", "joining"],
)
async def test_close_in_a_phase_before_the_workers_run_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: WorkersPhase, software: Software, boot_seconds: float
) -> None:
    monkeypatch.setattr(FailuresInARow, "pause", property(lambda failures: _LONG if failures.count else 0.0))
    async with open_site(tmp_path, boot_seconds=boot_seconds) as site:
        async with site.cluster(2, software=software, max_failures=MANY) as cluster:
            await until(lambda: len(entries(cluster, phase)) == 2)
            async with asyncio.timeout(_LONG / 5):
                await cluster.close()
        assert cluster.reason is None


@pytest.mark.parametrize("steps", range(12))
async def test_close_soon_after_scaling_up_rents_nothing_more(tmp_path: Path, steps: int) -> None:
    async with open_site(tmp_path, boot_seconds=_LONG) as site:
        async with site.cluster(0) as cluster:
            cluster.scale(2)
            for _ in range(steps):
                await asyncio.sleep(0)
            async with asyncio.timeout(_LONG / 5):
                await cluster.close()
        charges = len(site.emulator.charges)
        await asyncio.sleep(0)
        assert len(site.emulator.charges) == charges


@pytest.mark.slow
async def test_close_while_a_worker_retires_that_does_not_answer_does_not_wait_for_it(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site, site.cluster(2) as cluster:
        await until_running(cluster, 2)
        async with client_of(cluster) as client:
            data = await client.scatter([b"1", b"2"], hash=False)
            pid = await worker_pid(cluster, "gpu-2")
            os.kill(pid, signal.SIGSTOP)
            try:
                cluster.scale(1)
                await until(lambda: entries(cluster, WorkersPhase.RETIRING) or len(cluster.workers) == 1)
            finally:
                await cluster.close()
            await until(lambda: not is_running(pid))
            del data


@pytest.mark.slow
@pytest.mark.full
async def test_worker_that_does_not_answer_ends_though_it_cannot_hand_its_data_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_LONGEST_RETIREMENT", 1.0)
    async with open_site(tmp_path) as site, site.cluster(2) as cluster:
        await until_running(cluster, 2)
        async with client_of(cluster) as client:
            data = await client.scatter([b"1", b"2", b"3", b"4"], hash=False)
            os.kill(await worker_pid(cluster, "gpu-2"), signal.SIGSTOP)
            cluster.scale(1)
            await until(lambda: len(cluster.workers) == len(seen_workers(cluster)) == len(site.emulator.running) == 1)
            del data
        assert cluster.reason is None


async def test_close_ends_the_wait_for_workers(tmp_path: Path) -> None:
    async with open_site(tmp_path, boot_seconds=_LONG) as site, site.cluster(1) as cluster:
        waiting = asyncio.ensure_future(cluster.wait_for_workers(1))
        await until(lambda: entries(cluster, WorkersPhase.RENTING))
        await cluster.close()
        with pytest.raises(ClientStateError, match="closed"):
            await waiting


@pytest.mark.slow
async def test_close_soon_after_scaling_down_deletes_a_machine_whose_create_is_under_way(tmp_path: Path) -> None:
    """A second cancellation would count as a wish to give the deletion up."""
    async with open_site(tmp_path, boot_seconds=_LONG) as site:
        site.emulator.faults.add(Fault("slow", call="create_container", seconds=6, when="before"))
        async with site.cluster(1) as cluster:
            await until(lambda: site.emulator.requests.of("create_container"))
            workers = cluster.workers["gpu-1"]
            cluster.scale(0)
            await until(lambda: workers.task is not None and workers.task.cancelling())


async def test_cancelled_scaling_leaves_the_cluster_able_to_scale(tmp_path: Path) -> None:
    async with open_site(tmp_path, boot_seconds=_LONG) as site, site.cluster(0) as cluster:
        async with cluster._lock:
            scaling = asyncio.ensure_future(cluster.scale_down(["gpu-9"]))
            await until(lambda: cluster._correct_state_waiting is not None)
            scaling.cancel()
            await asyncio.wait({scaling})
        cluster.scale(1)
        await until(lambda: len(cluster.workers) == 1)


async def test_close_says_what_a_cluster_that_has_ended_by_itself_could_not_delete(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        options: Any = {"software": Software(setup=("sleep 600",)), "idle_timeout": timedelta(seconds=3)}
        cluster: Any = await site.cluster(1, **options)
        await until(lambda: entries(cluster, WorkersPhase.PREPARING))
        site.emulator.faults.add(Fault("status", call="delete_container", status=403, times="all"))
        await until(lambda: cluster.status is Status.closed)
        with pytest.raises(ReleaseError, match="delete"):
            await cluster.close()
        await cluster.close()
        site.emulator.faults.clear()
        await site.reap()


async def test_close_that_cannot_delete_a_machine_says_so_and_it_stays_on_record(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        cluster: Any = await site.cluster(1, software=Software(setup=("sleep 600",)))
        await until(lambda: entries(cluster, WorkersPhase.PREPARING))
        site.emulator.faults.add(Fault("status", call="delete_container", status=403, times="all"))
        with pytest.raises(ReleaseError, match="delete"):
            await cluster.close()
        assert len(site.emulator.running) == 1
        site.emulator.faults.clear()
        await site.reap()


async def test_failed_start_leaves_the_logs_of_dask_as_they_were(tmp_path: Path) -> None:
    def client() -> AsyncRentGPU:
        return AsyncRentGPU("token", base_url="http://127.0.0.1:9", state=tmp_path)  # a folder, where a file should be

    handler = logging.StreamHandler(io.StringIO())
    logging.getLogger("distributed").addHandler(handler)
    try:
        cluster: Any = RentGPUCluster(1, budget=1, client=client, dashboard_address=None, asynchronous=True)
        assert handler.level == logging.WARNING
        with pytest.raises(StateFileError):
            await cluster
        assert handler.level == logging.NOTSET
    finally:
        logging.getLogger("distributed").removeHandler(handler)
    assert cluster.status is Status.closed
    assert "Cluster closed" not in handler.stream.getvalue()
