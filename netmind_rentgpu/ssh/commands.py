"""Commands on a container: starting them, sending input, receiving output, and ending them."""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

import asyncssh
import attrs
from asyncssh.constants import EXTENDED_DATA_STDERR

from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.results import CommandResult
from netmind_rentgpu.ssh.arguments import text
from netmind_rentgpu.ssh.output import Capture, Output
from netmind_rentgpu.ssh.refusals import open_once, open_patiently

__all__ = [
    "LONGEST_ARGUMENT",
    "Command",
    "Prepared",
    "Source",
    "exports",
    "input_bytes",
    "prepared",
]

_PIECE = 64 * 1024
# Seconds for each step of ending a command by SIGTERM, and then by SIGKILL, before its channel is aborted.
_TERMINATION, _KILL = 2.0, 2.0
# The most bytes of a command line or a variable's value, somewhat below what systems accept as one argument.
LONGEST_ARGUMENT: Final = 120_000
# Variables that a shell does not let others set, or that would change how it reads its commands.
_OF_SHELLS = frozenset({"BASHOPTS", "BASH_VERSINFO", "EUID", "IFS", "OPTIND", "PPID", "SHELLOPTS", "UID"})
_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789")


class Source(Protocol):
    """The input of a command, beyond that which it was prepared with."""

    async def read(self) -> bytes | memoryview:
        """Return the next piece; empty at the end."""
        ...


