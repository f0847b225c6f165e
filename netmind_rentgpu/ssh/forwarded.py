"""`AsyncForward`: a forwarded port, until it is closed or its shell is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self

from netmind_rentgpu.concurrency.running_loop import running_loop
from netmind_rentgpu.errors import ClientStateError
from netmind_rentgpu.ssh.arguments import check_ports, text
from netmind_rentgpu.ssh.connection import ShellConnection

if TYPE_CHECKING:
    import asyncssh

__all__ = [
    "LOOPBACK",
    "AsyncForward",
    "ForwardedPort",
    "check_forwarding",
    "open_forward",
    "open_reverse_forward",
]

# Seconds.
_LONGEST_OPENING = 30.0
_LONGEST_CLOSE = 10.0
LOOPBACK = "127.0.0.1"


class ForwardedPort(Protocol):
    """The port of a forward, which accepts connections until it is closed."""

    @property
    def closed(self) -> bool:
        """True if it accepts no more connections."""
        ...

    async def close(self) -> None:
        """Stop accepting connections, and free the port."""
        ...


class AsyncForward:
    """A forwarded port, which `forward` and `reverse_forward` return: `async with await shell.forward(...)`.

    That of a shell accepts connections until it or the shell is closed, or the shell's connection is lost; that of a rental,
    until it is closed or the rental ends. Leaving the block closes it.

    Attributes:
        listens: the side that accepts connections: `here` on this machine, `there` on the container.
        local_port, remote_port: the ports on this machine's side and on the container's side.
    """

    def __init__(
        self,
        forwarded: ForwardedPort,
        *,
        listens: Literal["here", "there"],
        local: tuple[str, int],
        remote: tuple[str, int],
        label: str,
    ) -> None:
        self.listens: Literal["here", "there"] = listens
        self._local_host, self._remote_host = local[0], remote[0]
        self.local_port: int = local[1]
        self.remote_port: int = remote[1]
        self._label = label
        self._forwarded = forwarded
        self._loop = running_loop()
        self._closing: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that accepts connections, on the side that `listens` names."""
        return self.local_port if self.listens == "here" else self.remote_port

    @property
    def closed(self) -> bool:
        """True if the port accepts no more connections."""
        return self._closing is not None or self._forwarded.closed

    async def close(self) -> None:
        """Stop accepting connections, and free the port. A second call does nothing.

        Connections that are open go on until one of their ends, the shell, or the rental closes them.

        Raises:
            ClientStateError: the forward was opened in another event loop.
        """
        if self._loop is not running_loop():
            raise ClientStateError("this forward was opened in another event loop; close it there")
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._forwarded.close())
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        local = f"{self._local_host}:{self.local_port} of this machine"
        remote = f"{self._remote_host}:{self.remote_port} of {self._label}"
        ends = (local, remote) if self.listens == "here" else (remote, local)
        return f"<{type(self).__name__} from {' to '.join(ends)}: {'closed' if self.closed else 'open'}>"

    def __reduce__(self) -> str:
        raise TypeError("a forward belongs to its connection and cannot be pickled")


class _PortOfConnection:
    """A port that is forwarded over one connection."""

    def __init__(
        self, connection: ShellConnection, listener: asyncssh.SSHListener, listens: Literal["here", "there"]
    ) -> None:
        self._ssh = connection.connected()
        self._listener = listener
        self._listens = listens

    @property
    def closed(self) -> bool:
        """True if the connection is closed."""
        return self._ssh.is_closed()

    async def close(self) -> None:
        """Stop accepting connections, and free the port."""
        self._listener.close()
        if self._listens == "here":
            # The port is free by now. The listener would wait for all open connections.
            return
        # The container's port is free once the server has answered, or the connection has ended.
        waiting = {asyncio.create_task(self._listener.wait_closed()), asyncio.create_task(self._ssh.wait_closed())}
        try:
            await asyncio.wait(waiting, timeout=_LONGEST_CLOSE, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()


async def open_forward(
    connection: ShellConnection, *, local_port: int, remote_port: int, remote_host: str
) -> AsyncForward:
    """Forward a port of this machine; `AsyncShell.forward` documents the arguments and errors."""
    check_ports(local_port=(local_port, 0), remote_port=(remote_port, 1))
    host = text("remote_host", remote_host)
    with connection.failing("connection", f"port {local_port} cannot be forwarded"):
        async with asyncio.timeout(_LONGEST_OPENING):
            ssh = connection.connected()
            listener = await _opened(ssh, ssh.forward_local_port(LOOPBACK, local_port, host, remote_port))
    port = _PortOfConnection(connection, listener, "here")
    local = (LOOPBACK, listener.get_port())
    forward = AsyncForward(port, listens="here", local=local, remote=(host, remote_port), label=connection.label)
    connection.operations.add_forward(forward)
    return forward


async def open_reverse_forward(
    connection: ShellConnection, *, remote_port: int, local_port: int, local_host: str
) -> AsyncForward:
    """Forward a port of the container; `AsyncShell.reverse_forward` documents the arguments and errors."""
    from netmind_rentgpu.ssh.forwards import leading_to

    check_ports(local_port=(local_port, 1), remote_port=(remote_port, 0))
    host = text("local_host", local_host)
    with connection.failing("connection", f"port {remote_port} of the container cannot be forwarded"):
        async with asyncio.timeout(_LONGEST_OPENING):
            leading = leading_to(host, local_port)
            ssh = connection.connected()
            listener = await _opened(ssh, ssh.create_server(leading, "localhost", remote_port))
    port = _PortOfConnection(connection, listener, "there")
    remote = ("localhost", listener.get_port())
    forward = AsyncForward(port, listens="there", local=(host, local_port), remote=remote, label=connection.label)
    connection.operations.add_forward(forward)
    return forward


async def check_forwarding(connection: ShellConnection) -> None:
    """Check that the server forwards ports in both directions: connect to a port of the container that leads back here.

    Raises:
        SSHError: the server forbids it, or cannot do it.
    """
    from netmind_rentgpu.ssh.refusals import open_once

    here = socket.create_server((LOOPBACK, 0))
    back: AsyncForward | None = None
    try:
        back = await open_reverse_forward(
            connection, remote_port=0, local_port=here.getsockname()[1], local_host=LOOPBACK
        )
        with connection.failing("connection", "the ports of the container cannot be reached"):
            async with asyncio.timeout(_LONGEST_OPENING):
                ssh = connection.connected()
                opening = ssh.open_connection(LOOPBACK, back.remote_port, encoding=None)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # untyped **kwargs
                _, writer = await open_once(ssh, opening)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # as above
                writer.close()
    finally:
        here.close()
        if back is not None:
            await back.close()


async def _opened(
    connection: asyncssh.SSHClientConnection, opening: Awaitable[asyncssh.SSHListener]
) -> asyncssh.SSHListener:
    """Open a port, and return its listener; close the listener if the caller is cancelled meanwhile."""
    from netmind_rentgpu.ssh.refusals import open_once

    task = asyncio.ensure_future(open_once(connection, opening))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_close_unwanted)
        raise


def _close_unwanted(opened: asyncio.Future[asyncssh.SSHListener]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()
