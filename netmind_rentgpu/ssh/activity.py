"""Readings of whether a container is in use: the client's side of `activity.sh`, which runs as one command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.resources import files
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from netmind_rentgpu.errors import SSHError, SSHTimeoutError
from netmind_rentgpu.escaping import escaped
from netmind_rentgpu.results import ActivityReading
from netmind_rentgpu.ssh.arguments import described
from netmind_rentgpu.ssh.connection import ShellConnection

__all__ = ["activity_command", "activity_from", "read_activity"]

# The first word of each line that `activity.sh` prints for the client. A login's startup script may print other lines.
_ANSWER: Final = "netmind-activity"
_SCRIPT: Final = files("netmind_rentgpu.ssh").joinpath("activity.sh").read_text(encoding="utf-8")
# The script comes by standard input, because each shell has quotes of its own.
_LINE: Final = "exec /bin/sh -c 'eval \"$(cat)\"' netmind-activity"
_LONGEST_READING = 30.0
_MOST_OUTPUT: Final = 1024 * 1024
_LONGEST_CAUSE: Final = 200


async def read_activity(connection: ShellConnection, operations: int) -> ActivityReading:
    """Read whether a container is in use, within 30 seconds, and some more to end a command that hangs.

    The reading takes the turn of one command, but only if a turn is free: otherwise it reads nothing. A field that cannot
    be read is None in the result.

    Args:
        operations: the commands, copies and forwards of this client that are under way, or were since the last reading.

    Raises:
        ClientStateError: the shell is not open, or was closed meanwhile.
    """
    from netmind_rentgpu.ssh.commands import Command, prepared
    from netmind_rentgpu.ssh.output import Capture
    from netmind_rentgpu.ssh.running import run_command

    connection.check_open()
    captured, failure = Capture(_MOST_OUTPUT), ""
    turns = connection.operations.turns
    if turns.has_free_turn:
        line, script = activity_command()
        running = Command(prepared(line, None, script), captured)
        try:
            done = await run_command(
                connection, running, captured, running.feed_and_wait, check=False, timeout=_LONGEST_READING
            )
            failure = "" if done.ok else described(done)
        except SSHTimeoutError:
            failure = f"no answer came within {_LONGEST_READING:g} s"
        except SSHError as error:
            failure = str(error)
    else:
        failure = f"{turns.limit.commands} commands run, and the connection allows no more at once"
    return activity_from(captured.text(error=False), operations=operations, read_at=datetime.now(UTC), failure=failure)


def activity_command() -> tuple[str, str]:
    """Return the command line that reads, and its standard input."""
    return _LINE, _SCRIPT


def activity_from(output: str, *, operations: int, read_at: datetime, failure: str = "") -> ActivityReading:
    """Return the reading that an output of `activity.sh` describes, which may lack its end.

    Args:
        operations, read_at: as in the reading.
        failure: the cause for which the output may lack answers; empty if none is known.
    """
    answers = _Answers(output, failure or "the container gave no answer")
    unknown: list[str] = []

    def known(read: Callable[[_Answers], Any], problem: str) -> Any:
        try:
            return read(answers)
        except _UnknownError as error:
            cause = escaped(" ".join(str(error).split()))[:_LONGEST_CAUSE]
            unknown.append(f"{problem}: {cause}")
            return None

    return ActivityReading(
        read_at=read_at,
        processes=known(_processes, "the processes that logins have started could not be counted"),
        connections=known(_connections, "the SSH connections could not be counted"),
        gpu_use=known(_gpu_use, "the use of the GPUs could not be read"),
        operations=operations,
        unknown=tuple(unknown),
    )


class _UnknownError(Exception):
    """A field cannot be read; the message is the cause."""


class _Answers:
    """The answers in an output.

    Attributes:
        connections: the local end and the remote end of each established connection.
        gpus: the lines of nvidia-smi.
    """

    def __init__(self, output: str, failure: str) -> None:
        self._failure = failure
        self._values: dict[str, str] = {}
        self._causes: dict[str, str] = {}
        self.connections: set[tuple[str, str]] = set()
        self.gpus: list[str] = []
        # Without the last piece, which is the beginning of a line if the output lacks its end.
        for line in output.split("\n")[:-1]:
            first, _, answer = line.partition(" ")
            if first == _ANSWER:
                self._add(answer)
            elif line.strip() and "gpus" in self._values and "gpus-read" not in self._values:
                self.gpus.append(line.strip())

    def _add(self, answer: str) -> None:
        name, _, value = answer.partition(" ")
        if name == "unknown":
            field, _, cause = value.partition(" ")
            self._causes[field] = cause
        elif name == "connection":
            local, _, remote = value.partition(" ")
            self.connections.add((local, remote))
        else:
            self._values[name] = value

    def value(self, name: str, field: str) -> str:
        """Return the value of an answer.

        Args:
            field: the field of the reading that needs it.

        Raises:
            _UnknownError: there is no such answer.
        """
        if name not in self._values:
            raise _UnknownError(self._causes.get(field, self._failure))
        return self._values[name]


def _processes(answers: _Answers) -> int:
    value = answers.value("processes", "processes")
    if not _is_number(value, digits=9):
        raise _UnknownError(f"the answer was {value!r}")
    return int(value)


def _connections(answers: _Answers) -> int:
    answers.value("connections-read", "connections")
    login = answers.value("login", "connections")
    address, _, rest = login.partition(" ")
    port = rest.partition(" ")[0]
    # The server may be outside the container, so that its connections are not to be seen here.
    if not any(_is_end(remote, _address(address), port) for _, remote in answers.connections):
        raise _UnknownError(f"/proc/net/tcp does not show the connection of the login from {address} port {port}")
    return len(answers.connections) - 1


def _gpu_use(answers: _Answers) -> tuple[int, ...]:
    status = answers.value("gpus-read", "gpu_use")
    if status != "0":
        raise _UnknownError(": ".join([f"nvidia-smi ended with status {status}", *answers.gpus[:1]]))
    for line in answers.gpus:
        if not _is_number(line, digits=3):
            raise _UnknownError(f"nvidia-smi reported {line!r}, which is no number")
    return tuple(map(int, answers.gpus))


def _is_number(value: str, *, digits: int) -> bool:
    return value.isascii() and value.isdecimal() and len(value) <= digits


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address without its zone, and as one of IPv4 if it is written as one of IPv6."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _is_end(end: str, address: IPv4Address | IPv6Address | None, port: str) -> bool:
    """Check if an end of a connection in /proc/net/tcp has an address and a port."""
    host, _, number = end.partition(":")
    try:
        return int(number, 16) == int(port) and address in _addresses(bytes.fromhex(host))
    except ValueError:
        return False


def _addresses(host: bytes) -> Iterator[IPv4Address | IPv6Address | None]:
    """Yield the addresses that the kernel may mean: it writes words of four bytes in the byte order of its processor."""
    words = [host[start : start + 4] for start in range(0, len(host), 4)]
    for ordered in (host, b"".join(word[::-1] for word in words)):
        yield _address(str(ip_address(ordered)))
