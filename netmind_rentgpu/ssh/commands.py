"""Commands on a container: started, fed, listened to, and ended together with whoever waits for them."""

from __future__ import annotations

import asyncio
import shlex
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

import asyncssh
from asyncssh.constants import EXTENDED_DATA_STDERR

from netmind_rentgpu.errors import InvalidArgumentError

__all__ = ["Capture", "Command", "Lines", "Output", "command_line"]

_PIECE = 64 * 1024
_LONGEST_LINE = 1024 * 1024
_MOST_WAITING = 1024 * 1024
# How long a command that is told to end gets for it, before it is killed; and then, before it is left.
_TERMINATION, _KILL = 2.0, 2.0
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
        self._waiting -= len(line)
        return line, error

    def _add(self, line: bytes, *, error: bool) -> None:
        text = line.removesuffix(b"\r").decode(errors="replace")
        self._waiting += len(text)
        self._whole.append((text, error))


class Command(asyncssh.SSHClientSession[bytes]):
    """One command that runs, or has run.

    Attributes:
        exit_status, exit_signal: how it ended, where the server said so.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._news = asyncio.Event()
        self._closed = asyncio.Event()
        self.exit_status: int | None = None
        self.exit_signal: str | None = None

    async def start(self, connection: asyncssh.SSHClientConnection, text: str) -> None:
        """Start it. Where this is cut off, it may run all the same: `end` sees to that.

        Raises:
            OSError, asyncssh.Error: it cannot be.
        """
        await connection.create_session(lambda: self, text, encoding=None, request_pty=False)  # pyright: ignore[reportUnknownMemberType]  # its **kwargs

    @property
    def closed(self) -> bool:
        """It has ended, or the connection has."""
        return self._closed.is_set()

    async def feed(self, data: bytes) -> None:
        """Write its input, and end that; what it does not want to read is left."""
        channel = self._channel
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

    async def end(self) -> None:
        """Tell it to end, and see that it does, within a bound."""
        for name, seconds in (("TERM", _TERMINATION), ("KILL", _KILL)):
            if self._channel is None or self.closed:
                return
            with suppress(OSError):
                self._channel.send_signal(name)
            # What it still writes is not for anybody, and must not keep it.
            self._output = _Nobody()
            self.go_on()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), seconds)
        self._abandon()

    def _abandon(self) -> None:
        if self._channel is not None:
            self._channel.abort()

    # What asyncssh tells.

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if not self._output.take(data, error=datatype == EXTENDED_DATA_STDERR) and self._channel is not None:
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
        self._closed.set()
        self._news.set()
        self._may_write.set()


class _Nobody:
    """Takes everything and keeps nothing."""

    def take(self, data: bytes, *, error: bool) -> bool:
        del data, error
        return True


def command_line(command: str, environment: Mapping[str, str] | None) -> tuple[str, bytes]:
    """Return what the container's shell is to run, and what is to stand before the command's input.

    Servers refuse most variables, and say nothing; on a command line anybody in the container could read them. So they come
    as input, of which the shell reads just so many bytes.

    Raises:
        InvalidArgumentError: a variable that can be none.
    """
    if not command or "\0" in command:
        raise InvalidArgumentError("command", "must be a text without null characters, and not empty")
    if not environment:
        return command, b""
    for name, value in environment.items():
        if not isinstance(name, str) or not isinstance(value, str) or "\0" in value:
            raise InvalidArgumentError("environment", f"{name!r} must be a text, and have one without null characters")
        if not name or name[0].isdigit() or not _NAMES.issuperset(name):
            raise InvalidArgumentError("environment", f"{name!r} can be no variable's name")
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()).encode()
    # Byte by byte, or dd would take what is the command's.
    script = f'eval "$(dd bs=1 count={len(exports)} 2>/dev/null)"\n{command}'
    return f'exec "${{SHELL:-/bin/sh}}" -c {shlex.quote(script)}', exports
