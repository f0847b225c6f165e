"""`AsyncShell`: one connection to a container, for any number of commands, copies and forwarded ports."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from netmind_rentgpu.arguments import shown_value, texts
from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.concurrency.running_loop import running_loop
from netmind_rentgpu.errors import ClientStateError, InvalidArgumentError, SSHError, SSHStage, SSHTimeoutError
from netmind_rentgpu.models import Container
from netmind_rentgpu.results import CommandResult, Forward, OnTransferProgress, OutputLine
from netmind_rentgpu.ssh.arguments import check_ports, described, local_path, remote_path, shown, text
from netmind_rentgpu.ssh.credentials import label_of
from netmind_rentgpu.ssh.limits import SSHLimits
from netmind_rentgpu.ssh.operations import ActiveOperations
from netmind_rentgpu.waiting.waits import checked_timeout

if TYPE_CHECKING:
    import asyncssh

    from netmind_rentgpu.ssh.commands import Command
    from netmind_rentgpu.ssh.listing import Server

__all__ = ["AsyncShell"]

_LONGEST_FORWARD = 30.0
_LOOPBACK = "127.0.0.1"
Open: TypeAlias = Callable[[], Awaitable["tuple[Container, asyncssh.SSHClientConnection]"]]


class AsyncShell:
    """A shell on a container: `async with gpu.ssh(container) as shell: ...`.

    All calls share one connection, which is kept alive. The shell does not replace a lost connection, but raises `SSHError`:
    the commands may or may not have ended. Several calls may run at once, with eight commands at most; further ones wait.
    """

    def __init__(self, open_connection: Open, limits: SSHLimits | None = None, *, over: str = "") -> None:
        self._open_connection = open_connection
        self._limits = limits or SSHLimits()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._container: Container | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sftp: asyncio.Future[asyncssh.SFTPClient] | None = None
        self._operations = ActiveOperations()
        self._over = over

    @property
    def container(self) -> Container:
        """The container, as it was when the shell was opened.

        Raises:
            ClientStateError: the shell is not open.
        """
        if self._container is None:
            raise self._unusable()
        return self._container

    @property
    def lost(self) -> bool:
        """True if the connection was lost; the shell cannot be used any more."""
        return self._connection is not None and self._connection.is_closed()

    @property
    def closed(self) -> bool:
        """True if the shell was closed; it cannot be used any more."""
        return self._connection is None and bool(self._over)

    async def run(
        self,
        command: str,
        *,
        check: bool = False,
        timeout: float | None = None,
        environment: Mapping[str, str] | None = None,
        input: str | bytes | None = None,  # noqa: A002  # the name that subprocess uses
        max_output: int = 16 * 1024 * 1024,
    ) -> CommandResult:
        """Run a command in the login's shell, and wait for it.

        If the call is cancelled or takes too long, the command and its process group get SIGTERM, and SIGKILL two seconds
        later if the command still runs.

        Args:
            check: True to raise an error unless the command ends with status 0.
            timeout: the seconds that the call may take; None for no limit.
            environment: variables for the command. They appear on no command line.
            input: the command's input; None for no input. A text is sent as UTF-8.
            max_output: the bytes to keep of stdout, and as many of stderr; longer output keeps only its tail.

        Raises:
            SSHTimeoutError: the call took too long; `result` has the output until then.
            SSHError: the command failed and `check` is True (then `stage` is `command`, and `result` is its result); the
                command could not be started; or the connection was lost.
            InvalidArgumentError: an argument cannot be used.
            ClientStateError: the shell is not open.
        """
        from netmind_rentgpu.ssh.commands import Capture, Command, prepared

        if type(max_output) is not int or max_output < 0:
            raise InvalidArgumentError("max_output", f"must be a number of bytes, 0 or more: {shown_value(max_output)}")
        ready = prepared(command, environment, input)
        captured = Capture(max_output)
        deadline = asyncio.timeout(None if timeout is None else checked_timeout(timeout))
        running = Command(ready, captured)
        try:
            async with deadline, self._operations.turns:
                try:
                    await self._start(running)
                    await running.feed()
                    await running.wait()
                finally:
                    await self._operations.finish(running)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            problem = f"{self._label}: {shown(command)} did not end within {timeout:g} s, and was cancelled"
            raise SSHTimeoutError(problem, stage="command", result=running.result(captured)) from error
        finally:
            del deadline  # break the reference cycle
        return self._checked(running, running.result(captured), check=check)

    async def stream(
        self,
        command: str,
        *,
        check: bool = False,
        environment: Mapping[str, str] | None = None,
        input: str | bytes | None = None,  # noqa: A002  # the name that subprocess uses
    ) -> AsyncGenerator[OutputLine]:
        """Run a command in the login's shell, and yield the lines that it writes, as they arrive.

        A carriage return ends a line, too, so that the updates of a progress bar come one by one (`OutputLine.is_update`).

        A slow reader slows the command down. If the iteration is left or cancelled, the command is ended as in `run`.

        Args:
            check: True to raise an error at the end unless the command ends with status 0.
            environment: variables for the command. They appear on no command line.
            input: the command's input; None for no input. A text is sent as UTF-8.

        Raises:
            SSHError: the command failed and `check` is True; it could not be started; or the connection was lost.
            InvalidArgumentError: an argument cannot be used.
            ClientStateError: the shell is not open.
        """
        from netmind_rentgpu.ssh.commands import Command, Lines, prepared

        ready = prepared(command, environment, input)
        lines = Lines()
        running = Command(ready, lines)
        async with self._operations.turns:
            feeding: asyncio.Future[None] | None = None
            try:
                await self._start(running)
                feeding = asyncio.ensure_future(running.feed())
                while True:
                    if running.closed:
                        lines.finish()
                    while (line := lines.next()) is not None:
                        yield line
                        if lines.room:
                            running.go_on()
                    if running.closed:
                        break
                    await running.news()
            finally:
                if feeding is not None:
                    feeding.cancel()
                await self._operations.finish(running)
        self._checked(running, running.result(), check=check)

    async def upload(
        self,
        local: str | os.PathLike[str],
        remote: str,
        *,
        exclude: Iterable[str] | str = (),
        timeout: float | None = None,
        on_progress: OnTransferProgress | None = None,
    ) -> None:
        """Copy a file, or a folder with all that is in it, to the container.

        Each file gets its name and permissions once all of it has arrived, and missing folders are created. Links are
        followed. A file that grows meanwhile is copied up to its size at the start. If the call fails or is cancelled, the
        files that have arrived stay. A link in the folder that leads nowhere, a socket, a pipe or a device is skipped.

        Args:
            local: the file or folder to copy.
            remote: the path of the copy, from the login's home folder. An existing file is replaced, and the content of a
                folder is added to an existing folder.
            exclude: patterns of files and folders to leave out, with `*`, `?`, `[...]`, and `**` for any folders. A pattern
                without a slash matches a name in any folder, such as `*.pyc` or `.git`; a pattern with one matches a path
                below the copied folder, such as `data/*.csv`; with a slash at its end, it matches folders only. All that is
                in such a folder is left out, too.
            timeout: the seconds that the call may take; None for no limit. It fails in any case when the server does not
                answer for 60 seconds.
            on_progress: a function of a `TransferProgress`, which is called in the thread of the event loop.

        Raises:
            SSHTimeoutError: the copy took longer than `timeout`.
            SSHError: the copy failed, or has more than a million files and folders.
            InvalidArgumentError: an argument cannot be used.
            ClientStateError: the shell is not open.
        """
        from netmind_rentgpu.ssh.transfer import upload

        path, here, patterns = remote_path(remote), local_path(local), texts("exclude", exclude)
        await self._copy(
            f"{local} to {remote}", timeout, lambda server: upload(server, here, path, on_progress, patterns)
        )

    async def download(
        self,
        remote: str,
        local: str | os.PathLike[str],
        *,
        timeout: float | None = None,
        on_progress: OnTransferProgress | None = None,
    ) -> None:
        """Copy a file, or a folder with all that is in it, from the container.

        Each file gets its name and permissions once all of it has arrived, and missing folders are created. Links are
        followed. A file that grows meanwhile is copied up to its size at the start. If the call fails or is cancelled, the
        files that have arrived stay. A link in the folder that leads nowhere, a socket, a pipe or a device is skipped.

        Args:
            remote: the file or folder to copy, as a path from the login's home folder.
            local: the path of the copy. An existing file is replaced, and the content of a folder is added to an existing
                folder.
            timeout: the seconds that the call may take; None for no limit. It fails in any case when the server does not
                answer for 60 seconds.
            on_progress: a function of a `TransferProgress`, which is called in the thread of the event loop.

        Raises:
            SSHTimeoutError: the copy took longer than `timeout`.
            SSHError: the copy failed, or has more than a million files and folders.
            InvalidArgumentError: an argument cannot be used.
            ClientStateError: the shell is not open.
        """
        from netmind_rentgpu.ssh.transfer import download

        path, here = remote_path(remote), local_path(local)
        await self._copy(f"{remote} to {local}", timeout, lambda server: download(server, path, here, on_progress))

    async def forward(self, *, local_port: int, remote_port: int, remote_host: str = _LOOPBACK) -> Forward:
        """Forward a port of this machine to one of the container, as for Jupyter, while the shell is open.

        Args:
            local_port: the port of 127.0.0.1 to listen on; 0 for any free port.
            remote_port: the port to connect to.
            remote_host: the host to connect to, as seen from the container.

        Raises:
            SSHError: the port cannot be forwarded.
            InvalidArgumentError: a port or the host cannot be used.
            ClientStateError: the shell is not open.
        """
        check_ports(local_port=(local_port, 0), remote_port=(remote_port, 1))
        host = text("remote_host", remote_host)
        with self._failing("connection", f"port {local_port} cannot be forwarded"):
            async with asyncio.timeout(_LONGEST_FORWARD):
                listener = await self._connected().forward_local_port(_LOOPBACK, local_port, host, remote_port)
        return Forward(listens="here", local_port=listener.get_port(), remote_port=remote_port)

    async def reverse_forward(self, *, remote_port: int, local_port: int, local_host: str = _LOOPBACK) -> Forward:
        """Forward a port of the container to one of this machine, while the shell is open.

        Args:
            remote_port: the port of the container's own localhost to listen on; 0 for any free port.
            local_port: the port to connect to.
            local_host: the host to connect to, as seen from this machine.

        Raises:
            SSHError: the port cannot be forwarded.
            InvalidArgumentError: a port or the host cannot be used.
            ClientStateError: the shell is not open.
        """
        from netmind_rentgpu.ssh.forwards import leading_to

        check_ports(local_port=(local_port, 1), remote_port=(remote_port, 0))
        host = text("local_host", local_host)
        with self._failing("connection", f"port {remote_port} of the container cannot be forwarded"):
            async with asyncio.timeout(_LONGEST_FORWARD):
                listener = await self._connected().create_server(leading_to(host, local_port), "localhost", remote_port)
        return Forward(listens="there", local_port=local_port, remote_port=listener.get_port())

    async def interact(self, command: str | None = None) -> int | None:
        """Connect this program's terminal to a shell on the container, or to a command, until the shell or command ends.

        Returns:
            The exit status; None if a signal ended the shell or command.

        Raises:
            SSHError: the shell or command could not be started, or the connection was lost.
            ClientStateError: the shell is not open, or this program has no terminal.
        """
        try:
            from netmind_rentgpu.ssh.terminal import Terminal
        except ImportError as error:
            raise ClientStateError(
                "cannot interact: this system has no POSIX terminals; use run() or stream()"
            ) from error

        terminal = Terminal()
        with self._failing("command", "cannot open a terminal"):
            await terminal.run(self._connected(), command)
        if terminal.exit_status is None and terminal.exit_signal is None:
            raise self._lost()
        return terminal.exit_status

    async def close(self) -> None:
        """End all commands and copies, and close the connection. A second call does nothing.

        Raises:
            ClientStateError: the shell was opened in another event loop.
        """
        connection = self._connection
        if connection is not None and self._loop is not running_loop():
            raise ClientStateError("this shell was opened in another event loop; close it there")
        self._over, self._connection = self._over or "it is closed", None
        if connection is not None:
            await wait_shielded(running_loop().create_task(self._operations.close(connection)))

    async def __aenter__(self) -> Self:
        if self._over or self._loop is not None:
            raise self._unusable() if self._over else ClientStateError("this shell is open already, or being opened")
        self._loop = running_loop()
        try:
            self._container, connection = await self._open_connection()
        except BaseException:
            self._loop = None
            raise
        if self._over:
            # Another task closed the shell meanwhile.
            connection.abort()
            raise self._unusable()
        self._connection = connection
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __copy__(self) -> Self:
        """Return a shell that cannot be used, for another process such as a forked child."""
        return type(self)(self._open_connection, self._limits, over=self._over or "it belongs to another process")

    def __repr__(self) -> str:
        state = "open" if self._connection is not None else self._over.removeprefix("it ") or "is not open yet"
        return f"<{type(self).__name__} on {self._label}: {state}>"

    def __reduce__(self) -> str:
        raise TypeError("a shell holds a connection and cannot be pickled")

    @property
    def _label(self) -> str:
        return "a container" if self._container is None else label_of(self._container)

    def _unusable(self) -> ClientStateError:
        over = self._over or "it is not open yet; enter its with block first"
        return ClientStateError(f"this shell cannot be used: {over}")

    def _lost(self) -> SSHError:
        problem = f"{self._label}: the connection was lost; its commands may still run, or may have ended"
        return SSHError(problem, stage="connection")

    def _connected(self) -> asyncssh.SSHClientConnection:
        if self._connection is None:
            raise self._unusable()
        if self._loop is not running_loop():
            raise ClientStateError("this shell was opened in another event loop; use it there")
        if self.lost:
            raise SSHError(f"{self._label}: the connection was lost", stage="connection")
        return self._connection

    def _checked(self, command: Command, done: CommandResult, *, check: bool) -> CommandResult:
        if command.cut_off:
            raise self._unusable()
        if done.exit_status is None and done.exit_signal is None:
            raise self._lost()
        if check and not done.ok:
            raise SSHError(f"{self._label}: {described(done)}", stage="command", result=done)
        return done

    @contextmanager
    def _failing(self, stage: SSHStage, what: str) -> Generator[None]:
        import asyncssh

        try:
            yield
        except (OSError, asyncssh.Error, asyncssh.ChannelListenError) as error:
            if isinstance(error, (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection)):
                self._sftp = None
            if self._connection is not None and self._connection.is_closed():
                raise self._lost() from error
            raise SSHError(f"{self._label}: {what} ({str(error) or 'no answer in time'})", stage=stage) from error

    async def _copy(
        self,
        what: str,
        timeout: float | None,
        copying: Callable[[Server], Coroutine[Any, Any, None]],
    ) -> None:
        """Run a copy, within a number of seconds.

        Raises:
            SSHTimeoutError: the copy took longer.
            SSHError: the copy failed.
            ClientStateError: the shell was closed.
        """
        from netmind_rentgpu.ssh.listing import Server

        deadline = asyncio.timeout(None if timeout is None else checked_timeout(timeout))
        try:
            async with deadline:
                with self._transferring(what):
                    server = Server(await self._sftp_client(), self._limits)
                    whole = await self._operations.copy(copying(server))
        except TimeoutError as error:
            if not deadline.expired():
                raise
            problem = f"{self._label}: cannot copy {what}: it did not end within {timeout:g} s"
            raise SSHTimeoutError(problem, stage="transfer") from error
        finally:
            del deadline  # break the reference cycle
        if not whole:
            raise self._unusable()

    @contextmanager
    def _transferring(self, what: str) -> Generator[None]:
        from netmind_rentgpu.ssh.listing import TransferError

        with self._failing("transfer", f"cannot copy {what}"):
            try:
                yield
            except TransferError as error:
                raise SSHError(f"{self._label}: cannot copy {what}: {error}", stage="transfer") from error

    async def _start(self, command: Command) -> None:
        connection = self._connected()
        with self._failing("command", "the command could not be started"):
            await self._operations.start(command, connection)

    async def _sftp_client(self) -> asyncssh.SFTPClient:
        """Return the SFTP client that all copies share. A cancelled caller does not end the start for other callers."""
        connection = self._connected()
        if self._sftp is None or (self._sftp.done() and (self._sftp.cancelled() or self._sftp.exception())):
            self._sftp = asyncio.ensure_future(connection.start_sftp_client(path_errors="surrogateescape"))
            # Mark the error as retrieved: otherwise asyncio logs it when no caller waits any more.
            self._sftp.add_done_callback(lambda started: started.cancelled() or started.exception())
        async with asyncio.timeout(self._limits.sftp_start):
            return await asyncio.shield(self._sftp)
