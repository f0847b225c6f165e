"""SSH channels that lead to ports of a container, and from them."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import asyncssh
from asyncssh.constants import OPEN_CONNECT_FAILED
from asyncssh.forward import SSHLocalPortForwarder
from asyncssh.listener import SSHForwardListener

from netmind_rentgpu.emulator.namespaces import NetworkNamespace

__all__ = ["LOOPBACK", "connect_to_port", "listen_on_port"]

LOOPBACK: Mapping[str, Sequence[tuple[socket.AddressFamily, str]]] = {
    "localhost": ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")),
    "127.0.0.1": ((socket.AF_INET, "127.0.0.1"),),
    "::1": ((socket.AF_INET6, "::1"),),
}
"""The addresses of each name of the loopback interface."""
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


async def connect_to_port(host: str, port: int, namespace: NetworkNamespace | None = None) -> ChannelEnd:
    """Connect to a port, and return the session that asyncssh connects to the channel.

    Args:
        host: a name or address of the loopback interface.
        port: the port.
        namespace: the namespace of the container; None if its network is this machine's.

    Raises:
        asyncssh.ChannelOpenError: the connection failed, for example because no server listens on the port.
    """
    loop = asyncio.get_running_loop()
    try:
        if namespace is None:
            _, port_end = await loop.create_connection(_PortEnd, host, port)
        else:
            connected = await _connected(host, port, namespace)
            _, port_end = await loop.create_connection(_PortEnd, sock=connected)
    except OSError as error:
        raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, str(error)) from None
    session = ChannelEnd(port_end)
    # asyncssh connects the session in this turn of the loop, or never, if the client has gone meanwhile.
    loop.call_soon(session.close_unless_connected)
    return session


async def listen_on_port(
    connection: asyncssh.SSHServerConnection, host: str, port: int, namespace: NetworkNamespace | None = None
) -> asyncssh.SSHListener | None:
    """Listen on a port, and forward each connection to the client.

    Args:
        connection: the client's connection, with which the listener ends.
        host: a name or address of the loopback interface.
        port: the port; 0 for any free port.
        namespace: the namespace of the container; None if its network is this machine's.

    Returns:
        The listener; None if the client has disconnected meanwhile.

    Raises:
        OSError: the port is in use, or there is no namespace any more.
    """
    loop = asyncio.get_running_loop()

    async def open_channel(session: Any, orig_host: str, orig_port: int) -> Any:
        try:
            return await connection.create_connection(session, host, port, orig_host, orig_port)
        except (AttributeError, AssertionError):
            # asyncssh goes on with an answer whose channel it has forgotten, if the client has disconnected right behind it.
            # It closes the accepted connection for the error of a channel alone.
            if not connection.is_closed():
                raise
            raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, "the client has disconnected") from None

    servers: list[asyncio.Server] = []
    try:
        for family, address in LOOPBACK[host]:
            try:
                bound = await _bound(family, address, port, namespace)
            except OSError as error:
                if servers and error.errno in _NO_IPV6:
                    continue
                raise
            port = bound.getsockname()[1]
            server = await loop.create_server(
                lambda: SSHLocalPortForwarder(connection, open_channel), sock=bound, start_serving=False
            )
            servers.append(server)
            await server.start_serving()
        if not connection.is_closed():
            return SSHForwardListener(connection, servers, (host, port), port)
    except BaseException:
        _close(servers)
        raise
    # Otherwise they would listen for good, because asyncssh has already closed the listeners of the connection.
    _close(servers)
    return None


def _close(servers: list[asyncio.Server]) -> None:
    for server in servers:
        server.close()


async def _bound(
    family: socket.AddressFamily, address: str, port: int, namespace: NetworkNamespace | None
) -> socket.socket:
    """Return a socket that is bound to a port."""
    bound = socket.socket(family) if namespace is None else await namespace.open_socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((address, port))
    except BaseException:
        bound.close()
        raise
    return bound


async def _connected(host: str, port: int, namespace: NetworkNamespace) -> socket.socket:
    """Return a socket of a namespace that is connected to a port of the first of a host's addresses that accepts it."""
    loop = asyncio.get_running_loop()
    problem: OSError | None = None
    for family, address in LOOPBACK[host]:
        try:
            connected = await namespace.open_socket(family)
            try:
                await loop.sock_connect(connected, (address, port))
            except BaseException:
                connected.close()
                raise
        except OSError as error:
            problem = problem or error
        else:
            return connected
    raise problem or OSError(f"{host} has no address")


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
