"""Jobs on a container: commands that go on without a connection, found again by their names.

A job's files, and the supervisor that waits for its end, are on the container; `job.sh` describes them. Each method runs one
action of that script over a connection, and runs it again over another one if the connection is lost: each action may run
twice without harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import TYPE_CHECKING

from netmind_rentgpu.arguments import is_seconds, shown_value
from netmind_rentgpu.concurrency.backoff import backoff
from netmind_rentgpu.errors import (
    ClientStateError,
    InvalidArgumentError,
    JobExistsError,
    JobNotFoundError,
    RentGPUError,
    SSHError,
    TransportError,
    WaitTimeoutError,
)
from netmind_rentgpu.results import CommandResult, JobStatus, OutputLine
from netmind_rentgpu.ssh.connection import ShellConnection
from netmind_rentgpu.ssh.connection_source import ConnectionSource, ConnectionUse
from netmind_rentgpu.waiting.waits import checked_timeout

if TYPE_CHECKING:
    from netmind_rentgpu.ssh.job_scripts import FoundJob, JobAction

__all__ = ["AsyncJob", "find_job", "find_jobs", "start_job"]

_LONGEST_GRACE = 86_400.0
_MOST_OUTPUT = 16 * 1024 * 1024


class AsyncJob:
    """A command that runs on a container without a connection: `job = await shell.start("python train.py", name="train")`.

    It goes on after the connection, the program and the client have ended, until its command ends or the container does.
    `shell.job(name)` finds it again, from any process. If a connection is lost, each method opens another one and goes on.

    Attributes:
        name: the job's name, which no other job of the container has.
        id: the job's id, which an earlier or later job of the same name does not have.
        command: the command that it runs.
    """

    def __init__(self, source: ConnectionSource, found: FoundJob) -> None:
        self._source = source
        self.name: str = found.status.name
        self.id: str = found.id
        self.command: str = found.status.command

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.command[:100]!r}>"

    def __reduce__(self) -> str:
        raise TypeError("a job uses a connection and cannot be pickled; find it again by its name, with job()")

    async def status(self) -> JobStatus:
        """Return the job's present status.

        Raises:
            JobNotFoundError: the job was removed.
            SSHError: no connection could be made for five minutes, or the container's shell failed.
            ClientStateError: the shell or rental of this job is closed.
        """
        return await self._act("status", f"cannot read the status of job {self.name}")

    async def logs(
        self,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: datetime | timedelta | None = None,
        after: str | None = None,
    ) -> AsyncGenerator[OutputLine]:
        """Yield the lines that the job has written.

        Each line has a `position`. A program that keeps the position of the last line that it has handled can go on exactly
        behind that line, in another process too. The lines of one stream are in order; those of both are so to a second. If
        the connection is lost, the iteration goes on over another one where it was. A line that a running job has not ended
        yet comes as an update at the end (`OutputLine.is_update`), unless `follow` is given.

        Args:
            follow: True to go on with what the job writes until it is over. A line comes about a second after it is written.
            tail: the number of lines to begin with, counted from the last; None for all.
            since: the moment to begin with, or the time before now; None for the beginning.
            after: the `position` of the line to go on behind; None for the beginning.

        Raises:
            InvalidArgumentError: an argument cannot be used, or two of `tail`, `since` and `after` are given.
            JobNotFoundError: the job was removed.
            SSHError: no connection could be made for five minutes, or the container's shell failed.
            ClientStateError: the shell or rental of this job is closed.
        """
        from netmind_rentgpu.ssh.commands import prepared
        from netmind_rentgpu.ssh.job_logs import LogReader, log_request
        from netmind_rentgpu.ssh.job_scripts import job_action
        from netmind_rentgpu.ssh.line_stream import LineStream

        request = log_request(follow=follow, tail=tail, since=since, after=after, now=datetime.now(UTC))
        outage = _Outage(self._source)
        while True:
            use = ConnectionUse(self._source, is_long=True)
            reader = LogReader(request)
            try:
                action = job_action("logs", self.name, self.id, *request.arguments(datetime.now(UTC)))
                ready = prepared(action.command, None, action.input)
                async with use as connection:
                    async with LineStream(connection, ready, reader) as stream:
                        while (line := await stream.next()) is not None:
                            outage.is_over()
                            request = request.behind(line)
                            yield line
                    result = stream.result()
            except RentGPUError as error:
                await outage.pause_after(error, use.connection)
                continue
            if reader.answer == "missing":
                raise self._missing()
            if not reader.is_whole:
                raise _failed(
                    connection, f"cannot read the log of job {self.name}", reader.answer or reader.problem, result
                )
            return

    async def wait(self, *, timeout: float | None = None) -> JobStatus:
        """Wait until the job is over, and return its status. The end of this wait stops nothing.

        Args:
            timeout: the seconds to wait; None for no limit.

        Raises:
            WaitTimeoutError: the job still runs after that time.
            JobNotFoundError: the job was removed.
            SSHError: no connection could be made for five minutes, or the container's shell failed.
            InvalidArgumentError: the timeout is no number of seconds.
            ClientStateError: the shell or rental of this job is closed.
        """
        deadline = asyncio.timeout(None if timeout is None else checked_timeout(timeout))
        try:
            async with deadline:
                return await self._act("wait", f"cannot wait for job {self.name}")
        except TimeoutError as error:
            if not deadline.expired():
                raise
            text = f"job {self.name} still runs after {timeout:g} s; it goes on, wait again or stop it"
            raise WaitTimeoutError(text, arrived={}, pending={}) from error
        finally:
            del deadline  # break the reference cycle

    async def stop(self, *, grace: float = 10) -> JobStatus:
        """End all processes that the job has started, and return its status: by SIGTERM, and after a time by SIGKILL.

        The container finds them by the job's session, by a variable of their environment, and as descendants. A process that
        has a session of its own, has cleared its environment and has lost its parent is not found.

        Args:
            grace: the seconds between the two signals, rounded up to whole ones.

        Raises:
            JobNotFoundError: the job was removed.
            SSHError: a process did not end; no connection could be made for five minutes; or the container's shell failed.
            InvalidArgumentError: the grace is no number of seconds, or more than a day.
            ClientStateError: the shell or rental of this job is closed.
        """
        if not is_seconds(grace, above_zero=False) or grace > _LONGEST_GRACE:
            raise InvalidArgumentError("grace", f"must be seconds, 0 to {_LONGEST_GRACE:.0f}: {shown_value(grace)}")
        return await self._act("stop", f"cannot stop job {self.name}", ceil(grace))

    async def remove(self) -> None:
        """Delete the job's files, so that its name can be used again. A second call does nothing.

        Raises:
            ClientStateError: the job still runs; or its shell or rental is closed.
            SSHError: no connection could be made for five minutes, or the container's shell failed.
        """
        from netmind_rentgpu.ssh.job_scripts import answer_of, job_action

        action = job_action("remove", self.name, self.id)
        word, _ = answer_of(await _run(self._source, action, f"cannot remove job {self.name}"))
        if word == "running":
            raise ClientStateError(f"job {self.name} still runs and cannot be removed; stop it, or wait for its end")

    async def _act(self, name: str, failure: str, *arguments: int) -> JobStatus:
        """Run an action that answers with the job's status.

        Args:
            failure: the beginning of the error's text if the action fails.
        """
        from netmind_rentgpu.ssh.job_scripts import answer_of, job_action, jobs_in

        action = job_action(name, self.name, self.id, *arguments)
        output = await _run(self._source, action, failure, is_long=name == "wait")
        for found in jobs_in(output):
            if found.id == self.id:
                return found.status
        if answer_of(output)[0] == "missing":
            raise self._missing()
        raise SSHError(f"{failure}: the container has not described it", stage="command")

    def _missing(self) -> JobNotFoundError:
        return JobNotFoundError(f"job {self.name} is not on its container any more: it was removed", name=self.name)


async def start_job(
    source: ConnectionSource,
    command: str,
    *,
    name: str | None,
    environment: Mapping[str, str] | None,
    directory: str | None,
    given: str | bytes | None,
) -> AsyncJob:
    """Start a job; see `AsyncShell.start`."""
    from netmind_rentgpu.ssh.job_scripts import (
        answer_of,
        checked_name,
        given_to_job,
        job_action,
        jobs_in,
        new_job_id,
        new_job_name,
    )

    wanted, job_id = new_job_name() if name is None else checked_name(name), new_job_id()
    text = given_to_job(job_id, command, environment=environment, directory=directory, given=given)
    failure = f"cannot start job {wanted}"
    while True:
        output = await _run(source, job_action("start", wanted, job_id, given=text), failure)
        for found in jobs_in(output):
            if found.id == job_id:
                return AsyncJob(source, found)
        word, rest = answer_of(output)
        match word:
            case "taken":
                raise JobExistsError(f"{failure}: the container has a job of that name; remove it first", name=wanted)
            case "directory":
                cause = rest.rpartition(": ")[2]
                raise InvalidArgumentError("directory", f"cannot be entered on the container: {directory!r} ({cause})")
            case "cut":
                continue  # the connection was lost while the input was sent
            case _:
                raise SSHError(f"{failure}: the container has not described it", stage="command")


async def find_jobs(source: ConnectionSource, name: str | None = None) -> list[AsyncJob]:
    """Return the jobs of a container, or the one of that name."""
    from netmind_rentgpu.ssh.job_scripts import job_action, jobs_in

    output = await _run(source, job_action("list", name or "", ""), "cannot list the jobs")
    return [AsyncJob(source, found) for found in jobs_in(output)]


async def find_job(source: ConnectionSource, name: str) -> AsyncJob:
    """Return a container's job of that name; see `AsyncShell.job`."""
    from netmind_rentgpu.ssh.job_scripts import checked_name

    for job in await find_jobs(source, checked_name(name)):
        return job
    raise JobNotFoundError(f"the container has no job {name}; jobs() lists those that it has", name=name)


