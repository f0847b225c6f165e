"""Rentals that are detached until a job is over: the guardian gives the machine back then, or at the deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from guardian_copies import share_copies
from guardians import guardians
from lifecycle import put_as_it_is
from rented import client
from renters import renting
from until import until

from netmind_rentgpu import (
    AsyncJob,
    AsyncRentGPU,
    ConfigurationError,
    InvalidArgumentError,
    JobStatus,
    RentalRecord,
)
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.rentals.ledger.clocks import read_clocks
from netmind_rentgpu.rentals.limits import RentalLimits
from netmind_rentgpu.ssh.job_scripts import FoundJob

from .test_look import ME, look

WANTED: dict[str, Any] = {"image": "PyTorch 2.4", "gpu_name": "RTX 4090"}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(seed=7, boot_seconds=0.02, ssh=True) as emulator:
        yield emulator


@pytest.fixture
async def gpu(emulator: Emulator, tmp_path: Path) -> AsyncIterator[AsyncRentGPU]:
    async with client(emulator, tmp_path / "state.sqlite3") as gpu:
        yield gpu


async def detached(gpu: AsyncRentGPU, command: str, **changes: Any) -> RentalRecord:
    """Return the record of a rental that is detached until a job is over, and that the guardian guards."""
    async with gpu.rent(**WANTED) as rental:
        job = await rental.start(command, name="train")
        record = await rental.detach()
    waiting = attrs.evolve(record, guardian=ME, release_job="train", release_job_id=job.id, **changes)
    await put_as_it_is(gpu, waiting)
    return waiting


async def test_machine_is_given_back_once_the_job_is_over(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    record = await detached(gpu, "while [ ! -e go ]; do sleep 0.1; done; exit 3")
    assert record.container_id is not None
    assert await look(gpu, gone=False) == 5.0
    assert await look(gpu, gone=False, between_job_looks=2.0) == 2.0
    assert await gpu.rentals.list() == [record]
    async with gpu.ssh(record.container_id) as shell:
        await shell.run("touch go")
        assert (await (await shell.job("train")).wait()).exit_status == 3
    assert await look(gpu, gone=False) is None
    emulator.assert_nothing_rented()
    (past,) = await gpu.rentals.history()
    assert past.cause == "finished"


async def test_end_of_the_job_can_be_read_before_the_machine_is_given_back(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await detached(gpu, "exit 3")
    assert record.container_id is not None
    async with gpu.ssh(record.container_id) as shell:
        job = await shell.job("train")
        await job.wait()
        read_status, was_read = AsyncJob.status, asyncio.Event()

        async def status(self: AsyncJob) -> JobStatus:
            found = await read_status(self)
            was_read.set()
            return found

        monkeypatch.setattr(AsyncJob, "status", status)
        looking = asyncio.create_task(look(gpu, gone=False, reading_end=RentalLimits().reading_end))
        await was_read.wait()
        assert (await job.wait()).exit_status == 3
    assert await looking is None
    emulator.assert_nothing_rented()


async def test_time_to_read_the_end_of_a_job_ends_at_the_deadline(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    record = await detached(gpu, "exit 3")
    async with gpu.ssh(record.container_id or 0) as shell:
        await (await shell.job("train")).wait()
    soon = read_clocks().wall + timedelta(seconds=2)
    await put_as_it_is(gpu, attrs.evolve(record, expires_at=soon, time_limit=soon))
    async with asyncio.timeout(120):
        assert await look(gpu, gone=False, reading_end=600.0) is None
    emulator.assert_nothing_rented()


async def test_older_rental_is_looked_at_less_often(gpu: AsyncRentGPU) -> None:
    record = await detached(gpu, "exec sleep 1000")
    for age, seconds in ((timedelta(minutes=5), 30), (timedelta(hours=2), 60)):
        await put_as_it_is(gpu, attrs.evolve(record, intended_at=record.intended_at - age))
        assert await look(gpu, gone=True) == pytest.approx(seconds, abs=3)


async def test_machine_is_given_back_when_its_job_was_removed(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    record = await detached(gpu, "exit 0")
    assert record.container_id is not None
    async with gpu.ssh(record.container_id) as shell:
        job = await shell.job("train")
        await job.wait()
        await job.remove()
    assert await look(gpu, gone=True) is None
    emulator.assert_nothing_rented()


async def test_machine_is_given_back_when_its_container_was_restarted(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    record = await detached(gpu, "exec sleep 1000")
    assert record.container_id is not None
    await gpu.containers.restart(record.container_id)
    await gpu.containers.wait_ready(record.container_id, timeout=60)
    assert await look(gpu, gone=True) is None
    emulator.assert_nothing_rented()


async def test_machine_is_kept_while_a_lost_job_still_runs(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    record = await detached(gpu, "exec sleep 1000")
    assert record.container_id is not None
    emulator.faults.add(Fault("kill supervisor", seconds=0.1))
    async with gpu.ssh(record.container_id) as shell:
        job = await shell.job("train")
        status = await job.wait()
        assert (status.state, status.is_over) == ("lost", False)
        assert await look(gpu, gone=True) == 5.0
        assert (await job.stop()).is_over
    assert await look(gpu, gone=True) is None
    emulator.assert_nothing_rented()


async def test_machine_is_kept_while_its_job_cannot_be_looked_at(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    record = await detached(gpu, "exit 0")
    emulator.faults.add(Fault("ssh refuse", times="all"))
    assert await look(gpu, gone=True) == 5.0
    assert await gpu.rentals.list() == [record]


async def test_machine_is_given_back_at_its_deadline_while_its_job_runs(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    record = await detached(gpu, "exec sleep 1000")
    past = record.intended_at - timedelta(seconds=1)
    await put_as_it_is(gpu, attrs.evolve(record, expires_at=past, time_limit=past))
    assert await look(gpu, gone=True) is None
    emulator.assert_nothing_rented()
    (ended,) = await gpu.rentals.history()
    assert ended.cause == "expired"


async def test_machine_of_an_attached_rental_is_kept_when_its_job_is_over(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    record = await detached(gpu, "exit 0")
    async with gpu.rentals.attach(record) as rental:
        assert (await (await rental.job("train")).wait()).ok
        seconds = await look(gpu, gone=False)
        assert seconds is not None
        assert seconds > 3600
        assert len(emulator.running) == 1
        # Without a job, it runs until its deadline again.
        again = await rental.detach()
        assert (again.release_job, again.release_job_id) == (None, None)
    assert await look(gpu, gone=True) == pytest.approx(seconds, abs=120)
    await gpu.rentals.release(record)


async def test_detach_until_a_job_is_over_needs_a_guardian(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(**WANTED) as rental:
        job = await rental.start("sleep 1000")
        with pytest.raises(ConfigurationError, match=r"needs a guardian.*guardian=True"):
            await rental.detach(release_when="exits", job=job)
        assert (await rental.run("echo still here")).stdout == "still here\n"


async def test_detach_refuses_a_job_that_cannot_be_meant(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(**WANTED) as rental:
        job = await rental.start("true", name="mine")
        status = await job.wait()
        other = AsyncJob(job._source, FoundJob("another", status))
        for options, argument in (
            ({"release_when": "exits"}, "job"),
            ({"job": job}, "release_when"),
            ({"release_when": "starts", "job": job}, "release_when"),
            ({"release_when": "exits", "job": "mine"}, "job"),
            ({"release_when": "exits", "job": other}, "job"),
        ):
            with pytest.raises(InvalidArgumentError, match=f"^{argument}:"):
                await rental.detach(**options)
        await job.remove()
        with pytest.raises(InvalidArgumentError, match="is no job of this rental"):
            await rental.detach(release_when="exits", job=job)


async def test_guardian_gives_the_machine_back_when_the_job_is_over(
    emulator: Emulator, tmp_path: Path, gpu: AsyncRentGPU
) -> None:
    share_copies(tmp_path)
    async with AsyncRentGPU(
        emulator.token, base_url=emulator.url, state=tmp_path / "state.sqlite3", guardian=True
    ) as guarded:
        guarded._context.limits = attrs.evolve(guarded._context.limits, between_job_looks=0.5)
        async with guarded.rent(**WANTED) as rental:
            job = await rental.start("while [ ! -e go ]; do sleep 0.1; done", name="train")
            record = await rental.detach(release_when="exits", job=job)
        assert (record.release_job, record.release_job_id) == ("train", job.id)
        assert record.to_dict()["release_job"] == "train"
        assert record.enforced_by is not None
        await guarded.rentals.get(record)
        assert record.container_id is not None
        async with gpu.ssh(record.container_id) as shell:
            await shell.run("touch go")
        await until(gpu.rentals.history)
    emulator.assert_nothing_rented()
    (past,) = await gpu.rentals.history()
    assert past.cause == "finished"


async def test_machine_is_given_back_when_the_job_of_a_program_that_has_ended_is_over(tmp_path: Path) -> None:
    async with renting(tmp_path) as service:
        program = await service.run(
            """
            import attrs
            with RentGPU(guardian=True) as gpu:
                context = gpu._async._context
                context.limits = attrs.evolve(context.limits, between_job_looks=0.5)
                with gpu.rent(**WANTED) as rental:
                    job = rental.start("while [ ! -e go ]; do sleep 0.1; done; exit 3", name="train")
                    record = rental.detach(release_when="exits", job=job)
                    print(record.container_id, record.release_job, end="")
            """,
            measured=False,
        )
        program.assert_silent()
        container_id, job = program.output.split()
        assert job == "train"
        async with service.client() as gpu:
            async with gpu.ssh(int(container_id)) as shell:
                assert (await (await shell.job("train")).status()).state == "running"
                await shell.run("touch go")
            await until(lambda: not guardians(tmp_path))
            service.emulator.assert_nothing_rented()
            (past,) = await gpu.rentals.history()
            assert past.cause == "finished"
