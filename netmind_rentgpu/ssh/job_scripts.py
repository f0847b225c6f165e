"""The commands that act on jobs, and their answers: the client's side of `job.sh`. Pure."""

from __future__ import annotations

import json
import re
import secrets
import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Final

import attrs

from netmind_rentgpu.arguments import shown_value
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.results import JobState, JobStatus
from netmind_rentgpu.ssh.arguments import text
from netmind_rentgpu.ssh.commands import LONGEST_ARGUMENT, exports, input_bytes

__all__ = [
    "ANSWER",
    "FoundJob",
    "JobAction",
    "answer_of",
    "checked_name",
    "given_to_job",
    "job_action",
    "jobs_in",
    "moment_from",
    "new_job_id",
    "new_job_name",
]

ANSWER: Final = "netmind-job"
"""The first word of each line that `job.sh` prints for the client. A login's startup script may print other lines."""
LONGEST_INPUT: Final = 64 * 1024
_SCRIPT: Final = files("netmind_rentgpu.ssh").joinpath("job.sh").read_text(encoding="utf-8").rstrip("\n")
# The script comes by standard input, because each shell has quotes of its own. dd reads no byte of what follows it.
_LINE: Final = (
    """exec /bin/sh -c 'script=$(dd bs=1 count=$1 2>/dev/null); eval "$script"' netmind-job {length} {arguments}"""
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED: Final = "netmind_"
# By their numbers in Linux, which containers run, on processors of the x86 and ARM families.
_SIGNALS: Final = (
    "",
    *(
        "HUP",
        "INT",
        "QUIT",
        "ILL",
        "TRAP",
        "ABRT",
        "BUS",
        "FPE",
        "KILL",
        "USR1",
        "SEGV",
        "USR2",
        "PIPE",
        "ALRM",
        "TERM",
    ),
    *("STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH"),
    *("IO", "PWR", "SYS"),
)


@attrs.frozen
class JobAction:
    """A command that acts on jobs.

    Attributes:
        command: the command line.
        input: the command's standard input.
    """

    command: str
    input: bytes = attrs.field(repr=False)


def job_action(action: str, *arguments: str | int, given: bytes = b"") -> JobAction:
    """Return the command for an action of `job.sh`.

    Args:
        given: the action's own input.
    """
    script = _SCRIPT.encode()
    words = " ".join(shlex.quote(str(argument)) for argument in (action, *arguments))
    return JobAction(_LINE.format(length=len(script), arguments=words), script + given)


def checked_name(name: str) -> str:
    """Return the name of a job as it is.

    Raises:
        InvalidArgumentError: it cannot be the name of a job.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        problem = (
            "must have 1 to 64 ASCII letters, digits, dots, dashes and underscores, and begin with a letter or a digit:"
            f" {shown_value(name)}"
        )
        raise InvalidArgumentError("name", problem)
    return name


def new_job_name() -> str:
    """Return a name for a job that its user has not named."""
    return f"job-{secrets.token_hex(4)}"


def new_job_id() -> str:
    """Return a new id, which no other job has, and by which its processes are found."""
    return secrets.token_hex(12)


def given_to_job(
    job_id: str,
    command: str,
    *,
    environment: Mapping[str, str] | None,
    directory: str | None,
    given: str | bytes | None,
) -> bytes:
    """Return what a job needs, as a text for the shell, which comes by standard input and is kept in no file.

    Args:
        environment: the job's variables.
        directory: the folder to start in; None for the login's home folder.
        given: the job's standard input.

    Raises:
        InvalidArgumentError: an argument cannot be used.
    """
    size = len(text("command", command).encode())
    if size > LONGEST_ARGUMENT:
        problem = f"has {size:,} bytes, and {LONGEST_ARGUMENT:,} is the limit; upload it as a script, and start that"
        raise InvalidArgumentError("command", problem)
    data = input_bytes(given)
    if len(data) > LONGEST_INPUT:
        problem = f"has {len(data):,} bytes, and {LONGEST_INPUT:,} is the limit; upload it as a file"
        raise InvalidArgumentError("input", problem)
    for name in environment or ():
        if isinstance(name, str) and name.startswith(_RESERVED):
            raise InvalidArgumentError("environment", f"{name} is reserved: names may not begin with {_RESERVED}")
    values = {
        "directory": "." if directory is None else text("directory", directory),
        "command": command,
        "shown": json.dumps(command),
        "input": _escaped(data),
    }
    lines = "".join(f"{_RESERVED}{name}={shlex.quote(value)}\n" for name, value in values.items())
    # By the last line, the container sees that nothing was cut off.
    return f"{exports(environment)}{lines}{_RESERVED}complete={job_id}".encode()


def _escaped(data: bytes) -> str:
    """Return bytes as a format of the shell's printf, which can hold null bytes; a variable of the shell cannot."""
    return "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\{byte:03o}" for byte in data)


def answer_of(output: str) -> tuple[str, str]:
    """Return the last answer in a command's output: its first word and the rest; empty texts if there is none."""
    answers = [line for line in output.splitlines() if line.startswith(f"{ANSWER} ")]
    if not answers:
        return "", ""
    word, _, rest = answers[-1].removeprefix(f"{ANSWER} ").partition(" ")
    return word, rest


@attrs.frozen
class FoundJob:
    """A job, as its container describes it.

    Attributes:
        id: the id, which no other job has.
        status: the state.
    """

    id: str
    status: JobStatus


def jobs_in(output: str) -> Iterator[FoundJob]:
    """Yield the jobs that an output describes, each by a line."""
    begin = f"{ANSWER} job "
    for line in output.splitlines():
        if not line.startswith(begin):
            continue
        fields = line.removeprefix(begin).split(" ", 8)
        if len(fields) == 9:
            name, job_id, is_running, status, began, ended, out, err, command = fields
            state, exit_status, exit_signal = _end_of(status, is_running=is_running == "yes")
            yield FoundJob(
                job_id,
                JobStatus(
                    name=name,
                    command=_command(command),
                    state=state,
                    exit_status=exit_status,
                    exit_signal=exit_signal,
                    started_at=moment_from(began),
                    ended_at=moment_from(ended),
                    is_over=_number(status) is not None or is_running == "no",
                    stdout_size=_number(out) or 0,
                    stderr_size=_number(err) or 0,
                ),
            )


def _end_of(status: str, *, is_running: bool) -> tuple[JobState, int | None, str | None]:
    """Return the state, the exit status and the signal of a job."""
    number = _number(status)
    if number is None:
        return ("running" if is_running else "lost"), None, None
    if 0 < number - 128 < len(_SIGNALS):
        return "signaled", None, _SIGNALS[number - 128]
    return "exited", number, None


def _command(shown: str) -> str:
    try:
        return str(json.loads(shown))
    except ValueError:
        return ""


def _number(value: str) -> int | None:
    return int(value) if value.isascii() and value.isdecimal() and len(value) <= 18 else None


def moment_from(value: str) -> datetime | None:
    """Return the moment of a number of seconds since 1970; None if it is no such number."""
    seconds = _number(value)
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None
