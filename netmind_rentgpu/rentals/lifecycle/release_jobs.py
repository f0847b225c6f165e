"""The jobs with whose end detached rentals end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Any, Literal, Protocol, TypeAlias

from netmind_rentgpu.errors import InvalidArgumentError, JobNotFoundError, RentGPUError
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.container_index import check_not_replaced
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.lifecycle.idle_clock import IdleClock

__all__ = ["ReleaseWhen", "StartedJob", "check_job", "check_release", "finished_jobs", "guarded"]

_LONGEST_LOOK = 60.0
ReleaseWhen: TypeAlias = Literal["exits"]
"""The end of a job with which a detached rental ends: `exits`, however it ends."""


class StartedJob(Protocol):
    """A job, whether of an asynchronous or a synchronous program."""

    name: str
    id: str


def check_release(release_when: ReleaseWhen | None, job: StartedJob | None) -> StartedJob | None:
    """Return the job with whose end a rental is to end; None if only its expiry ends it.

    Raises:
        InvalidArgumentError: one of the arguments is missing, or cannot be used.
    """
    if release_when is None and job is None:
        return None
    if release_when != "exits":
        raise InvalidArgumentError("release_when", f"must be 'exits' if a job is given, not {release_when!r}")
    if job is None or not all(isinstance(getattr(job, name, None), str) for name in ("name", "id")):
        raise InvalidArgumentError("job", "must be the job with whose end the rental is to end, as start() returns it")
    return job


async def check_job(job: StartedJob, find: Callable[[str], Awaitable[StartedJob]]) -> None:
    """Check that a job is one of a rental's container.

    Args:
        find: returns the container's job of a name.

    Raises:
        InvalidArgumentError: it is not.
    """
    try:
        found = await find(job.name)
    except JobNotFoundError as error:
        raise InvalidArgumentError("job", f"{job.name} is no job of this rental's container") from error
    if found.id != job.id:
        raise InvalidArgumentError("job", f"{job.name} is another job of this rental's container by now")


def guarded(job: StartedJob | None, idle: IdleClock | None) -> dict[str, Any]:
    """Return what the guardian of a rental goes on with once it is detached, by the fields of its record.

    Args:
        job: the job with whose end the rental ends; None if there is none.
        idle: the time for which its machine has been idle; None if that is not known.
    """
    return {
        "release_job": None if job is None else job.name,
        "release_job_id": None if job is None else job.id,
        "idle_since": None if idle is None else idle.since,
        "idle_read_at": None if idle is None else idle.read_at,
    }


async def finished_jobs(context: RentalContext, records: Iterable[RentalRecord], reading_end: timedelta) -> set[str]:
    """Return the ids of those jobs that are over, of records that are detached until then.

    Args:
        reading_end: the time in which the end of a job can still be read. It has passed when this returns, unless the
            deadline of the rental is earlier.
    """
    waiting = [record for record in records if record.stage == "detached" and record.release_job_id is not None]
    over = await asyncio.gather(*(_is_over(context, record, reading_end) for record in waiting))
    return {record.release_job_id or "" for record, is_over in zip(waiting, over, strict=True) if is_over}


async def _is_over(context: RentalContext, record: RentalRecord, reading_end: timedelta) -> bool:
    """Return True if a record's job is over for certain, or was removed; False if that cannot be found out."""
    if record.container_id is None:
        return False
    try:
        async with asyncio.timeout(_LONGEST_LOOK):
            container = await context.containers.get(record.container_id)
            check_not_replaced(record, container)
            async with context.shell_on(container) as shell:
                job = await shell.job(record.release_job or "")
                if job.id != record.release_job_id:  # another job of that name has taken its place
                    return True
                if not (await job.status()).is_over:
                    return False
    except JobNotFoundError:
        return True
    except (RentGPUError, TimeoutError):
        return False
    if record.expires_at is not None:
        reading_end = min(reading_end, record.expires_at - record.present(context.clock()))
    await asyncio.sleep(reading_end.total_seconds())
    return True
