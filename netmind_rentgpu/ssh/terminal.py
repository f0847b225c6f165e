"""The user's terminal, connected to one on a container. Windows cannot import this module."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Generator
from contextlib import contextmanager, suppress

import asyncssh

from netmind_rentgpu.errors import ClientStateError
from netmind_rentgpu.results import CommandResult
from netmind_rentgpu.ssh.connection import ShellConnection
from netmind_rentgpu.ssh.refusals import open_patiently

__all__ = ["Terminal", "run_terminal"]

_PIECE = 64 * 1024
_MOST_WAITING = 1024 * 1024
# Seconds between looks at the terminal's size. Only the main thread gets the signal for a new size, and a program may
# handle that signal itself.
_BETWEEN_SIZES = 0.25


async def run_terminal(connection: ShellConnection, command: str | None) -> CommandResult:
    """Connect the user's terminal to one on the container; `AsyncShell.interact` documents the result and the errors."""
    terminal = Terminal()
    turns = connection.operations.turns
    try:
        # A terminal takes a session of the reserve.
        await turns.claim_reserve()
        with connection.failing("command", "cannot open a terminal"):
            await terminal.run(connection.connected(), command)
    finally:
        turns.return_reserve()
    if terminal.exit_status is None and terminal.exit_signal is None:
        raise connection.lost_error()
    return CommandResult(
        command=command or "",
        exit_status=terminal.exit_status,
        exit_signal=terminal.exit_signal,
        stdout="",
        stderr="",
    )


class Terminal(asyncssh.SSHClientSession[bytes]):
    """A command or a login shell that is connected to the user's own terminal.

    Attributes:
        exit_status, exit_signal: how the command or shell ended; None where the server did not report it.
    """

    def __init__(self) -> None:
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._closed = asyncio.Event()
        self._waiting = bytearray()
        self._descriptor = -1
        self._left = False
        self.exit_status: int | None = None
        self.exit_signal: str | None = None

    async def run(self, connection: asyncssh.SSHClientConnection, command: str | None) -> None:
        """Connect both terminals until the command or shell has ended.

        Raises:
            ClientStateError: this program has no terminal.
            OSError, asyncssh.Error: the session could not be opened.
        """
        if sys.platform == "win32":
            raise NotImplementedError
        with _raw_terminal() as self._descriptor:
            loop = asyncio.get_running_loop()
            size = os.get_terminal_size(self._descriptor)
            # Never cancel the opening: otherwise the server may keep an unknown session, and it allows only a few.
            opening = loop.create_task(self._open(connection, command, size))
            try:
                await asyncio.shield(opening)
                loop.add_reader(self._descriptor, self._typed)
                while not self._closed.is_set():
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._closed.wait(), _BETWEEN_SIZES)
                    now = os.get_terminal_size(self._descriptor)
                    if now != size and self._channel is not None and not self._closed.is_set():
                        size = now
                        self._channel.change_terminal_size(size.columns, size.lines)
            finally:
                loop.remove_reader(self._descriptor)
                loop.remove_writer(self._descriptor)
                self._left = True
                opening.add_done_callback(lambda _: self._leave())
            # Show the last output, because the writer was removed above.
            os.set_blocking(self._descriptor, True)
            while self._waiting:
                del self._waiting[: os.write(self._descriptor, self._waiting)]

    async def _open(
        self, connection: asyncssh.SSHClientConnection, command: str | None, size: os.terminal_size
    ) -> None:
        await open_patiently(
            connection,
            lambda: connection.create_session(  # pyright: ignore[reportUnknownMemberType, reportUnknownLambdaType]  # untyped **kwargs
                lambda: self,
                command,
                encoding=None,
                request_pty="force",
                term_type=os.environ.get("TERM", "xterm"),
                term_size=(size.columns, size.lines),
            ),
        )

    def _leave(self) -> None:
        if self._channel is not None:
            self._channel.close()

    def _typed(self) -> None:
        try:
            data = os.read(self._descriptor, _PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if self._channel is not None:
            with suppress(OSError):
                if data:
                    self._channel.write(data)  # pyright: ignore[reportUnknownMemberType]  # unsolved AnyStr
                else:
                    self._channel.write_eof()
        if not data:
            asyncio.get_running_loop().remove_reader(self._descriptor)

    def _show(self) -> None:
        with suppress(BlockingIOError):
            del self._waiting[: os.write(self._descriptor, self._waiting)]
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.remove_writer(self._descriptor)
        if len(self._waiting) < _MOST_WAITING and self._channel is not None and not self._closed.is_set():
            self._channel.resume_reading()

    # Callbacks that asyncssh calls.

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        del datatype
        if self._left:
            return
        self._waiting += data
        if len(self._waiting) >= _MOST_WAITING and self._channel is not None:
            self._channel.pause_reading()
        asyncio.get_running_loop().add_writer(self._descriptor, self._show)

    def exit_status_received(self, status: int) -> None:
        self.exit_status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:  # noqa: FBT001  # asyncssh's
        del core_dumped, msg, lang
        self.exit_signal = signal

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._closed.set()


@contextmanager
def _raw_terminal() -> Generator[int]:
    """Open the user's terminal in raw mode, which passes all keys on.

    The terminal gets a second descriptor, because reading the first without blocking would change it for other processes.
    """
    if sys.platform == "win32":
        raise NotImplementedError
    try:
        name = os.ttyname(sys.stdin.fileno())
    except (OSError, ValueError, AttributeError) as error:
        raise ClientStateError("cannot interact: standard input is not a terminal; use run() or stream()") from error
    descriptor = os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    before = termios.tcgetattr(descriptor)
    try:
        # TCSADRAIN keeps the keys that were typed ahead.
        tty.setraw(descriptor, termios.TCSADRAIN)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        os.close(descriptor)