class Command(asyncssh.SSHClientSession[bytes]):
    """One command that runs, or has run.

    Attributes:
        exit_status, exit_signal: how the command ended; None where the server did not report it.
        cut_off: True if `end` was called.
    """

    def __init__(self, prepared: Prepared, output: Output) -> None:
        self._prepared = prepared
        self._output = output
        self._connection: asyncssh.SSHClientConnection | None = None
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._starting: asyncio.Task[Any] | None = None
        # The output that arrived before the line with the process id.
        self._head = b""
        self._leader: int | None = None
        self._head_passed = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._news = asyncio.Event()
        self._closed = asyncio.Event()
        self.exit_status: int | None = None
        self.exit_signal: str | None = None
        self.cut_off: bool = False

    async def start(self, connection: asyncssh.SSHClientConnection) -> None:
        """Start the command. A cancelled start may still lead to a running command, which `end` then ends.

        Raises:
            OSError, asyncssh.Error: the command could not be started.
        """
        self._connection = connection
        # This runs in a task of its own, because a channel whose opening is cancelled would stay open for good.
        self._starting = asyncio.get_running_loop().create_task(self._start(connection))
        # Mark the error as retrieved: a caller that was cancelled meanwhile does not want it, and asyncio would log it.
        self._starting.add_done_callback(lambda starting: starting.cancelled() or starting.exception())
        await asyncio.shield(self._starting)

    async def _start(self, connection: asyncssh.SSHClientConnection) -> None:
        line = self._prepared.line
        await open_patiently(
            connection,
            lambda: connection.create_session(lambda: self, line, encoding=None, request_pty=False),  # pyright: ignore[reportUnknownMemberType, reportUnknownLambdaType]  # untyped **kwargs
        )

    def result(self, captured: Capture | None = None) -> CommandResult:
        """Return the command's result as known so far."""
        return CommandResult(
            command=self._prepared.command,
            exit_status=self.exit_status,
            exit_signal=self.exit_signal,
            stdout=captured.text(error=False) if captured else "",
            stderr=captured.text(error=True) if captured else "",
            truncated=captured is not None and captured.truncated,
        )

    @property
    def closed(self) -> bool:
        """True if the command or its connection has ended."""
        return self._closed.is_set()

    @property
    def is_running(self) -> bool:
        """True if the server has accepted the command, and has not reported its end."""
        is_reported = self.exit_status is not None or self.exit_signal is not None
        return self._channel is not None and not self.closed and not is_reported

    @property
    def has_ended(self) -> bool:
        """True if the command ended by itself, and the server has reported how."""
        return not self.cut_off and self.closed and (self.exit_status is not None or self.exit_signal is not None)

    async def feed(self, source: Source | None = None) -> None:
        """Write the command's input and then end of file; drop the rest if the command ends first.

        Args:
            source: the input after that which the command was prepared with. No piece is read before there is room for it.
        """
        channel = self._channel
        if channel is None or not await self._write(channel, self._prepared.given):
            return
        while source is not None:
            await self._may_write.wait()
            if self.closed or not (piece := await source.read()):
                break
            if not await self._write(channel, piece):
                return
        with suppress(OSError):
            channel.write_eof()

    async def _write(self, channel: asyncssh.SSHClientChannel[bytes], data: bytes | memoryview) -> bool:
        """Write a piece of input, as fast as the command reads; return False if the command reads no more."""
        for start in range(0, len(data), _PIECE):
            await self._may_write.wait()
            try:
                channel.write(bytes(data[start : start + _PIECE]))  # pyright: ignore[reportUnknownMemberType]  # unsolved AnyStr
            except OSError:
                return False
        return True

    async def wait(self) -> None:
        """Wait until the command has ended."""
        await self._closed.wait()

    async def feed_and_wait(self) -> None:
        """Write the command's input, and wait until the command has ended."""
        await self.feed()
        await self.wait()

    async def news(self) -> None:
        """Wait until the command has written something, or has ended."""
        await self._news.wait()
        if not self.closed:
            self._news.clear()

    def go_on(self) -> None:
        """Resume reading what the command writes."""
        if self._channel is not None and not self.closed:
            self._channel.resume_reading()

    async def end(self, turn: asyncio.Lock) -> None:
        """End the command, with all that it started in its process group, in a limited time.

        Args:
            turn: the lock to hold while a second command sends the signal, because only one session is reserved for that.
        """
        self.cut_off = True
        # Discard further output, because a command that waits to write would not end.
        self._output = _Discard()
        if self._starting is not None:
            await asyncio.wait({self._starting}, timeout=_TERMINATION)
            if not self._starting.done():
                self._starting.cancel()
        for name, seconds in (("TERM", _TERMINATION), ("KILL", _KILL)):
            # asyncssh reports no end of a session that it made when the connection was already lost.
            if self.closed or self._channel is None or self._connection is None or self._connection.is_closed():
                return
            self.go_on()
            with suppress(TimeoutError, OSError, asyncssh.Error):
                async with asyncio.timeout(seconds):
                    await self._head_passed.wait()
                async with asyncio.timeout(seconds), turn:
                    await self._signal(name)
                async with asyncio.timeout(seconds):
                    await self._closed.wait()
        self._abandon()

    async def _signal(self, name: str) -> None:
        """Send the command's process group a signal, by a second command: OpenSSH accepts no signals for root's commands."""
        if self._leader is None or self._connection is None or self.closed:
            return
        # POSIX's form, which dash requires; the form that other shells accept; and a form that signals only the leader.
        ways = (f"-s {name} -- -{self._leader}", f"-{name} -{self._leader}", f"-{name} {self._leader}")
        kill = " || ".join(f"kill {way} 2>/dev/null" for way in ways)
        await open_once(self._connection, self._connection.run(kill, encoding=None, stdin=asyncssh.DEVNULL))

    def _abandon(self) -> None:
        if self._channel is not None:
            self._channel.abort()

    def _without_mark(self, data: bytes) -> bytes:
        """Find the line with the process id, and return the output after it; return nothing before the line arrives.

        The login's own startup script may write before this line, and also after it, in the shell that runs the command.
        """
        self._head += data
        found = re.search(rb"%s (\d+)\n" % self._prepared.mark, self._head)
        if found is None and len(self._head) < _PIECE:
            return b""
        whole, self._head = self._head, b""
        self._head_passed.set()
        if found is None:
            return whole
        self._leader = int(found[1])
        return whole[found.end() :]

    # Callbacks that asyncssh calls.

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        error = datatype == EXTENDED_DATA_STDERR
        if not error and not self._head_passed.is_set():
            data = self._without_mark(data)
        if data:
            self._deliver(data, error=error)

    def _deliver(self, data: bytes, *, error: bool) -> None:
        if not self._output.take(data, error=error) and self._channel is not None:
            self._channel.pause_reading()
        self._news.set()

    def eof_received(self) -> bool:
        # Keep the input open: otherwise asyncssh ends it when the command closes its outputs, although it may still read.
        return True

    def exit_status_received(self, status: int) -> None:
        self.exit_status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:  # noqa: FBT001  # asyncssh's
        del core_dumped, msg, lang
        self.exit_signal = signal

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._head:
            self._deliver(self._head, error=False)
        self._head_passed.set()
        self._closed.set()
        self._news.set()
        self._may_write.set()


