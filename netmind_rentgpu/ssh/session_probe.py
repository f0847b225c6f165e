"""A probe of how many more sessions a server allows on a connection: they are opened all at once, and then ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import asyncssh

from netmind_rentgpu.ssh.refusals import open_once
from netmind_rentgpu.ssh.turns import ProbeResult

__all__ = ["probe_sessions"]

# It runs until the end of its input, so that all sessions of a probe are open at once.
_COMMAND = "cat >/dev/null"
# Seconds for all sessions to open, and for all to end.
_OPENING, _ENDING = 10.0, 5.0


async def probe_sessions(
    connection: asyncssh.SSHClientConnection, count: int, running: Callable[[], int]
) -> ProbeResult:
    """Open a number of sessions at once, end them, and return how many were open together.

    Args:
        running: returns the number of commands that run over the connection.
    """
    sessions = [_Session() for _ in range(count)]
    # Never cancel an opening: otherwise the channel stays open for good.
    opening = [asyncio.create_task(session.open(connection)) for session in sessions]
    await asyncio.wait(opening, timeout=_OPENING)
    result = ProbeResult(
        opened=sum(session.is_open for session in sessions),
        refused=sum(session.is_refused for session in sessions),
        running=running(),
    )
    for session, task in zip(sessions, opening, strict=True):
        task.add_done_callback(session.end)
    # Wait for the server's own end of each session, because the server counts a session until then.
    with suppress(TimeoutError):
        async with asyncio.timeout(_ENDING):
            for session in sessions:
                if session.is_open:
                    await session.closed.wait()
    for session in sessions:
        session.abort()
    return result


class _Session(asyncssh.SSHClientSession[bytes]):
    """A session of a probe.

    Attributes:
        is_refused: True if it could not be opened.
        closed: set at its end.
    """

    def __init__(self) -> None:
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._started = False
        self.is_refused: bool = False
        self.closed: asyncio.Event = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """True from the start of its command until its end."""
        return self._started and not self.closed.is_set()

    async def open(self, connection: asyncssh.SSHClientConnection) -> None:
        """Open the session; return also if the server refuses it."""
        try:
            await open_once(
                connection,
                connection.create_session(lambda: self, _COMMAND, encoding=None, request_pty=False),  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  # untyped **kwargs
            )
        except (OSError, asyncssh.Error):
            self.is_refused = True
        else:
            self._started = True

    def end(self, _: object) -> None:
        """End the session's command by the end of its input."""
        if self._channel is not None and not self.closed.is_set():
            self._channel.write_eof()

    def abort(self) -> None:
        """Close the session if it is still open."""
        if self._channel is not None and not self.closed.is_set():
            self._channel.abort()

    # Callbacks that asyncssh calls.

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.closed.set()
