"""`jobs` and `logs`: the jobs of a machine that is rented already."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from netmind_rentgpu.cli.columns import JOBS
from netmind_rentgpu.cli.exit_codes import ExitCode, code_of_result
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.cli.session import Session
from netmind_rentgpu.cli.targets import Target, find_target
from netmind_rentgpu.errors import JobNotFoundError

if TYPE_CHECKING:
    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.results import JobStatus
    from netmind_rentgpu.ssh.jobs import AsyncJob
    from netmind_rentgpu.ssh.shell import AsyncShell

__all__ = ["print_jobs", "print_logs", "remove_job", "stop_job", "wait_for_job"]

Returned = TypeVar("Returned")


def print_jobs(session: Session, wanted: str | None) -> None:
    """Print the jobs of a machine."""

    async def work(shell: AsyncShell, target: Target) -> None:
        statuses = [await job.status() for job in await shell.jobs()]
        session.results.rows([_row(status, target) for status in statuses], JOBS)

    _on_machine(session, wanted, work)


def wait_for_job(session: Session, wanted: str | None, name: str | None) -> int:
    """Wait for a job's end, print its status, and return the exit code."""

    async def work(shell: AsyncShell, target: Target) -> int:
        job = await _find_job(shell, target, name)
        session.notes.progress(f"waiting for job {job.name} on {target.name}")
        status = await job.wait(timeout=session.options.seconds)
        session.notes.clear()
        session.results.rows([_row(status, target)], JOBS)
        return code_of_result(status.exit_status, status.exit_signal)

    return _on_machine(session, wanted, work)


def stop_job(session: Session, wanted: str | None, name: str | None, grace: timedelta) -> None:
    """End a job's processes, and print its status."""

    async def work(shell: AsyncShell, target: Target) -> None:
        job = await _find_job(shell, target, name)
        session.confirm(f"Job {job.name} on {target.name} is ended: {job.command}")
        status = await job.stop(grace=grace.total_seconds())
        session.results.rows([_row(status, target)], JOBS)

    _on_machine(session, wanted, work)


def remove_job(session: Session, wanted: str | None, name: str | None) -> None:
    """Delete a job's files; a job that is gone is no error."""

    async def work(shell: AsyncShell, target: Target) -> None:
        try:
            job = await _find_job(shell, target, name)
        except JobNotFoundError as error:
            session.notes.say(f"job {error.name} is gone already")
            session.results.rows([{"name": error.name, "machine": target.name}], JOBS[:1])
            return
        status = await job.status()
        if not status.is_over:
            raise CommandError(
                ExitCode.NO, f"job {job.name} still runs", f"End it with `rentgpu jobs stop {target.name} {job.name}`."
            )
        session.confirm(
            f"The log of job {job.name} on {target.name} is deleted, {status.stdout_size + status.stderr_size} bytes."
        )
        await job.remove()
        session.results.rows([_row(status, target)], JOBS)

    _on_machine(session, wanted, work)


def print_logs(
    session: Session,
    wanted: str | None,
    name: str | None,
    *,
    follow: bool,
    since: datetime | timedelta | None,
    tail: int | None,
) -> None:
    """Print what a job has written: its stdout to stdout, and its stderr to stderr."""
    if since is not None and tail is not None:
        raise CommandError(ExitCode.USAGE, "--since and --tail both say where to begin: give one of them")

    async def work(shell: AsyncShell, target: Target) -> None:
        job = await _find_job(shell, target, name)
        found: list[dict[str, Any]] = []
        async for line in job.logs(follow=follow, since=since, tail=tail):
            row = attrs.asdict(line)
            if session.results.format in ("json", "csv"):
                found.append(row)
                continue
            data = f"{line.text}\n".encode("utf-8", "surrogateescape")
            if session.results.format == "table" and line.stream == "stderr":
                await session.notes.pass_on(data)
            else:
                session.results.line(data, row)
        if session.results.format in ("json", "csv"):
            session.results.rows(found, ())

    _on_machine(session, wanted, work)


def _on_machine(
    session: Session, wanted: str | None, work: Callable[[AsyncShell, Target], Awaitable[Returned]]
) -> Returned:
    async def use(gpu: AsyncRentGPU) -> Returned:
        target = await find_target(gpu, wanted)
        async with gpu.ssh(target.container_id) as shell:
            return await work(shell, target)

    return session.run(use)


async def _find_job(shell: AsyncShell, target: Target, name: str | None) -> AsyncJob:
    """Return the job of a name, or the only one.

    Raises:
        JobNotFoundError: there is none of that name.
        CommandError: there is no job, or there are several and none is named.
    """
    if name is not None:
        return await shell.job(name)
    jobs = await shell.jobs()
    if len(jobs) == 1:
        return jobs[0]
    if not jobs:
        raise CommandError(ExitCode.NOT_FOUND, f"{target.name} has no job")
    names = ", ".join(job.name for job in jobs)
    raise CommandError(ExitCode.USAGE, f"{target.name} has several jobs: {names}", "Name one of them.")


def _row(status: JobStatus, target: Target) -> dict[str, Any]:
    return attrs.asdict(status) | {"machine": target.name}
