"""Connections to ports inside containers, by way of SSH."""

from __future__ import annotations

import asyncio

import asyncssh
from asyncssh.constants import OPEN_CONNECT_FAILED

__all__ = ["connected"]


async def connected(host: str, port: int) -> Outer:
    """Connect to a port; what is returned is what asyncssh takes for a session.

    Raises:
        asyncssh.ChannelOpenError: nobody listens there.
    """
    try:
        _, inner = await asyncio.get_running_loop().create_connection(_Inner, host, port)
    except OSError as error:
        raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, str(error)) from None
    return Outer(inner)


class _Inner(asyncssh.SSHForwarder):
    """The end at the port. A server may speak before the channel is open: asyncssh 2.24 loses that where uvloop reads it."""

    def __init__(self) -> None:
        super().__init__()
        self._is_open = self._has_ended = self._is_lost = False
        self._said = b""

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        if self._is_open:
            super().data_received(data, datatype)
        else:
            self._said += data

    def eof_received(self) -> bool:
        self._has_ended = True
        return super().eof_received() if self._is_open else True

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        if self._is_open:
            super().connection_lost(exc)

    def open(self) -> None:
        """Say what was said before."""
        self._is_open = True
        if self._said:
            super().data_received(self._said)
        if self._has_ended:
            super().eof_received()
        if self._is_lost:
            super().connection_lost(None)


class Outer(asyncssh.SSHForwarder):
    """The end at the channel."""

    def __init__(self, inner: _Inner) -> None:
        super().__init__(inner)
        self._inner = inner

    def session_started(self) -> None:
        self._inner.open()
