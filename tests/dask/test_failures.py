"""Failures in a row: how many machines are rented before a cluster gives up, and what it says then."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from dask_sites import (
    BROKEN,
    client_of,
    entries,
    finish_work,
    open_site,
    tenfold,
    until_running,
    worker_pid,
)
from distributed.client import FutureCancelledError
from distributed.core import Status
from until import until

from netmind_rentgpu import ConfigurationError, RentGPUError, SSHError
from netmind_rentgpu.dask import Software, supervisor
from netmind_rentgpu.dask.failures import FailuresInARow
from netmind_rentgpu.dask.machine_workers import WorkersPhase
from netmind_rentgpu.emulator import Fault

_OLD = {"python": "3.6", "packages": {}, "executable": "/usr/bin/python3.6"}


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start workers again at once after a failure."""
    monkeypatch.setattr(FailuresInARow, "pause", 0.0)


def test_pauses_double_up_to_a_minute_until_a_success() -> None:
    failures, pauses = FailuresInARow(most=9), []
    for _ in range(9):
        assert not failures.are_too_many
        pauses.append(failures.pause)
        failures = failures.and_one_more()
    assert failures.are_too_many
    assert pauses == [0, 2, 4, 8, 16, 32, 60, 60, 60]
    assert (failures.after_success().count, failures.after_success().pause) == (0, 0)
    assert not failures.after_success().are_too_many


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "/nonexistent/python cannot be run on the machine"),
        (f"exec {sys.executable} -S $@", "missing on the machine"),
        (f"echo 'netmind-rentgpu-versions {json.dumps(_OLD)}'", r"it is Python 3\.6 on the machine"),
    ],
    ids=["no Python", "no dask", "old Python"],
)
@pytest.mark.usefixtures("no_pause")
async def test_software_that_no_worker_can_run_with_ends_the_cluster_after_so_many_rentals(
    tmp_path: Path, script: str | None, said: str
) -> None:
    software = BROKEN
    if script is not None:
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{script.replace('$@', chr(34) + '$@' + chr(34))}\n")
        python.chmod(0o755)
        software = Software(python=str(python), install="never")
    async with open_site(tmp_path) as site, site.cluster(1, software=software, max_failures=3) as cluster:
        async with client_of(cluster) as client, asyncio.timeout(120):
            future = client.submit(tenfold, 1)
            with pytest.raises(ConfigurationError, match=said):
                await cluster.wait_for_workers(1)
            with pytest.raises(FutureCancelledError):
                await future
        await until(lambda: cluster.status is Status.closed)
        assert isinstance(cluster.reason, ConfigurationError)
        assert len(site.emulator.charges) == 3
        site.emulator.assert_nothing_rented()


@pytest.mark.usefixtures("no_pause")
async def test_failures_of_several_workers_at_once_rent_no_more_than_allowed(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site, site.cluster(4, software=BROKEN, max_failures=2) as cluster:
        await until(lambda: cluster.status is Status.closed)
        assert isinstance(cluster.reason, ConfigurationError)
        # Each of the four had rented one by then, and one failed machine may have been replaced.
        assert len(site.emulator.charges) <= 5


async def test_reason_ends_the_pause_of_what_has_to_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailuresInARow, "pause", property(lambda failures: 600.0 if failures.count else 0.0))
    async with open_site(tmp_path) as site, site.cluster(2, software=BROKEN, max_failures=2) as cluster:
        await until(lambda: cluster.status is Status.closed)
        assert len(site.emulator.charges) == 2


@pytest.mark.usefixtures("no_pause")
async def test_forwarding_that_the_server_forbids_is_said_before_a_worker_starts(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        site.emulator.faults.add(Fault("ssh no forwarding", times="all"))
        async with site.cluster(1, max_failures=2) as cluster:
            with pytest.raises(SSHError, match="forward"):
                await cluster.wait_for_workers(1)
            await until(lambda: cluster.status is Status.closed)
            assert len(site.emulator.charges) == 2


@pytest.mark.usefixtures("no_pause")
async def test_error_of_another_kind_counts_as_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(supervisor, "check_gpus", fail)
    async with open_site(tmp_path) as site, site.cluster(1, max_failures=2) as cluster:
        with pytest.raises(RentGPUError, match="too many open files"):
            await cluster.wait_for_workers(1)
        await until(lambda: cluster.status is Status.closed)
        assert len(site.emulator.charges) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("no_pause")
async def test_success_resets_the_count_of_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SHORT_LIFE", 0.0)
    allowed, tried = tmp_path / "allowed", tmp_path / "tried"
    software = Software(
        python=sys.executable, install="never", setup=(f"test -e {allowed} || {{ touch {tried}; exit 1; }}",)
    )
    async with open_site(tmp_path) as site, site.cluster(1, software=software, max_failures=4) as cluster:
        await until(tried.exists)
        allowed.touch()
        (workers,) = await until_running(cluster, 1)
        await finish_work(cluster, tasks=10)
        allowed.unlink()
        assert workers.rental is not None
        async with site.client() as gpu:
            await gpu.containers.delete(workers.rental.container.id)
        await until(lambda: cluster.status is Status.closed)
        # At least one failure, the success, and the failures after it.
        assert len(site.emulator.charges) >= 6


@pytest.mark.slow
@pytest.mark.usefixtures("no_pause")
async def test_lost_workers_that_are_not_to_be_replaced_end_the_cluster_with_the_last_of_them(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site, site.cluster(2, replace=False) as cluster:
        await until_running(cluster, 2)
        os.kill(await worker_pid(cluster, "gpu-1", nanny=True), signal.SIGKILL)
        await until(lambda: len(cluster.workers) == 1)
        assert cluster.reason is None
        await finish_work(cluster, tasks=10)
        await until(lambda: len(site.emulator.running) == 1)
        async with client_of(cluster) as client:
            future = client.submit(tenfold, 1)
            os.kill(await worker_pid(cluster, "gpu-2", nanny=True), signal.SIGKILL)
            del future
        await until(lambda: cluster.status is Status.closed)
        assert "worker gpu-2 has ended" in str(cluster.reason)
        assert len(site.emulator.charges) == 2


@pytest.mark.usefixtures("no_pause")
async def test_machine_that_does_not_start_is_replaced_though_lost_workers_are_not(tmp_path: Path) -> None:
    software = Software(setup=("sleep 600",))
    async with open_site(tmp_path) as site:
        site.emulator.faults.add(Fault("stock-out"))
        async with site.cluster(1, software=software, replace=False) as cluster:
            await until(lambda: entries(cluster, WorkersPhase.PREPARING))
            assert cluster.reason is None