class _Discard:
    """A receiver that keeps nothing."""

    def take(self, data: bytes, *, error: bool) -> bool:
        del data, error
        return True


@attrs.frozen
class Prepared:
    """A command in the form in which it is sent.

    Attributes:
        command: the command as the caller gave it.
        line: the command line for the login's shell.
        mark: the text before the process id in the line that is written first.
        given: all input to send: the variables, then the command's own.
    """

    command: str
    line: str
    mark: bytes
    given: bytes = attrs.field(repr=False)


def prepared(command: str, environment: Mapping[str, str] | None, given: str | bytes | None) -> Prepared:
    """Prepare a command line that writes its process id, reads its variables, and runs the command in the login's shell.

    Servers silently refuse most variables, and every process in the container can read a command line. So the variables are
    sent as input, of which the command line reads exactly their bytes.

    Args:
        given: the command's own input.

    Raises:
        InvalidArgumentError: the command, its input or a variable cannot be sent.
    """
    text("command", command)
    given = input_bytes(given)
    mark = f"netmind-{secrets.token_hex(8)}"
    script = f"echo {mark} $$; "
    if environment:
        exported = exports(environment).encode()
        # dd reads byte by byte, because larger blocks could include the command's own input.
        script += f'eval "$(dd bs=1 count={len(exported)} 2>/dev/null)"; '
        given = exported + given
    script += 'exec "${SHELL:-/bin/sh}" -c "$1"'
    line = f"exec /bin/sh -c {shlex.quote(script)} sh {shlex.quote(command)}"
    if (size := len(line.encode())) > LONGEST_ARGUMENT:
        limit = f"{LONGEST_ARGUMENT:,} is the limit"
        problem = f"takes {size:,} bytes as it is sent, and {limit}; upload it as a script, and run that"
        raise InvalidArgumentError("command", problem)
    return Prepared(command, line, mark.encode(), given)


def input_bytes(given: str | bytes | None) -> bytes:
    """Return a command's input as bytes.

    Raises:
        InvalidArgumentError: it is neither a text that can be sent, nor bytes.
    """
    if isinstance(given, str):
        text("input", given.replace("\0", "") or "-")
        return given.encode()
    if given is not None and not isinstance(given, (bytes, bytearray, memoryview)):
        raise InvalidArgumentError("input", f"must be a text or bytes, not {type(given).__name__}")
    return bytes(given or b"")


def exports(environment: Mapping[str, str] | None) -> str:
    """Return the lines of a shell that set and export variables.

    Raises:
        InvalidArgumentError: a name or a value cannot be one of a variable.
    """
    pairs = () if environment is None else _checked(environment)
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in pairs)


def _checked(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if not isinstance(environment, Mapping):
        raise InvalidArgumentError(
            "environment", f"must be a mapping of names to texts, not {type(environment).__name__}"
        )
    for name, value in environment.items():
        if not isinstance(name, str) or not name or name[0].isdigit() or not _NAME_CHARACTERS.issuperset(name):
            problem = (
                f"{name!r} is not a variable's name; use ASCII letters, digits and underscores, and no digit first"
            )
            raise InvalidArgumentError("environment", problem)
        if name in _OF_SHELLS:
            raise InvalidArgumentError("environment", f"{name} cannot be set, because shells keep it for themselves")
        if not isinstance(value, str):
            raise InvalidArgumentError("environment", f"{name} must be a text, not {type(value).__name__}")
        if "\0" in value:
            raise InvalidArgumentError("environment", f"{name} holds a null character, which no variable can hold")
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            problem = f"{name} holds half a character, which cannot be sent"
            raise InvalidArgumentError("environment", problem) from None
        if size > LONGEST_ARGUMENT:
            raise InvalidArgumentError(
                "environment", f"{name} has {size:,} bytes, and {LONGEST_ARGUMENT:,} is the limit"
            )
        yield name, value
