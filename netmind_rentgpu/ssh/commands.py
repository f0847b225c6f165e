"""Commands on a container: started, fed, listened to, and ended together with whoever waits for them."""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

import asyncssh
import attrs
from asyncssh.constants import EXTENDED_DATA_STDERR

from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.results import CommandResult
from netmind_rentgpu.ssh.arguments import text

__all__ = ["Capture", "Command", "Lines", "Output", "Prepared", "prepared"]

_PIECE = 64 * 1024
_LONGEST_LINE = 1024 * 1024
_MOST_WAITING = 1024 * 1024
_COST_OF_A_LINE = 100
# How long a command that is told to end gets for it, before it is killed; and then, before it is left.
_TERMINATION, _KILL = 2.0, 2.0
# After which a server that has no room for one more command is asked again.
_PAUSES = (0.02, 0.1, 0.3, 1.0, 2.0)
# Of what a system takes as one argument or variable, with room for the rest of it.
_LONGEST = 120_000
_NAMES = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789")


class Output(Protocol):
    """Takes what a command writes."""

    def take(self, data: bytes, *, error: bool) -> bool:
        """Take a piece; tell whether more is welcome at once."""
        ...


class Capture:
    """The ends of what a command writes, within a bound.

    Attributes:
        truncated: it wrote more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._pieces: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self._sizes = [0, 0]
        self.truncated: bool = False

    def take(self, data: bytes, *, error: bool) -> bool:
        """Keep a piece, and let go what has become too old."""
        pieces = self._pieces[error]
        pieces.append(data)
        self._sizes[error] += len(data)
        while self._sizes[error] > self._most:
            self.truncated = True
            surplus = self._sizes[error] - self._most
            first = pieces.popleft()
            if len(first) > surplus:
                pieces.appendleft(first[surplus:])
            self._sizes[error] -= min(surplus, len(first))
        return True

    def text(self, *, error: bool) -> str:
        """Return what was kept."""
        return b"".join(self._pieces[error]).decode(errors="replace")


class Lines:
    """What a command writes, line by line, in the order in which it came."""

    def __init__(self) -> None:
        self._begun = [b"", b""]
        self._whole: deque[tuple[str, bool]] = deque()
        self._waiting = 0

    def take(self, data: bytes, *, error: bool) -> bool:
        """Take a piece apart."""
        *lines, rest = (self._begun[error] + data).split(b"\n")
        while len(rest) > _LONGEST_LINE:
            lines.append(rest[:_LONGEST_LINE])
            rest = rest[_LONGEST_LINE:]
        self._begun[error] = rest
        for line in lines:
            self._add(line, error=error)
        return self.room

    @property
    def room(self) -> bool:
        """More is welcome."""
        return self._waiting < _MOST_WAITING

    def finish(self) -> None:
        """Take what was begun for lines."""
        for error, rest in enumerate(self._begun):
            if rest:
                self._add(rest, error=bool(error))
        self._begun = [b"", b""]

    def next(self) -> tuple[str, bool] | None:
        """Return the next line, and whether it was written as an error; None if there is none yet."""
        if not self._whole:
            return None
        line, error = self._whole.popleft()
        self._waiting -= len(line) + _COST_OF_A_LINE
        return line, error

    def _add(self, line: bytes, *, error: bool) -> None:
        text = line.removesuffix(b"\r").decode(errors="replace")
        self._waiting += len(text) + _COST_OF_A_LINE
        self._whole.append((text, error))


class Command(asyncssh.SSHClientSession[bytes]):
    """One command that runs, or has run.

    Attributes:
        exit_status, exit_signal: how it ended, where the server said so.
        cut_off: it was told to end.
    """

    def __init__(self, prepared: Prepared, output: Output) -> None:
        self._prepared = prepared
        self._output = output
        self._connection: asyncssh.SSHClientConnection | None = None
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._starting: asyncio.Task[Any] | None = None
        # What has come before its process id.
        self._head = b""
        self._leader: int | None = None
        self._told = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._news = asyncio.Event()
        self._closed = asyncio.Event()
        self.exit_status: int | None = None
        self.exit_signal: str | None = None
        self.cut_off: bool = False

    async def start(self, connection: asyncssh.SSHClientConnection) -> None:
        """Start it. Where this is cut off, it may run all the same: `end` sees to that.

        Raises:
            OSError, asyncssh.Error: it cannot be.
        """
        self._connection = connection
        # A task of its own: a channel whose opening is cut off would stay open for good.
        self._starting = asyncio.get_running_loop().create_task(self._start(connection))
        # How it failed is of no interest where the caller was cancelled meanwhile.
        self._starting.add_done_callback(lambda starting: starting.cancelled() or starting.exception())
        await asyncio.shield(self._starting)

    async def _start(self, connection: asyncssh.SSHClientConnection) -> None:
        pauses = iter(_PAUSES)
        while True:
            try:
                await connection.create_session(lambda: self, self._prepared.line, encoding=None, request_pty=False)  # pyright: ignore[reportUnknownMemberType]  # its **kwargs
            except asyncssh.ChannelOpenError:
                # It was not started. A server may still count a command that has just ended.
                pause = next(pauses, None)
                if pause is None or connection.is_closed():
                    raise
                await asyncio.sleep(pause)
            else:
                return

    def result(self, captured: Capture | None = None) -> CommandResult:
        """Return what came of it until now."""
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
        """It has ended, or the connection has."""
        return self._closed.is_set()

    async def feed(self) -> None:
        """Write its input, and end that; what it does not want to read is left."""
        channel, data = self._channel, self._prepared.given
        if channel is None:
            return
        with suppress(OSError):
            for start in range(0, len(data), _PIECE):
                await self._may_write.wait()
                channel.write(data[start : start + _PIECE])  # pyright: ignore[reportUnknownMemberType]  # AnyStr is lost on it
            channel.write_eof()

    async def wait(self) -> None:
        """Wait until it has ended."""
        await self._closed.wait()

    async def news(self) -> None:
        """Wait until it has written something, or ended."""
        await self._news.wait()
        if not self.closed:
            self._news.clear()

    def go_on(self) -> None:
        """Take more of what it writes."""
        if self._channel is not None and not self.closed:
            self._channel.resume_reading()

    async def end(self, turn: asyncio.Lock) -> None:
        """Have it end, with all that it started in its group, within a bound.

        Args:
            turn: whose it is to have a command of its own for that.
        """
        self.cut_off = True
        # What it still writes is not for anybody, and must not keep it.
        self._output = _Nobody()
        if self._starting is not None:
            await asyncio.wait({self._starting}, timeout=_TERMINATION)
            if not self._starting.done():
                self._starting.cancel()
        for name, seconds in (("TERM", _TERMINATION), ("KILL", _KILL)):
            if self.closed or self._channel is None:
                return
            self.go_on()
            with suppress(TimeoutError, OSError, asyncssh.Error):
                async with asyncio.timeout(seconds):
                    await self._told.wait()
                async with asyncio.timeout(seconds), turn:
                    await self._signal(name)
                async with asyncio.timeout(seconds):
                    await self._closed.wait()
        self._abandon()

    async def _signal(self, name: str) -> None:
        """Send its process group a signal. OpenSSH takes no signals for root's commands, so another command does it."""
        if self._leader is None or self._connection is None or self.closed:
            return
        # As POSIX has it, which dash insists on; as others take it; and at least the leader.
        ways = (f"-s {name} -- -{self._leader}", f"-{name} -{self._leader}", f"-{name} {self._leader}")
        kill = " || ".join(f"kill {way} 2>/dev/null" for way in ways)
        await self._connection.run(kill, encoding=None, stdin=asyncssh.DEVNULL)

    def _abandon(self) -> None:
        if self._channel is not None:
            self._channel.abort()

    def _without_mark(self, data: bytes) -> bytes:
        """Find the process id in what it writes first, and leave that out.

        What a login's own script says comes before it, and once more after it, from the shell that runs the command.
        """
        self._head += data
        found = re.search(rb"%s (\d+)\n" % self._prepared.mark, self._head)
        if found is None and len(self._head) < _PIECE:
            return b""
        whole, self._head = self._head, b""
        self._told.set()
        if found is None:
            return whole
        self._leader = int(found[1])
        return whole[found.end() :]

    # What asyncssh tells.

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        error = datatype == EXTENDED_DATA_STDERR
        if not error and not self._told.is_set():
            data = self._without_mark(data)
        if data:
            self._take(data, error=error)

    def _take(self, data: bytes, *, error: bool) -> None:
        if not self._output.take(data, error=error) and self._channel is not None:
            self._channel.pause_reading()
        self._news.set()

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
            self._take(self._head, error=False)
        self._told.set()
        self._closed.set()
        self._news.set()
        self._may_write.set()


