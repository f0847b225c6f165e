"""Lost machines and workers: the work finishes, others take their place, and nothing stays rented."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from dask_sites import (
    MANY,
    Site,
    client_of,
    entries,
    finish_work,
    open_site,
    seen_workers,
    tenfold,
    until_running,
    worker_pid,
)
from short_forms import thinned
from until import is_running, until

from netmind_rentgpu import AsyncRentGPU, NotFoundError
from netmind_rentgpu.dask import RentGPUCluster, supervisor
from netmind_rentgpu.dask.failures import FailuresInARow
from netmind_rentgpu.dask.machine_workers import MachineWorkers, WorkersPhase
from netmind_rentgpu.emulator import Fault

# The seconds of the emulator's clock until a machine vanishes, which the clock is moved by when it has to.
_LATER = 100_000.0
_KINDS = ["vanishes", "dies", "never reachable", "stock-out", "late commit"]
_TIMES = ["start", "join", "run", "close"]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start workers again at once after a failure."""
    monkeypatch.setattr(FailuresInARow, "pause", 0.0)


def _fault(kind: str) -> Fault:
    seconds = {"vanishes": _LATER, "late commit": 0.2}.get(kind)
    return Fault(kind) if seconds is None else Fault(kind, seconds=seconds)


_PHASES = {"join": WorkersPhase.JOINING, "run": WorkersPhase.RUNNING, "close": WorkersPhase.RUNNING}


@pytest.mark.slow
@pytest.mark.parametrize("loss", thinned([f"{kind} at {time}" for kind in _KINDS for time in _TIMES], every=7))
async def test_machine_lost_at_any_time_is_replaced_and_the_work_finishes(tmp_path: Path, loss: str) -> None:
    kind, _, time = loss.partition(" at ")
    async with open_site(tmp_path) as site:
        vanishes, faults = kind == "vanishes", site.emulator.faults
        # The machine that vanishes is the first one. Another fault is met by the first one or, if it is to happen when that
        # has got further, by a second one.
        if time == "start" or vanishes:
            faults.add(_fault(kind))
        async with site.cluster(1, max_failures=MANY, start_timeout=10) as cluster:
            if time != "start":
                await until(lambda: entries(cluster, _PHASES[time]))
            elif vanishes:
                await until(lambda: site.emulator.running)
            if vanishes:
                site.emulator.clock.advance(_LATER)
            elif time != "start":
                faults.add(_fault(kind))
                cluster.scale(2)
                await until(lambda: not faults.unmet)
            if time != "close":
                await finish_work(cluster)
        if kind == "late commit":
            await site.reap()


_Lose = Callable[[Site, RentGPUCluster, MachineWorkers], Awaitable[None]]


async def _kill_worker(_: Site, cluster: RentGPUCluster, workers: MachineWorkers) -> None:
    os.kill(await worker_pid(cluster, workers.name), signal.SIGKILL)


async def _kill_nanny(_: Site, cluster: RentGPUCluster, workers: MachineWorkers) -> None:
    os.kill(await worker_pid(cluster, workers.name, nanny=True), signal.SIGKILL)


async def _kill_job(_: Site, cluster: RentGPUCluster, workers: MachineWorkers) -> None:
    # The supervisor of the job, a shell, and all that it has started.
    worker = await worker_pid(cluster, workers.name)
    nanny = await worker_pid(cluster, workers.name, nanny=True)
    for pid in (_parent(nanny), nanny, worker):
        os.kill(pid, signal.SIGKILL)


async def _cut_line(_: Site, __: RentGPUCluster, workers: MachineWorkers) -> None:
    assert workers.rental is not None
    connection = workers.rental.shell._connection._connection
    assert connection is not None
    connection.abort()


async def _cut_line_for_a_while(site: Site, cluster: RentGPUCluster, workers: MachineWorkers) -> None:
    site.emulator.faults.add(Fault("ssh refuse", times="all"))
    await _cut_line(site, cluster, workers)
    await until(lambda: not site.emulator.faults.unmet)
    site.emulator.faults.clear()


async def _freeze_line(_: Site, __: RentGPUCluster, workers: MachineWorkers) -> None:
    assert workers.rental is not None
    connection: Any = workers.rental.shell._connection._connection
    connection._transport.pause_reading()


def _notice_frozen_lines_soon(gpu: AsyncRentGPU) -> None:
    gpu._context.shell_on = lambda container: gpu.ssh(container, keepalive=2)


async def _delete(site: Site, _: RentGPUCluster, workers: MachineWorkers) -> None:
    assert workers.rental is not None
    async with site.client() as gpu:
        await gpu.containers.delete(workers.rental.container.id)


