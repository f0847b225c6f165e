"""SSH channels that lead to ports of a container."""

from __future__ import annotations

import asyncio

import asyncssh
from asyncssh.constants import OPEN_CONNECT_FAILED

__all__ = ["connect_to_port"]


async def connect_to_port(host: str, port: int) -> ChannelEnd:
    """Connect to a port, and return the session that asyncssh connects to the channel.

    Raises:
        asyncssh.ChannelOpenError: the connection failed, for example because no server listens on the port.
    """
    loop = asyncio.get_running_loop()
    try:
        _, port_end = await loop.create_connection(_PortEnd, host, port)
    except OSError as error:
        raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, str(error)) from None
    session = ChannelEnd(port_end)
    # asyncssh connects the session in this turn of the loop, or never, if the client has gone meanwhile.
    loop.call_soon(session.close_unless_connected)
    return session


class _PortEnd(asyncssh.SSHForwarder):
    """The end of a forward at the port.

    It buffers data that the server sends before the channel is open, because asyncssh 2.24 loses this data on uvloop.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_open = self._has_ended = self._is_lost = False
        self._buffer = b""

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        if self._is_open:
            super().data_received(data, datatype)
        else:
            self._buffer += data

    def eof_received(self) -> bool:
        self._has_ended = True
        return super().eof_received() if self._is_open else True

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        if self._is_open:
            super().connection_lost(exc)

    def open(self) -> None:
        """Forward what arrived before the channel was open, and everything later at once."""
        self._is_open = True
        if self._buffer:
            super().data_received(self._buffer)
        if self._has_ended:
            super().eof_received()
        if self._is_lost:
            super().connection_lost(None)


class ChannelEnd(asyncssh.SSHForwarder):
    """The end of a forward at the SSH channel."""

    def __init__(self, port_end: _PortEnd) -> None:
        super().__init__(port_end)
        self._port_end = port_end

    def close_unless_connected(self) -> None:
        """Close the connection to the port if asyncssh has not connected the session to a channel."""
        if self._transport is None:
            self._port_end.close()

    def session_started(self) -> None:
        self._port_end.open()
