"""Forwarded ports that stay while the connection to their container is lost and made again.

A port of this machine has a listener of its own, which leads each client over the newest connection. A port of the container
is opened again on each new connection. As long as one of them is open, a task waits for the loss of the connection and makes
another.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from netmind_rentgpu.concurrency.backoff import backoff
from netmind_rentgpu.errors import RentGPUError, SSHError, TransportError
from netmind_rentgpu.ssh.arguments import check_ports, text
from netmind_rentgpu.ssh.connection import ShellConnection
from netmind_rentgpu.ssh.connection_source import ConnectionSource
from netmind_rentgpu.ssh.forwarded import LOOPBACK, AsyncForward, open_reverse_forward

if TYPE_CHECKING:
    import asyncssh

__all__ = ["LastingForwards"]

_PIECE = 64 * 1024
_LINGER = "hh" if os.name == "nt" else "ii"
# Seconds that a client of a forwarded port waits for a new connection.
_LONGEST_WAIT = 30.0


class _Reader(Protocol):
    async def read(self, n: int = -1, /) -> bytes: ...


class _Writer(Protocol):
    def write(self, data: bytes, /) -> None: ...
    def write_eof(self) -> None: ...
    async def drain(self) -> None: ...


class LastingForwards:
    """The forwarded ports of one container, until their user closes them or no connection can be made any more."""

    def __init__(self, source: ConnectionSource) -> None:
        self._source = source
        self._open: set[_LastingPort] = set()
        self._keeping: asyncio.Task[None] | None = None

    async def forward(self, *, local_port: int, remote_port: int, remote_host: str) -> AsyncForward:
        """Forward a port of this machine; `AsyncRental.forward` documents the arguments and errors."""
        check_ports(local_port=(local_port, 0), remote_port=(remote_port, 1))
        host = text("remote_host", remote_host)
        connection = await self._source.usable_connection()
        port = _LocalPort(self._source, host, remote_port, self._forget)
        try:
            listening = await port.listen(local_port)
        except OSError as error:
            problem = f"{connection.label}: port {local_port} cannot be forwarded ({error})"
            raise SSHError(problem, stage="connection") from error
        self._keep(port)
        return AsyncForward(
            port, listens="here", local=(LOOPBACK, listening), remote=(host, remote_port), label=connection.label
        )

    async def reverse_forward(self, *, remote_port: int, local_port: int, local_host: str) -> AsyncForward:
        """Forward a port of the container; `AsyncRental.reverse_forward` documents the arguments and errors."""
        connection = await self._source.usable_connection()
        port = _RemotePort(local_port, local_host, self._forget)
        await port.open_on(connection, remote_port)
        self._keep(port)
        remote = ("localhost", port.port)
        return AsyncForward(
            port, listens="there", local=(local_host, local_port), remote=remote, label=connection.label
        )

    async def close(self) -> None:
        """Close all ports, and wait for the end of what runs over those of this machine."""
        await asyncio.gather(*(port.close_all() for port in tuple(self._open)))
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})

    @property
    def count(self) -> int:
        """The number of ports that are forwarded now."""
        return len(self._open)

    def _forget(self, port: _LastingPort) -> None:
        self._open.discard(port)
        # A port that is closed because no connection can be made is closed by that task itself.
        if not self._open and self._keeping is not None and self._keeping is not asyncio.current_task():
            self._keeping.cancel()

    def _keep(self, port: _LastingPort) -> None:
        self._open.add(port)
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.get_running_loop().create_task(self._keep_connected())

    async def _keep_connected(self) -> None:
        """Connect again whenever the connection is lost, until no port is open, or no connection can be made any more."""
        pauses = backoff()
        while self._open:
            try:
                connection = await self._source.usable_connection()
                await asyncio.gather(*(port.open_again_on(connection) for port in tuple(self._open)))
                pauses = backoff()
                await connection.wait_disconnected()
            except (SSHError, TransportError):
                await asyncio.sleep(next(pauses))
            except RentGPUError:
                # The rental is over; its user learns that from the next call.
                await asyncio.gather(*(port.close_all() for port in tuple(self._open)))


class _LastingPort(Protocol):
    """A port that stays open over several connections."""

    async def open_again_on(self, connection: ShellConnection) -> None:
        """Open what a new connection needs, unless it is open there."""
        ...

    async def close_all(self) -> None:
        """Close the port, and end what runs over it."""
        ...


class _LocalPort:
    """A port of this machine, whose clients reach a port of the container.

    Attributes:
        closed: True if it accepts no more clients.
    """

    def __init__(self, source: ConnectionSource, host: str, port: int, forget: Callable[[_LocalPort], None]) -> None:
        self._source = source
        self._host, self._port = host, port
        self._forget = forget
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._has_ended = False
        self.closed: bool = False

    async def listen(self, port: int) -> int:
        """Listen, and return the port.

        Raises:
            OSError: the port cannot be bound.
        """

        def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self._has_ended:  # it was accepted a moment before
                writer.transport.abort()
                return
            task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
            # Here, because a task that is cancelled before its first step runs none of its code.
            task.add_done_callback(lambda _: writer.close())

        listener = socket.socket()
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((LOOPBACK, port))
            self._server = await asyncio.start_server(serve, sock=listener, start_serving=False)
            await self._server.start_serving()
        except BaseException:
            if self._server is not None:
                self._server.close()
            listener.close()
            raise
        return int(listener.getsockname()[1])

    async def open_again_on(self, connection: ShellConnection) -> None:
        """Do nothing: each client is led over the newest connection."""

    async def close(self) -> None:
        """Stop listening. The clients go on."""
        self.closed = True
        self._forget(self)
        if self._server is not None:
            self._server.close()

    async def close_all(self) -> None:
        """Stop listening, and disconnect the clients."""
        self._has_ended = True
        await self.close()
        for task in tuple(self._serving):
            task.cancel()
        if self._serving:
            await asyncio.wait(tuple(self._serving))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect a client to the container's port, until both have ended or one has failed."""
        import asyncssh

        try:
            async with asyncio.timeout(_LONGEST_WAIT):
                connection, far_reader, far_writer = await self._reach()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pass_on(reader, far_writer))
                    group.create_task(_pass_on(far_reader, writer, connection))
            except* (OSError, asyncssh.Error):
                # One end is gone, so that the other one is broken off: an end of file would look like the whole.
                _break_off(writer)
            finally:
                far_writer.close()
        except BaseException as error:
            # Nothing listens there, there is no connection, or the rental has ended.
            _break_off(writer)
            if not isinstance(error, (RentGPUError, OSError, asyncssh.Error)):
                raise
        finally:
            writer.close()

    async def _reach(self) -> tuple[asyncssh.SSHClientConnection, _Reader, _FarWriter]:
        """Connect to the container's port."""
        import asyncssh

        from netmind_rentgpu.ssh.refusals import open_once

        for pause in backoff():
            connection = None
            try:
                connection = await self._source.usable_connection()
                ssh = connection.connected()
                opening = ssh.open_connection(self._host, self._port, encoding=None)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # untyped **kwargs
                reader, writer = await open_once(ssh, opening)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # as above
            except (SSHError, TransportError, OSError, asyncssh.Error):
                if connection is not None and not connection.lost:
                    raise
            else:
                return ssh, reader, writer  # pyright: ignore[reportUnknownVariableType]  # unsolved AnyStr
            await asyncio.sleep(pause)
        raise AssertionError