async def _stop(site: Site, _: RentGPUCluster, workers: MachineWorkers) -> None:
    assert workers.rental is not None
    async with site.client() as gpu:
        await gpu.containers.stop(workers.rental.container.id)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lose", "keeps_name", "rentals"),
    [
        (_kill_worker, True, 2),
        pytest.param(_kill_nanny, False, 2, marks=pytest.mark.full),
        pytest.param(_kill_job, False, 2, marks=pytest.mark.full),
        (_cut_line, False, 2),
        pytest.param(_cut_line_for_a_while, False, 2, marks=pytest.mark.full),
        pytest.param(_freeze_line, False, 2, marks=pytest.mark.full),
        pytest.param(_delete, False, 3, marks=pytest.mark.full),
        pytest.param(_stop, False, 3, marks=pytest.mark.full),
    ],
    ids=[
        "worker killed",
        "nanny killed",
        "job killed",
        "line cut",
        "line cut for a while",
        "line frozen",
        "container deleted",
        "container stopped",
    ],
)
async def test_worker_lost_in_its_work_is_replaced_and_a_machine_that_lives_is_used_again(
    tmp_path: Path, lose: _Lose, *, keeps_name: bool, rentals: int
) -> None:
    async with open_site(tmp_path, change=_notice_frozen_lines_soon) as site, site.cluster(2) as cluster:
        first, second = await until_running(cluster, 2)
        async with client_of(cluster) as client:
            work = client.map(tenfold, range(300))
            await until(lambda: any(future.status == "finished" for future in work))
            pid = await worker_pid(cluster, first.name)
            await lose(site, cluster, first)
            async with asyncio.timeout(120):
                assert await client.gather(work) == list(range(0, 3000, 10))
            await until(lambda: not is_running(pid) and len(seen_workers(cluster)) == 2)
            names = {workers.name for workers in await until_running(cluster, 2)}
        assert (first.name in names) is keeps_name
        assert second.name in names
        assert len(site.emulator.charges) == rentals
        assert cluster.reason is None


@pytest.mark.slow
@pytest.mark.full
async def test_workers_of_one_machine_are_replaced_together_when_one_of_them_is_lost(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site, site.cluster(2, gpus=2) as cluster:
        await until_running(cluster, 1)
        os.kill(await worker_pid(cluster, "gpu-1-1", nanny=True), signal.SIGKILL)
        await until(lambda: {worker.name for worker in seen_workers(cluster)} == {"gpu-2-0", "gpu-2-1"})
        await finish_work(cluster)
        assert len(site.emulator.charges) == 1


@pytest.mark.slow
@pytest.mark.full
async def test_workers_hand_their_data_over_before_they_end_with_another_one_of_their_machine(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site, site.cluster(4, gpus=2) as cluster:
        await until(lambda: len(seen_workers(cluster)) == 4)
        await until_running(cluster, 2)
        async with client_of(cluster) as client:
            [address] = [worker.address for worker in seen_workers(cluster) if worker.name == "gpu-1-0"]
            data = await client.scatter(["kept", "too"], workers=[address])
            os.kill(await worker_pid(cluster, "gpu-1-1", nanny=True), signal.SIGKILL)
            await until(
                lambda: (
                    {worker.name for worker in seen_workers(cluster)} == {"gpu-2-0", "gpu-2-1", "gpu-3-0", "gpu-3-1"}
                )
            )
            assert await client.gather(data) == ["kept", "too"]
        assert len(site.emulator.charges) == 2


@pytest.mark.slow
async def test_outage_of_the_network_here_is_no_failure_of_machines_which_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SHORT_LIFE", 0.1)
    monkeypatch.setattr(supervisor, "_AFTER_OUTAGE", 0.1)
    async with open_site(tmp_path) as site, site.cluster(2, max_failures=1) as cluster:
        running = await until_running(cluster, 2)
        await until(lambda: cluster._supervisor._has_worked)
        # No machine is logged into meanwhile either, because that begins with a look at its container.
        site.emulator.faults.add(Fault("drop", times="all"))
        for workers in running:
            await _cut_line(site, cluster, workers)
        # Another machine is wanted meanwhile: its entry is replaced again and again.
        cluster.scale(3)
        await until(lambda: any(int(name.rpartition("-")[2]) > 4 for name in cluster.workers))
        await until(lambda: not seen_workers(cluster))
        site.emulator.faults.clear()
        await until_running(cluster, 3)
        await finish_work(cluster)
        assert len(site.emulator.charges) == 3
        assert cluster.reason is None


@pytest.mark.slow
async def test_machine_kept_for_other_workers_is_given_back_when_these_are_not_wanted_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailuresInARow, "pause", property(lambda failures: 600.0 if failures.count else 0.0))
    async with open_site(tmp_path) as site, site.cluster(2) as cluster:
        first, second = await until_running(cluster, 2)
        await _kill_job(site, cluster, first)
        # Its successor has the machine, and waits.
        await until(lambda: entries(cluster, WorkersPhase.WAITING))
        cluster.scale(1)
        await until(lambda: len(site.emulator.running) == 1)
        # While the machine is asked for what is left on it, there is no successor yet.
        await _kill_job(site, cluster, second)
        await until(lambda: second.phase is WorkersPhase.ENDED)
        cluster.scale(0)
        await until(lambda: not site.emulator.running)
        assert cluster.reason is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", thinned(range(8), every=8))
async def test_cluster_scaled_at_random_while_machines_vanish_at_random_has_what_is_wanted(
    tmp_path: Path, seed: int
) -> None:
    random = Random(seed)
    async with (
        open_site(tmp_path, seed=seed) as site,
        site.cluster(2, max_failures=MANY) as cluster,
        site.client() as gpu,
    ):
        for wanted in (random.randrange(4), 2):
            for _ in range(4):
                cluster.scale(random.randrange(4))
                await asyncio.sleep(random.choice([0, 0.2, 1]))
                if site.emulator.running and random.random() < 0.7:
                    victim = random.choice(site.emulator.running)
                    with suppress(NotFoundError):
                        await gpu.containers.delete(victim.container_id)
            cluster.scale(wanted)
            await until_running(cluster, wanted)
            await until(lambda: len(site.emulator.running) == len(seen_workers(cluster)) == len(cluster.worker_spec))
            assert len(site.emulator.running) == wanted
        await finish_work(cluster, tasks=50)
        assert cluster.reason is None
