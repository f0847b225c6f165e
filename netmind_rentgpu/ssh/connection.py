"""The connection of one shell: its states, its errors, and what is under way over it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias

from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.concurrency.running_loop import running_loop
from netmind_rentgpu.errors import ClientStateError, SSHError, SSHStage
from netmind_rentgpu.models import Container
from netmind_rentgpu.results import CommandResult
from netmind_rentgpu.ssh.arguments import described
from netmind_rentgpu.ssh.credentials import label_of
from netmind_rentgpu.ssh.limits import SSHLimits
from netmind_rentgpu.ssh.operations import ActiveOperations

if TYPE_CHECKING:
    import asyncssh

    from netmind_rentgpu.ssh.commands import Command

__all__ = ["OpenConnection", "ShellConnection"]

OpenConnection: TypeAlias = Callable[[], Awaitable["tuple[Container, asyncssh.SSHClientConnection]"]]


class ShellConnection:
    """One connection to a container, which is opened once and closed once.

    Attributes:
        open_connection: connects and logs in.
        limits: the limits of copies.
        over: the cause for which the shell cannot be used any more; empty while there is none.
        operations: the commands and copies that are under way.
    """

    def __init__(self, open_connection: OpenConnection, limits: SSHLimits, over: str) -> None:
        self.open_connection: OpenConnection = open_connection
        self.limits: SSHLimits = limits
        self.over: str = over
        self.operations: ActiveOperations = ActiveOperations()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._container: Container | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sftp: asyncio.Future[asyncssh.SFTPClient] | None = None
        # True if the connection was lost before the shell was closed.
        self._was_lost = False

    @property
    def container(self) -> Container:
        """The container, as it was when the connection was opened.

        Raises:
            ClientStateError: the shell is not open.
        """
        if self._container is None:
            raise self.unusable()
        return self._container

    @property
    def lost(self) -> bool:
        """True if the connection was lost."""
        return self._connection is not None and self._connection.is_closed()

    @property
    def closed(self) -> bool:
        """True if the shell was closed."""
        return self._connection is None and bool(self.over)

    @property
    def label(self) -> str:
        """The name of the container in errors."""
        return "a container" if self._container is None else label_of(self._container)

    @property
    def state(self) -> str:
        """The state of the shell in its repr."""
        return "open" if self._connection is not None else self.over.removeprefix("it ") or "is not open yet"

    async def open(self) -> None:
        """Open the connection.

        Raises:
            ClientStateError: the shell is open, being opened, or closed.
            RentGPUError: the connection could not be opened.
        """
        if self.over or self._loop is not None:
            raise self.unusable() if self.over else ClientStateError("this shell is open already, or being opened")
        self._loop = running_loop()
        try:
            self._container, connection = await self.open_connection()
        except BaseException:
            self._loop = None
            raise
        if self.over:
            # Another task closed the shell meanwhile.
            connection.abort()
            raise self.unusable()
        self._connection = connection

    async def close(self) -> None:
        """End all commands and copies, and close the connection. A second call does nothing.

        Raises:
            ClientStateError: the shell was opened in another event loop.
        """
        connection = self._connection
        if connection is not None and self._loop is not running_loop():
            raise ClientStateError("this shell was opened in another event loop; close it there")
        self._was_lost = self._was_lost or self.lost
        self.over, self._connection = self.over or "it is closed", None
        if connection is not None:
            await wait_shielded(running_loop().create_task(self.operations.close(connection)))

    async def wait_disconnected(self) -> SSHError | None:
        """Wait until the connection is lost, and return the error; return None if the shell was closed first.

        Raises:
            ClientStateError: the shell is not open, or was opened in another event loop.
        """
        connection = self.check_open()
        await connection.wait_closed()
        if self.closed and not self._was_lost:
            return None
        return self.lost_error(connection.get_extra_info("connection_lost"))

    def connected(self) -> asyncssh.SSHClientConnection:
        """Return the connection, to be used now.

        Raises:
            ClientStateError: the shell is not open, or was opened in another event loop.
            SSHError: the connection was lost.
        """
        connection = self.check_open()
        if self.lost:
            raise SSHError(f"{self.label}: the connection was lost", stage="connection")
        return connection

    def check_open(self) -> asyncssh.SSHClientConnection:
        """Return the connection, which may be lost.

        Raises:
            ClientStateError: the shell is not open, or was opened in another event loop.
        """
        if self._connection is None:
            raise self.unusable()
        if self._loop is not running_loop():
            raise ClientStateError("this shell was opened in another event loop; use it there")
        return self._connection

    def unusable(self) -> ClientStateError:
        """Return the error of a shell that is not open."""
        over = self.over or "it is not open yet; enter its with block first"
        return ClientStateError(f"this shell cannot be used: {over}")

    def lost_error(self, cause: BaseException | None = None) -> SSHError:
        """Return the error of a connection that was lost."""
        problem = f"{self.label}: the connection was lost; its commands may still run, or may have ended"
        error = SSHError(problem, stage="connection")
        error.__cause__ = cause
        return error

    async def start(self, command: Command) -> None:
        """Start a command. The caller has to call `operations.finish` afterwards, even if this raises.

        Raises:
            SSHError: the command could not be started, or the connection was lost.
            ClientStateError: the shell is not open.
        """
        connection = self.connected()
        with self.failing("command", "the command could not be started"):
            await self.operations.start(command, connection)

    def checked(self, command: Command, done: CommandResult, *, check: bool) -> CommandResult:
        """Return the result of a command that has ended.

        Raises:
            SSHError: the connection was lost, or the command failed and `check` is True.
            ClientStateError: the shell was closed meanwhile.
        """
        if command.cut_off:
            raise self.unusable()
        if done.exit_status is None and done.exit_signal is None:
            raise self.lost_error()
        if check and not done.ok:
            raise SSHError(f"{self.label}: {described(done)}", stage="command", result=done)
        return done

    @contextmanager
    def failing(self, stage: SSHStage, what: str) -> Generator[None]:
        """Convert the errors of a block to an `SSHError`.

        Args:
            stage: the stage of the error, unless the connection was lost.
            what: the failure, as the error names it.
        """
        import asyncssh

        try:
            yield
        except (OSError, asyncssh.Error, asyncssh.ChannelListenError) as error:
            if isinstance(error, (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection)):
                self._sftp = None
            if self._connection is not None and self._connection.is_closed():
                raise self.lost_error() from error
            raise SSHError(f"{self.label}: {what} ({str(error) or 'no answer in time'})", stage=stage) from error

    async def sftp_client(self) -> asyncssh.SFTPClient:
        """Return the SFTP client that all copies share. A cancelled caller does not end the start for other callers.

        Raises:
            OSError, asyncssh.Error: SFTP could not be started.
            SSHError: the connection was lost.
            ClientStateError: the shell is not open.
        """
        connection = self.connected()
        if self._sftp is None or (self._sftp.done() and (self._sftp.cancelled() or self._sftp.exception())):
            self._sftp = asyncio.ensure_future(self._start_sftp(connection))
            # Mark the error as retrieved: otherwise asyncio logs it when no caller waits any more.
            self._sftp.add_done_callback(lambda started: started.cancelled() or started.exception())
        async with asyncio.timeout(self.limits.sftp_start):
            return await asyncio.shield(self._sftp)

    async def end_unused_sftp(self) -> None:
        """End the SFTP session if no copy uses it, because its process on the container looks like a copy."""
        started = self._sftp
        if started is None or not started.done() or self.operations.copies_under_way:
            return
        self._sftp = None
        if started.cancelled() or started.exception() is not None:
            return
        started.result().exit()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.limits.sftp_start):
                await started.result().wait_closed()

    async def _start_sftp(self, connection: asyncssh.SSHClientConnection) -> asyncssh.SFTPClient:
        from netmind_rentgpu.ssh.refusals import open_patiently

        turns = self.operations.turns
        try:
            await turns.claim_reserve()
            return await open_patiently(connection, lambda: connection.start_sftp_client(path_errors="surrogateescape"))
        finally:
            turns.return_reserve()