class _FarWriter(_Writer, Protocol):
    def close(self) -> None: ...


class _RemotePort:
    """A port of the container, whose clients reach a port of this machine.

    Attributes:
        closed: True if it accepts no more clients.
        port: the port of the container.
    """

    def __init__(self, local_port: int, local_host: str, forget: Callable[[_RemotePort], None]) -> None:
        self._local = (local_host, local_port)
        self._forget = forget
        self._connection: ShellConnection | None = None
        self._forward: AsyncForward | None = None
        self.closed: bool = False
        self.port: int = 0

    async def open_on(self, connection: ShellConnection, port: int) -> None:
        """Open the port on a connection.

        Args:
            port: the port of the container; 0 for any that is free.

        Raises:
            SSHError: it cannot be opened.
        """
        host, local_port = self._local
        self._forward = await open_reverse_forward(connection, remote_port=port, local_port=local_port, local_host=host)
        self._connection, self.port = connection, self._forward.remote_port
        if self.closed:
            await self._forward.close()

    async def open_again_on(self, connection: ShellConnection) -> None:
        """Open the same port on a new connection."""
        if self._connection is not connection:
            await self.open_on(connection, self.port)

    async def close(self) -> None:
        """Stop listening. The clients go on."""
        self.closed = True
        self._forget(self)
        if self._forward is not None:
            await self._forward.close()

    async def close_all(self) -> None:
        """Stop listening. The end of the connection ends the clients."""
        with suppress(RentGPUError):
            await self.close()


def _break_off(writer: asyncio.StreamWriter) -> None:
    """Close a connection at once, so that its other end sees it broken, and not at its end."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 1, 0))
    writer.transport.abort()


async def _pass_on(reader: _Reader, writer: _Writer, connection: asyncssh.SSHClientConnection | None = None) -> None:
    """Pass bytes on until their end, which is passed on, too.

    Args:
        connection: the connection that the bytes come over; None if they come over none.

    Raises:
        ConnectionResetError: the connection was lost, which ends the bytes, too.
    """
    while data := await reader.read(_PIECE):
        writer.write(data)
        await writer.drain()
    if connection is not None and connection.is_closed():
        raise ConnectionResetError("the connection was lost before the end")
    writer.write_eof()