async def _run(source: ConnectionSource, action: JobAction, failure: str, *, is_long: bool = False) -> str:
    """Run an action to its end, over another connection if one is lost, and return its output.

    Args:
        failure: the beginning of the error's text if the action fails.
        is_long: True for an action that lasts.

    Raises:
        SSHError: it failed, or no connection could be made for too long.
    """
    from netmind_rentgpu.ssh.commands import Command, prepared
    from netmind_rentgpu.ssh.output import Capture
    from netmind_rentgpu.ssh.running import run_command

    outage = _Outage(source)
    while True:
        use = ConnectionUse(source, is_long=is_long)
        try:
            captured = Capture(_MOST_OUTPUT)
            running = Command(prepared(action.command, None, action.input), captured)
            async with use as connection:
                done = await run_command(
                    connection, running, captured, running.feed_and_wait, check=False, timeout=None
                )
        except RentGPUError as error:
            await outage.pause_after(error, use.connection)
        else:
            break
    if not done.ok:
        raise _failed(connection, failure, done.stderr, done)
    return done.stdout


def _failed(connection: ShellConnection, failure: str, problem: str, result: CommandResult) -> SSHError:
    shown = "; ".join(problem.split("\n")).strip("; ") or f"it ended with status {result.exit_status}"
    return SSHError(f"{connection.label}: {failure}: {shown}", stage="command", result=result)


class _Outage:
    """The time for which a call has had no connection that lasts."""

    def __init__(self, source: ConnectionSource) -> None:
        self._source = source
        self._now: Callable[[], float] = asyncio.get_running_loop().time
        self.is_over()

    def is_over(self) -> None:
        """Record that the connection works."""
        self._until: float | None = None
        self._pauses = backoff()
        self._begun_at = self._now()

    async def pause_after(self, error: RentGPUError, connection: ShellConnection | None) -> None:
        """Pause before the next attempt, or raise an error that no other connection would mend, or after too long a time.

        Args:
            connection: the connection that has failed; None if there was none.
        """
        if connection is not None and connection.closed:
            # The source knows why it was closed, and raises an error that says so.
            await self._source.usable_connection()
        is_lost = isinstance(error, SSHError) and error.stage in ("name", "connection")
        if not is_lost and not isinstance(error, TransportError):
            raise error
        longest = self._source.longest_outage
        if connection is not None and self._now() - self._begun_at > longest / 10:
            # It has lasted, so this is another outage.
            self.is_over()
        if self._until is None:
            self._until = self._now() + longest
        if self._now() >= self._until:
            raise error
        await asyncio.sleep(next(self._pauses))
        self._begun_at = self._now()