class _Nobody:
    """Takes everything and keeps nothing."""

    def take(self, data: bytes, *, error: bool) -> bool:
        del data, error
        return True


@attrs.frozen
class Prepared:
    """A command as it is sent.

    Attributes:
        command: as it was given.
        line: what the login's shell is to run.
        mark: what stands before the process id that is written first.
        given: all that is to be read there.
    """

    command: str
    line: str
    mark: bytes
    given: bytes = attrs.field(repr=False)


def prepared(command: str, environment: Mapping[str, str] | None, given: str | bytes | None) -> Prepared:
    """Prepare a command: it tells its process id, takes its variables, and goes on in the login's shell.

    Servers refuse most variables, and say nothing; on a command line anybody in the container could read them. So they come
    as input, of which the shell reads just so many bytes.

    Args:
        given: the command's own input.

    Raises:
        InvalidArgumentError: what is no command, or a variable that can be none.
    """
    text("command", command)
    if isinstance(given, str):
        text("input", given.replace("\0", "") or "-")
        given = given.encode()
    elif given is not None and not isinstance(given, (bytes, bytearray, memoryview)):
        raise InvalidArgumentError("input", f"must be a text or bytes, not {type(given).__name__}")
    given = bytes(given or b"")
    mark = f"netmind-{secrets.token_hex(8)}"
    script = f"echo {mark} $$; "
    if environment:
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in _checked(environment)).encode()
        # Byte by byte, or dd would take what is the command's.
        script += f'eval "$(dd bs=1 count={len(exports)} 2>/dev/null)"; '
        given = exports + given
    script += 'exec "${SHELL:-/bin/sh}" -c "$1"'
    line = f"exec /bin/sh -c {shlex.quote(script)} sh {shlex.quote(command)}"
    if len(line.encode()) > _LONGEST:
        raise InvalidArgumentError("command", f"must not be longer than {_LONGEST:,} bytes: upload it, and run that")
    return Prepared(command, line, mark.encode(), given)


def _checked(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if not isinstance(environment, Mapping):
        raise InvalidArgumentError("environment", f"must give each name a text, not {type(environment).__name__}")
    for name, value in environment.items():
        if not isinstance(name, str) or not name or name[0].isdigit() or not _NAMES.issuperset(name):
            raise InvalidArgumentError("environment", f"{name!r} can be no variable's name")
        if value or not isinstance(value, str):
            text("environment", value)
        if len(value.encode()) > _LONGEST:
            raise InvalidArgumentError("environment", f"{name} must not be longer than {_LONGEST:,} bytes")
        yield name, value
