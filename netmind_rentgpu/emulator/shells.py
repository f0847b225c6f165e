"""The containers' SSH servers. Only this file and `forwards` import asyncssh.

Each running container has its own port on 127.0.0.1 and a host key. The user is root, and the password is the auth's.
Commands run as processes of this machine, and SFTP shows a folder. The folder keeps files apart, but is no protection: a
client with the password runs commands as your user.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import asyncssh
import asyncssh.auth
from asyncssh.constants import OPEN_ADMINISTRATIVELY_PROHIBITED
from asyncssh.saslprep import SASLPrepError, saslprep

from netmind_rentgpu.emulator.connection_faults import ConnectionFaults
from netmind_rentgpu.emulator.faults import Fault
from netmind_rentgpu.emulator.forwards import LOOPBACK, connect_to_port, listen_on_port
from netmind_rentgpu.emulator.host_keys import host_key
from netmind_rentgpu.emulator.namespaces import NetworkNamespace
from netmind_rentgpu.emulator.ports import Inside
from netmind_rentgpu.emulator.processes import ContainerProcesses, login_variables, set_terminal_size
from netmind_rentgpu.emulator.relay import Begin, Relay

__all__ = ["Shells"]

_HOST = "127.0.0.1"
_BACKLOG = 100
_PIECE = 64 * 1024
_NOTHING_LISTENS = 1
# Seconds to wait for killed processes.
_LONGEST_END = 10.0


class Shells:
    """The SSH servers of one service's containers, which run in an event loop. Any thread may call the methods of `Ports`.

    After a reset or the emulator's end, calls from the old service have no effect.
    """

    def __init__(self, connect: Callable[[int], Sequence[Fault]], *, isolated: bool) -> None:
        """Create shells for a service without containers.

        Args:
            connect: counts a connection to the container with an id, and returns the faults that it meets. The event loop
                calls it.
            isolated: True if each container has a network namespace of its own.
        """
        self._connect = connect
        self._isolated = isolated
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._containers: dict[int, _Container] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sessions: set[asyncio.Task[Any]] = set()
        self._over = False

    def start(self) -> None:
        """Serve in the running loop from now on."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    async def stop(self) -> None:
        """Close all ports, kill all processes, and remove all folders."""
        self._end()
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._sessions:
            # Their processes are killed, and asyncio would complain of those that nothing has waited for.
            await asyncio.wait(self._sessions, timeout=_LONGEST_END)

    def renewed(self) -> Shells:
        """Close all ports for good, and return empty shells for the next service."""
        self._end()
        successor = Shells(self._connect, isolated=self._isolated)
        successor._loop, successor._thread, successor._tasks = self._loop, self._thread, self._tasks
        successor._sessions = self._sessions
        return successor

    def _end(self) -> None:
        for container_id in tuple(self._containers):
            self.remove(container_id)
        self._over = True

    def new(self, container_id: int) -> int:
        """Return a new port for a container, which no other program can bind, and on which nothing listens yet."""
        if self._over:
            return _NOTHING_LISTENS
        if container_id not in self._containers:
            self._containers[container_id] = _Container(
                container_id, self._begin, partial(self._meet, container_id), self._sessions, isolated=self._isolated
            )
        return self._containers[container_id].move()

    def open(self, container_id: int, inside: Inside) -> None:
        """Start listening on a container's port. The event loop serves connections as soon as it can."""
        if not self._over:
            self._in_loop(self._containers[container_id].open(inside))

    def close(self, container_id: int, *, new_host_key: bool = False) -> None:
        """Stop listening on a container's port, break its connections, and kill its processes."""
        if self._over:
            return
        container = self._containers[container_id]
        if new_host_key:
            container.renew_host_key()
        self._in_loop(container.close)

    def remove(self, container_id: int) -> None:
        """Close a container's port, and remove its folder."""
        if not self._over:
            self._in_loop(self._containers.pop(container_id).remove)

    def set_gpu_use(self, container_id: int, percent: int) -> bool:
        """Set the use of a container's GPUs; return False if there is no such container."""
        container = None if self._over else self._containers.get(container_id)
        return container is not None and container.set_gpu_use(percent)

    def _in_loop(self, act: Callable[[], object]) -> None:
        if self._loop is None or threading.get_ident() == self._thread:
            act()
        else:
            self._loop.call_soon_threadsafe(act)

    def _meet(self, container_id: int) -> ConnectionFaults:
        # A connection from before a reset must not count for the faults after it.
        return ConnectionFaults.of(() if self._over else self._connect(container_id))

    def _begin(self, run: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(run)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Container:
    """A container's port, connections and processes."""

    def __init__(
        self,
        container_id: int,
        begin: Begin,
        meet: Callable[[], ConnectionFaults],
        sessions: set[asyncio.Task[Any]],
        *,
        isolated: bool,
    ) -> None:
        self._id = container_id
        self._isolated = isolated
        self._begin = begin
        self._meet = meet
        self._processes = ContainerProcesses(sessions)
        # Bound but never listening, so that the port stays reserved while the listening socket is closed.
        self._reserved = _bound(0)
        self._listener: socket.socket | None = None
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._relays: set[Relay] = set()
        self._watches: set[asyncio.Task[None]] = set()
        self._host_keys = 0
        self.renew_host_key()

    def renew_host_key(self) -> None:
        """Replace the host key."""
        self._host_keys += 1
        self._host_key: asyncssh.SSHKey | None = None

    @property
    def _port(self) -> int:
        return int(self._reserved.getsockname()[1])

    def move(self) -> int:
        """Reserve another port, and return it."""
        old, self._reserved = self._reserved, _bound(0)
        old.close()
        return self._port

    def open(self, inside: Inside) -> Callable[[], None]:
        """Start listening, and return a function that accepts connections when the event loop calls it."""
        listener = _bound(self._port)
        listener.listen(_BACKLOG)
        self._processes.install(inside.gpus)
        if self._isolated and self._processes.namespace is None:
            self._processes.namespace = NetworkNamespace()

        def serve() -> None:
            self._listener = listener
            loop = asyncio.get_running_loop()
            loop.add_reader(listener, self._accept, listener, inside)

        return serve

    def set_gpu_use(self, percent: int) -> bool:
        """Set the use of the GPUs; return False if the container is being removed."""
        return self._processes.set_gpu_use(percent)

    def close(self) -> None:
        """Stop listening, break all connections, and kill all processes."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for connection in tuple(self._connections):
            connection.abort()
        for relay in tuple(self._relays):
            relay.close()
        for watch in self._watches:
            watch.cancel()
        self._processes.end()

    def remove(self) -> None:
        """Close the port, and remove the folder."""
        self.close()
        self._reserved.close()
        self._processes.remove()

    def _accept(self, listener: socket.socket, inside: Inside) -> None:
        try:
            connected, client = listener.accept()
        except OSError:  # because the client may have disconnected
            return
        variables = login_variables(client, connected.getsockname())
        faults = self._meet()
        for seconds in faults.supervisor_ages:
            watch = self._begin(self._processes.kill_supervisor(seconds))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)
        if faults.is_refused:
            connected.close()
            return
        if faults.need_a_relay:
            connected = self._relayed(connected, faults)
        login = partial(_Login, inside.password, self._connections, self._processes, variables)
        login = partial(login, forwards_ports=faults.forwards_ports, is_open=lambda: self._listener is listener)
        serving = self._begin(self._serve(connected, login))
        # By a callback, because a task that is cancelled before its first step runs none of its code.
        serving.add_done_callback(lambda serving: connected.close() if serving.cancelled() else None)

    def _relayed(self, client: socket.socket, faults: ConnectionFaults) -> socket.socket:
        """Put a relay between a client and its server, and return the server's socket."""
        far, near = socket.socketpair()
        relay = Relay(client, far, faults, begin=self._begin, closed=self._relays.discard)
        self._relays.add(relay)
        relay.start()
        return near

    async def _serve(self, connected: socket.socket, login: Callable[[], _Login]) -> None:
        if self._host_key is None:
            self._host_key = asyncssh.import_private_key(host_key(self._id, self._host_keys))
        if self._processes.namespace is not None:
            with suppress(OSError):  # because commands and forwards fail then, and say why
                await self._processes.namespace.ready()
        try:
            await asyncssh.run_server(
                connected,
                server_factory=login,
                server_host_keys=[self._host_key],
                encoding=None,
                line_editor=False,
                agent_forwarding=False,
                login_timeout=60,
            )
        except (OSError, asyncssh.Error):
            connected.close()


def _prepared(password: str) -> str:
    """Prepare a password by SASLprep, as asyncssh does, or return it as it is if SASLprep forbids it, as OpenSSH does."""
    try:
        return saslprep(password)
    except SASLPrepError:
        return password


# Otherwise asyncssh ends the connection if SASLprep forbids the password, for example because of an emoji.
asyncssh.auth.__dict__["saslprep"] = _prepared


class _Login(asyncssh.SSHServer):
    """A connection to a container."""

    def __init__(
        self,
        password: str,
        connections: set[asyncssh.SSHServerConnection],
        processes: ContainerProcesses,
        variables: Mapping[str, str],
        *,
        forwards_ports: bool,
        is_open: Callable[[], bool],
    ) -> None:
        self._password = password
        self._connections = connections
        self._processes = processes
        self._variables = variables
        self._forwards_ports = forwards_ports
        self._is_open = is_open
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._connections.add(conn)
        if not self._is_open():
            # The container closed after it accepted the connection. Later, because asyncssh still sends its banner.
            asyncio.get_running_loop().call_soon(conn.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._connection is not None:
            self._connections.discard(self._connection)

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return username == "root" and hmac.compare_digest(password.encode(), _prepared(self._password).encode())

    def session_requested(self) -> Any:
        return _Session(self._processes, self._variables)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        del orig_host, orig_port
        if not self._forwards_ports:
            raise asyncssh.ChannelOpenError(OPEN_ADMINISTRATIVELY_PROHIBITED, "port forwarding is disabled")
        return dest_host in LOOPBACK and connect_to_port(dest_host, dest_port, self._processes.namespace)

    def server_requested(self, listen_host: str, listen_port: int) -> Any:
        if self._connection is None or not self._forwards_ports or listen_host not in LOOPBACK:
            return False
        return listen_on_port(self._connection, listen_host, listen_port, self._processes.namespace)


class _Session(asyncssh.SSHServerProcess[bytes]):
    """A session: a command, a shell, SFTP or scp."""

    def __init__(self, processes: ContainerProcesses, variables: Mapping[str, str]) -> None:
        def files(channel: Any) -> _Files:
            return _Files(channel, processes.home)

        super().__init__(self._run, files, 3, True)  # pyright: ignore[reportUnknownMemberType]  # noqa: FBT003  # version, scp
        self._processes = processes
        self._variables = variables
        self._process: asyncio.subprocess.Process | None = None
        self._terminal: int | None = None

    def signal_received(self, signal: str) -> None:
        if self._process is not None:
            self._processes.signal(self._process, signal)

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        del pixwidth, pixheight
        if self._terminal is not None:
            set_terminal_size(self._terminal, width, height)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # A closed terminal hangs up its process. A process without a terminal goes on.
        if self._terminal is not None and self._process is not None:
            self._processes.signal(self._process, "HUP")

    def add_cleanup_task(self, task: Awaitable[None]) -> None:
        # Started at once, because asyncssh awaits it only after the session's end, which a cancelled session does not reach.
        cleanup = asyncio.ensure_future(task)
        super().add_cleanup_task(cleanup)  # pyright: ignore[reportUnknownMemberType]  # Awaitable of anything

    async def _run(self, _: asyncssh.SSHServerProcess[bytes]) -> None:
        if self.subsystem is not None:
            self.exit(1)
            return
        with self._processes.keep_task():
            await self._serve()

    async def _serve(self) -> None:
        try:
            status = await (self._on_pipes() if self.term_type is None else self._on_terminal(self.term_type))
        except OSError as error:
            self.stderr.write(f"{error}\n".encode())
            status = 127
        if status >= 0:
            self.exit(status)
        else:
            self.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
        await self.wait_closed()

    async def _on_pipes(self) -> int:
        (from_stdout, stdout), (from_stderr, stderr) = os.pipe(), os.pipe()
        try:
            process = self._process = await self._start((asyncio.subprocess.PIPE, stdout, stderr))
        except BaseException:
            os.close(from_stdout)
            os.close(from_stderr)
            raise
        finally:
            os.close(stdout)
            os.close(stderr)
        # Not by `redirect`, because asyncssh loses output that arrives together with the end.
        feeding = asyncio.create_task(self._feed(process.stdin))
        try:
            await asyncio.gather(_forward_pipe(from_stdout, self.stdout), _forward_pipe(from_stderr, self.stderr))
            return await self._processes.ended(process)
        finally:
            feeding.cancel()
            await asyncio.wait({feeding})

    async def _feed(self, stdin: asyncio.StreamWriter | None) -> None:
        """Forward the client's input to a process."""
        if stdin is None:
            return
        with suppress(OSError, asyncssh.Error):
            while data := await self.stdin.read(_PIECE):
                stdin.write(data)
                await stdin.drain()
        stdin.close()

    async def _on_terminal(self, kind: str) -> int:
        if sys.platform == "win32":
            raise NotImplementedError
        outer, inner = os.openpty()
        name = os.ttyname(inner)
        try:
            set_terminal_size(outer, *self.term_size[:2])
            self._process = await self._start((inner, inner, inner), terminal=name, TERM=kind)
        except BaseException:
            os.close(outer)
            raise
        finally:
            os.close(inner)
        self._terminal = outer
        try:
            # A duplicate, because asyncssh closes the descriptor that it reads from, and `outer` is closed below.
            await self.redirect(outer, os.dup(outer), send_eof=False, recv_eof=False)
            status = await self._processes.ended(self._process)
            with suppress(OSError, asyncssh.Error):
                await self.stdout.drain()
            return status
        finally:
            self._terminal = None
            os.close(outer)

    async def _start(
        self, streams: tuple[int, int, int], *, terminal: str | None = None, **environment: str
    ) -> asyncio.subprocess.Process:
        return await self._processes.start(
            self.command, environment={**self.env, **environment, **self._variables}, streams=streams, terminal=terminal
        )


async def _forward_pipe(descriptor: int, to: asyncssh.SSHWriter[bytes]) -> None:
    """Forward a pipe's output to a client until the pipe ends or the client disconnects."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        with suppress(OSError, asyncssh.Error):
            while data := await reader.read(_PIECE):
                to.write(data)
                await to.drain()
    finally:
        transport.close()


class _Files(asyncssh.SFTPServer):
    """A container's home folder, over SFTP or scp."""

    def __init__(self, channel: Any, home: Path) -> None:
        super().__init__(channel, chroot=os.fsencode(home))  # pyright: ignore[reportUnknownMemberType]  # its channel of any kind
        self._session: Any = channel

    def exit(self) -> None:
        # Otherwise OpenSSH's scp treats the session as failed, because it ends without a status.
        if self._session.get_subsystem() == "sftp":
            self._session.exit(0)


def _bound(port: int) -> socket.socket:
    """Return a socket that is bound to a port and does not listen. Several sockets of this kind can share a port."""
    bound = socket.socket()
    bound.settimeout(0)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((_HOST, port))
    return bound
