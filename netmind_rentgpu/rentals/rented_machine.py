"""Commands, jobs and forwarded ports of a rented machine, over connections that are made again when lost."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs

from netmind_rentgpu.errors import (
    ClientStateError,
    ContainerGoneError,
    NotFoundError,
    RentalEndedError,
    RentGPUError,
    SSHError,
)
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.container_index import check_not_replaced
from netmind_rentgpu.rentals.lifecycle.attempt import ProvisionedRental
from netmind_rentgpu.rentals.lifecycle.reconnecting_shell import ReconnectingShell
from netmind_rentgpu.rentals.lifecycle.state import EndReason, RentalState
from netmind_rentgpu.rentals.signals import until_passed_on
from netmind_rentgpu.results import ActivityReading
from netmind_rentgpu.ssh.activity import activity_from, read_activity
from netmind_rentgpu.ssh.connection_source import LONGEST_OUTAGE, LongCalls
from netmind_rentgpu.ssh.forwarded import check_forwarding
from netmind_rentgpu.ssh.jobs import AsyncJob, find_job, find_jobs, start_job
from netmind_rentgpu.ssh.lasting_forwards import LastingForwards

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from netmind_rentgpu.results import CommandResult
    from netmind_rentgpu.ssh.connection import ShellConnection
    from netmind_rentgpu.ssh.forwarded import AsyncForward
    from netmind_rentgpu.ssh.shell import AsyncShell
    from netmind_rentgpu.ssh.streams import PipeSink, PipeSource

__all__ = ["RentalConnections", "RentedMachine"]

_LOOPBACK = "127.0.0.1"


class RentedMachine:
    """The part of a rental that uses its container."""

    def __init__(self, context: RentalContext) -> None:
        self._context = context
        self._state = RentalState()
        self._shell = ReconnectingShell(context.shell_on)
        self._connections = RentalConnections(context, self._state, self._shell)
        self._forwards = LastingForwards(self._connections)
        # The shell of the last reading, and the number of operations that it had begun by then.
        self._seen: tuple[AsyncShell | None, int] = (None, 0)

    @property
    def shell(self) -> AsyncShell:
        """The shell on the container, for what `run` does not do. If its connection was lost, `run` opens another shell.

        Raises:
            RentalEndedError: the rental is over, and not because it was left.
            ClientStateError: the rental was not entered yet, was left, or was detached.
        """
        self._state.check()
        if self._shell.shell is None:
            raise ClientStateError("this rental has no shell yet")
        return self._shell.shell

    @property
    def ended(self) -> bool:
        """True if the rental is over: it was left, its time or its budget is up, or its container is known to be gone."""
        return self._state.reason is not None

    async def run(
        self,
        command: str,
        *,
        check: bool = False,
        timeout: float | None = None,
        environment: Mapping[str, str] | None = None,
        input: str | bytes | None = None,  # noqa: A002  # as subprocess calls it
        max_output: int = 16 * 1024 * 1024,
    ) -> CommandResult:
        """Run a command in the login's shell, and wait for it: `shell.run`, over a new connection if the old one was lost.

        Args:
            check: True to raise `SSHError` if the command does not end with status 0.
            timeout: seconds for the whole command; None for no limit.
            environment: variables for the command. They stand on no command line.
            input: the command's input, text as UTF-8; no input if None.
            max_output: how many bytes to keep of each of its two outputs; longer output keeps only its tail.

        Raises:
            RentalEndedError: the rental is over: its time or its budget is up, or its container is gone or allows no login.
            SSHTimeoutError: the command took too long; `result` holds its output so far.
            SSHError: `check` and it failed; it could not be started; or the connection was lost.
            InvalidArgumentError: an argument that cannot be used.
            ClientStateError: the rental was not entered yet, was left, or was detached.
        """
        return await self._use(
            lambda shell: shell.run(
                command, check=check, timeout=timeout, environment=environment, input=input, max_output=max_output
            )
        )

    async def pipe(
        self,
        command: str,
        *,
        stdin: PipeSource | None = None,
        stdout: PipeSink | None = None,
        stderr: PipeSink | None = None,
        check: bool = False,
        timeout: float | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> CommandResult:
        """Run a command between streams of bytes: `shell.pipe`, over a new connection if the old one was lost.

        Args:
            stdin: the command's input: bytes, a binary file, a descriptor, or an asynchronous stream; None for no input.
            stdout, stderr: the receiver of each output: a binary file, a descriptor, or an asynchronous stream; None to keep
                its last 16 MiB in the result.
            check: True to raise `SSHError` if the command does not end with status 0.
            timeout: seconds for the whole command; None for no limit.
            environment: variables for the command. They stand on no command line.

        Raises:
            RentalEndedError: the rental is over, as for `run`.
            SSHTimeoutError: the command took too long.
            SSHError: as for `run`. What has passed of the streams has passed.
            InvalidArgumentError: an argument that cannot be used.
            ClientStateError: the rental was not entered yet, was left, or was detached.
            Exception: any error of a stream is raised as it is.
        """
        return await self._use(
            lambda shell: shell.pipe(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                check=check,
                timeout=timeout,
                environment=environment,
            )
        )

    async def start(
        self,
        command: str,
        *,
        name: str | None = None,
        environment: Mapping[str, str] | None = None,
        directory: str | None = None,
        input: str | bytes | None = None,  # noqa: A002  # the name that subprocess uses
    ) -> AsyncJob:
        """Start a job: a command that goes on without a connection, and after this program; the rental's end ends it.

        If the connection is lost meanwhile, another one is opened, and the job is not started twice.

        Args:
            name: the job's name, of letters, digits, dots, dashes and underscores; None for a new one. `job(name)` finds it.
            environment: variables for the job. They appear on no command line, and in no file.
            directory: the folder to start in, from the login's home folder; None for that folder.
            input: the job's input, of 64 KiB at most; None for no input. It is kept in no file. A text is sent as UTF-8.

        Raises:
            JobExistsError: the container has a job of that name, which may be over.
            InvalidArgumentError: an argument cannot be used, or the directory cannot be entered.
            SSHError: the job could not be started, or no connection could be made for five minutes.
            RentalEndedError: the rental is over.
            ClientStateError: the rental was not entered yet, was left, or was detached.
        """
        self._state.check_loop()
        return await start_job(
            self._connections, command, name=name, environment=environment, directory=directory, given=input
        )

    async def jobs(self) -> list[AsyncJob]:
        """Return the jobs of the container, those that are over included, sorted by name.

        Raises:
            SSHError: the container's shell failed, or no connection could be made for five minutes.
            RentalEndedError: the rental is over.
            ClientStateError: the rental was not entered yet, was left, or was detached.
        """
        self._state.check_loop()
        return await find_jobs(self._connections)

    async def job(self, name: str) -> AsyncJob:
        """Return the container's job of a name, as after `rentals.attach`.

        Raises:
            JobNotFoundError: there is none.
            SSHError: the container's shell failed, or no connection could be made for five minutes.
            InvalidArgumentError: no job can have that name.
            RentalEndedError: the rental is over.
            ClientStateError: the rental was not entered yet, was left, or was detached.
        """
        self._state.check_loop()
        return await find_job(self._connections, name)

    async def forward(self, *, local_port: int, remote_port: int, remote_host: str = _LOOPBACK) -> AsyncForward:
        """Forward a port of this machine to one of the container, until the forward is closed or the rental ends.

        The port stays open while the connection is lost, and the rental connects again by itself.

        Args:
            local_port: the port of 127.0.0.1 to listen on; 0 for any free port.
            remote_port: the port to connect to.
            remote_host: the host to connect to, as seen from the container.

        Raises:
            SSHError: the port cannot be forwarded.
            InvalidArgumentError: a port or the host cannot be used.
            RentalEndedError: the rental is over.
            ClientStateError: the rental was not entered yet, was left, or was detached.
        """
        self._state.check_loop()
        return await self._forwards.forward(local_port=local_port, remote_port=remote_port, remote_host=remote_host)

    async def reverse_forward(self, *, remote_port: int, local_port: int, local_host: str = _LOOPBACK) -> AsyncForward:
        """Forward a port of the container to one of this machine, until the forward is closed or the rental ends.

        If the connection is lost, the rental connects again by itself, and the same port of the container is opened again.

        Args:
            remote_port: the port of the container's own localhost to listen on; 0 for any free port.
            local_port: the port to connect to.
            local_host: the host to connect to, as seen from this machine.

        Raises:
            SSHError: the port cannot be forwarded.
            InvalidArgumentError: a port or the host cannot be used.
            RentalEndedError: the rental is over.
            ClientStateError: the rental was not entered yet, was left, or was detached.
        """
        self._state.check_loop()
        return await self._forwards.reverse_forward(
            remote_port=remote_port, local_port=local_port, local_host=local_host
        )

    async def _use(self, use: Callable[[AsyncShell], Awaitable[CommandResult]]) -> CommandResult:
        """Use the shell, over a new connection if the old one was lost; if that fails, find out if the rental is over."""
        self._state.check_loop()
        await until_passed_on()
        shell = await self._connections.usable_shell()
        try:
            return await use(shell)
        except (SSHError, ClientStateError) as error:
            await until_passed_on()
            if self._state.reason is None and isinstance(error, SSHError) and error.stage == "connection":
                await self._connections.examine(self._state.had)
            if self._state.reason is not None:
                raise self._state.error from error
            raise

    async def _read_activity(self) -> ActivityReading:
        """Return what shows whether the machine is in use."""
        operations, before = max(self._operations_under_way, int(self._is_used())), self._seen_now
        try:
            connection = await self._connections.usable_connection()
            await connection.end_unused_sftp()
            return await read_activity(connection, operations=operations)
        except RentGPUError as error:
            return activity_from("", operations=operations, read_at=datetime.now(UTC), failure=str(error))
        finally:
            (shell, begun), (shell_before, begun_before) = self._seen_now, before
            # The reading is a command itself.
            is_known = shell is shell_before and begun <= begun_before + 1
            self._seen = (shell, begun) if is_known else (None, 0)

    def _is_used(self) -> bool:
        """Return True if this process uses the machine, or has since the last reading."""
        return self._operations_under_way > 0 or self._seen_now != self._seen

    async def _check_forwarding(self) -> None:
        """Check that ports can be forwarded in both directions.

        Raises:
            RentalEndedError: the rental is over.
            SSHError: the server forbids it, or the connection was lost.
        """
        await check_forwarding(await self._connections.usable_connection())

    @property
    def _operations_under_way(self) -> int:
        shell = self._shell.shell
        return self._forwards.count + (0 if shell is None else shell._connection.operations.under_way)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a shell is a connection to its user

    @property
    def _seen_now(self) -> tuple[AsyncShell | None, int]:
        shell = self._shell.shell
        return shell, 0 if shell is None else shell._connection.operations.begun  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # as above

    async def _close_connections(self) -> None:
        await self._forwards.close()
        await self._connections.long_calls.close()
        await self._shell.close()


class RentalConnections:
    """The connections of a rental, for its commands, jobs and forwards. They do not keep the rental from being freed.

    Attributes:
        longest_outage, long_calls: as in `ConnectionSource`.
    """

    def __init__(self, context: RentalContext, state: RentalState, shell: ReconnectingShell) -> None:
        self._context = context
        self._state = state
        self._shell = shell
        self.longest_outage: float = LONGEST_OUTAGE
        self.long_calls: LongCalls = LongCalls()

    async def usable_connection(self) -> ShellConnection:
        """Return a connection that is neither closed nor known to be lost."""
        shell = await self._connect()
        return shell._connection  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a shell is a connection to its user

    async def usable_shell(self) -> AsyncShell:
        """Return a shell that is neither closed nor known to be lost.

        Raises:
            RentalEndedError: the rental is over, or allows no login.
        """
        had = self._state.check()
        try:
            return await self._connect()
        except SSHError as error:
            text = (
                f"{self._state.had.record.name} cannot be logged in to again; its container may have stopped: {error}"
            )
            raise RentalEndedError(text, name=had.record.name, container_id=had.record.container_id) from error

    async def _connect(self) -> AsyncShell:
        had = self._state.check()
        try:
            return await self._shell.usable(lambda: self.examine(had))
        except SSHError:
            self._state.check()
            raise

    async def examine(self, had: ProvisionedRental) -> Container:
        """Return the container as the service shows it now, or as it was known if that cannot be found out.

        Raises:
            RentalEndedError: the container is gone.
        """
        try:
            container = await self._context.containers.get(had.container.id)
            check_not_replaced(had.record, container)
        except (NotFoundError, ContainerGoneError) as error:
            if self._state.reason is not None:  # the container was deleted, or is being deleted
                raise self._state.error from error
            if isinstance(error, NotFoundError) and not await self._context.container_index.is_unlisted(
                had.container.id
            ):
                return had.container
            self._state.end(EndReason.GONE)
            raise self._state.error from error
        except RentGPUError:
            return had.container
        self._state.provisioned = attrs.evolve(had, container=container)
        return container
