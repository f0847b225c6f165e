"""The results of a shell's commands and transfers. Values without I/O."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final, Literal, TypeAlias

import attrs

from netmind_rentgpu.tables import html_text

__all__ = [
    "ActivityReading",
    "CommandResult",
    "JobState",
    "JobStatus",
    "OnTransferProgress",
    "OutputLine",
    "TransferProgress",
]

_LEAST_GPU_USE: Final = 5


@attrs.frozen(kw_only=True)
class ActivityReading:
    """The signs that a container was in use at one moment, as one login over SSH sees them.

    A login knows a process of another login by the variable SSH_CONNECTION in its environment. A process that was started
    without that variable, or has overwritten its environment, is not counted; neither is a process of another user, if the
    login may not read its environment. A connection counts from its first moment, also before a login.

    Attributes:
        read_at: the moment of the reading, in UTC and by the clock of this machine.
        processes: the running processes that a login has started: commands, jobs, sessions, and processes that these have
            left behind; None if they could not be counted.
        connections: the SSH connections to the container, without the connection that the reading used; None if they could
            not be counted.
        gpu_use: the use of each GPU in percent; None if it could not be read.
        operations: the commands, copies and forwards of this client that are under way, or were since the last reading.
        unknown: a sentence for each field that is None, with the cause; empty if there is none.
    """

    read_at: datetime
    processes: int | None
    connections: int | None
    gpu_use: tuple[int, ...] | None
    operations: int
    unknown: tuple[str, ...] = ()

    @property
    def is_busy(self) -> bool:
        """True if anything runs or is connected, a GPU is in use by 5 % or more, no GPU is listed, or a field is unknown."""
        if self.processes is None or self.connections is None or not self.gpu_use:
            return True
        return bool(self.processes or self.connections or self.operations) or max(self.gpu_use) >= _LEAST_GPU_USE


@attrs.frozen(kw_only=True)
class CommandResult:
    """The result of a command. Its `str` is the command's stdout; a notebook shows both outputs and the status.

    Attributes:
        command: the command as the caller gave it.
        exit_status: the exit status, 0 for success; None if a signal ended the command, or its end was not seen.
        exit_signal: the name, without SIG, of the signal that ended the command, such as `TERM`; else None.
        stdout, stderr: the output, decoded as UTF-8, with invalid bytes replaced.
        truncated: True if `stdout` or `stderr` was longer than the limit, so that it holds only the end.
    """

    command: str
    exit_status: int | None
    exit_signal: str | None = None
    stdout: str = attrs.field(repr=False)
    stderr: str = attrs.field(repr=False)
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """True if the exit status is 0."""
        return self.exit_status == 0

    def __str__(self) -> str:
        return self.stdout

    def _repr_html_(self) -> str:
        end = f"exit status {self.exit_status}"
        if self.exit_status is None:
            end = f"ended by signal {self.exit_signal}" if self.exit_signal else "its end was not seen"
        parts = [f"<div><code>{html_text(self.command)}</code>: {html_text(end)}</div>"]
        if self.truncated:
            parts.append("<div>the output was longer; this is its end</div>")
        parts += [
            f'<div>{name}</div><pre class="{name}">{html_text(_as_on_a_terminal(text))}</pre>'
            for name, text in (("stdout", self.stdout), ("stderr", self.stderr))
            if text
        ]
        return "".join(parts)


def _as_on_a_terminal(text: str) -> str:
    """Return a text without what a carriage return lets later text replace, such as the updates of a progress bar."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)


@attrs.frozen
class OutputLine:
    """A line that a command wrote.

    Attributes:
        text: the line, without its line end.
        stream: the stream to which the command wrote the line.
        is_update: True for the present text of a line that a carriage return begins again, as a progress bar does: the next
            line of the stream replaces it, and may repeat it.
        position: for a line of a job's log, the place behind it, by which `logs(after=...)` goes on; else None.
        time: for a line of a job's log, the moment at which its end was written, to a second and by the container's clock;
            else None.
    """

    text: str
    stream: Literal["stdout", "stderr"]
    is_update: bool = False
    position: str | None = None
    time: datetime | None = None

    def __str__(self) -> str:
        return self.text


JobState: TypeAlias = Literal["running", "exited", "signaled", "lost"]
"""The state of a job: it runs, it has exited, a signal has ended it, or its end is not known (`JobStatus.state`)."""


@attrs.frozen(kw_only=True)
class JobStatus:
    """The status of a job. Its moments are those of the container's clock, in UTC.

    Attributes:
        name: the job's name.
        command: the command that it runs.
        state: `running`, `exited`, `signaled`, or `lost` if the container was restarted, or the job's supervisor killed:
            then it is not known how the job has ended, or if it has.
        exit_status: the exit status, 0 for success; None unless the state is `exited`.
        exit_signal: the name, without SIG, of the signal that ended the job, such as `KILL`; else None. A shell reports a
            signal as a status of 128 and its number, so a job that exits with such a status itself is read as signaled.
        started_at: the moment of the start; None if it is not known.
        ended_at: the moment of the end; None while the job runs, and if it is not known.
        is_over: True unless the job's first process still runs, for all that is known; that of a lost job may.
        stdout_size, stderr_size: the bytes that the job has written.
    """

    name: str
    command: str
    state: JobState
    exit_status: int | None
    exit_signal: str | None
    started_at: datetime | None
    ended_at: datetime | None
    is_over: bool
    stdout_size: int
    stderr_size: int

    @property
    def ok(self) -> bool:
        """True if the job has exited with status 0."""
        return self.exit_status == 0


@attrs.frozen(kw_only=True)
class TransferProgress:
    """The progress of an upload or a download.

    Attributes:
        path: the path of the file that has just progressed: below the copied folder, or, if a single file is copied, as the
            caller gave it.
        bytes_done, bytes_total: the numbers of copied bytes and of all bytes, over all files.
        files_done, files_total: the numbers of files that have arrived under their final names, and of all files.
        skipped: the paths, below the copied folder, of what is not copied: links that lead nowhere, sockets, pipes and
            devices. Each report has all of them.
    """

    path: str
    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int
    skipped: tuple[str, ...] = ()


OnTransferProgress: TypeAlias = Callable[[TransferProgress], object]
