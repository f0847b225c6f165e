"""`AsyncShell`: one connection to a container, for any number of commands, copies and forwarded ports."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from netmind_rentgpu.arguments import shown_value, texts
from netmind_rentgpu.errors import ClientStateError, InvalidArgumentError, SSHError
from netmind_rentgpu.models import Container
from netmind_rentgpu.results import CommandResult, OnTransferProgress, OutputLine
from netmind_rentgpu.ssh.arguments import local_path, remote_path
from netmind_rentgpu.ssh.connection import OpenConnection, ShellConnection
from netmind_rentgpu.ssh.connection_source import RenewedConnection
from netmind_rentgpu.ssh.forwarded import AsyncForward, open_forward, open_reverse_forward
from netmind_rentgpu.ssh.limits import SSHLimits

if TYPE_CHECKING:
    from netmind_rentgpu.ssh.jobs import AsyncJob
    from netmind_rentgpu.ssh.streams import PipeSink, PipeSource

__all__ = ["AsyncShell"]

_LOOPBACK = "127.0.0.1"


class AsyncShell:
    """A shell on a container: `async with gpu.ssh(container) as shell: ...`.

    All calls share one connection, which is kept alive. The shell does not replace a lost connection, but raises `SSHError`:
    the commands may or may not have ended. Several calls may run at once. Of commands, eight do, or more if the server
    allows more; further ones wait.
    """

    def __init__(self, open_connection: OpenConnection, limits: SSHLimits | None = None, *, over: str = "") -> None:
        self._connection = ShellConnection(open_connection, limits or SSHLimits(), over)
        self._renewed = RenewedConnection(self._connection)

    @property
    def container(self) -> Container:
        """The container, as it was when the shell was opened.

        Raises:
            ClientStateError: the shell is not open.
        """
        return self._connection.container

    @property
    def lost(self) -> bool:
        """True if the connection was lost; the shell cannot be used any more."""
        return self._connection.lost

    @property
    def closed(self) -> bool:
        """True if the shell was closed; it cannot be used any more."""
        return self._connection.closed

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
        from netmind_rentgpu.ssh.commands import Command, prepared
        from netmind_rentgpu.ssh.output import Capture
        from netmind_rentgpu.ssh.running import run_command

        if type(max_output) is not int or max_output < 0:
            raise InvalidArgumentError("max_output", f"must be a number of bytes, 0 or more: {shown_value(max_output)}")
        ready = prepared(command, environment, input)
        captured = Capture(max_output)
        running = Command(ready, captured)
        return await run_command(
            self._connection, running, captured, running.feed_and_wait, check=check, timeout=timeout
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
        """Run a command between streams of bytes, and wait for it: nothing is decoded, and any number of bytes pass.

        A slow command slows the reading of its input down, and a slow receiver slows the command down: at most a few MiB
        are under way. The streams are not closed. If the call fails, is cancelled or takes too long, the command is ended as
        in `run`. Input that the command does not read is no error, and most of it is left unread.

        Descriptors and binary files are read and written in threads. Except on Windows, a pipe, socket or terminal that
        never gets ready keeps no thread. Do not use a stream otherwise during the call.

        Args:
            stdin: the command's input: bytes, a binary file, a descriptor; in an event loop also an object with an
                asynchronous `read`, such as `asyncio.StreamReader`, or an asynchronous iterable of bytes, such as anyio's
                streams. None for no input.
            stdout, stderr: the receiver of each output: a binary file, a descriptor; in an event loop also an object with an
                asynchronous `send`, `drain` or `write`, such as anyio's streams or `asyncio.StreamWriter`. None to keep the
                output's last 16 MiB in the result.
            check: True to raise an error unless the command ends with status 0.
            timeout: the seconds that the call may take; None for no limit.
            environment: variables for the command. They appear on no command line.

        Raises:
            SSHTimeoutError: the call took too long.
            SSHError: as for `run`.
            InvalidArgumentError: an argument cannot be used, or a source gives something other than bytes.
            ClientStateError: the shell is not open.
            Exception: any error of a stream is raised as it is.
        """
        from netmind_rentgpu.ssh.pipes import run_piped

        return await run_piped(
            self._connection,
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            check=check,
            timeout=timeout,
            environment=environment,
        )

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
        from netmind_rentgpu.ssh.commands import prepared
        from netmind_rentgpu.ssh.line_stream import LineStream
        from netmind_rentgpu.ssh.output import Lines

        ready = prepared(command, environment, input)
        async with LineStream(self._connection, ready, Lines(), check=check) as stream:
            while (line := await stream.next()) is not None:
                yield line
        stream.result()

    async def start(
        self,
        command: str,
        *,
        name: str | None = None,
        environment: Mapping[str, str] | None = None,
        directory: str | None = None,
        input: str | bytes | None = None,  # noqa: A002  # the name that subprocess uses
    ) -> AsyncJob:
        """Start a job: a command that goes on after this connection and this process have ended.

        The container needs no more than a POSIX shell. The job runs in the login's shell, in a session of its own. If the
        connection is lost meanwhile, another one is opened, and the job is not started twice.

        Args:
            name: the job's name, of letters, digits, dots, dashes and underscores; None for a new one. `job(name)` finds it.
            environment: variables for the job. They appear on no command line, and in no file.
            directory: the folder to start in, from the login's home folder; None for that folder.
            input: the job's input, of 64 KiB at most; None for no input. It is kept in no file. A text is sent as UTF-8.

        Raises:
            JobExistsError: the container has a job of that name, which may be over.
            InvalidArgumentError: an argument cannot be used, or the directory cannot be entered.
            SSHError: the job could not be started, or no connection could be made for five minutes.
            ClientStateError: the shell is not open.
        """
        from netmind_rentgpu.ssh.jobs import start_job

        return await start_job(
            self._renewed, command, name=name, environment=environment, directory=directory, given=input
        )

    async def jobs(self) -> list[AsyncJob]:
        """Return the jobs of the container, those that are over included, sorted by name.

        Raises:
            SSHError: the container's shell failed, or no connection could be made for five minutes.
            ClientStateError: the shell is not open.
        """
        from netmind_rentgpu.ssh.jobs import find_jobs

        return await find_jobs(self._renewed)

    async def job(self, name: str) -> AsyncJob:
        """Return the container's job of a name.

        Raises:
            JobNotFoundError: there is none.
            SSHError: the container's shell failed, or no connection could be made for five minutes.
            InvalidArgumentError: no job can have that name.
            ClientStateError: the shell is not open.
        """
        from netmind_rentgpu.ssh.jobs import find_job

        return await find_job(self._renewed, name)

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
        from netmind_rentgpu.ssh.copies import run_copy
        from netmind_rentgpu.ssh.transfer import upload

        path, here, patterns = remote_path(remote), local_path(local), texts("exclude", exclude)
        what = f"{local} to {remote}"
        await run_copy(
            self._connection, what, timeout, lambda server: upload(server, here, path, on_progress, patterns)
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
        from netmind_rentgpu.ssh.copies import run_copy
        from netmind_rentgpu.ssh.transfer import download

        path, here = remote_path(remote), local_path(local)
        what = f"{remote} to {local}"
        await run_copy(self._connection, what, timeout, lambda server: download(server, path, here, on_progress))

    async def forward(self, *, local_port: int, remote_port: int, remote_host: str = _LOOPBACK) -> AsyncForward:
        """Forward a port of this machine to one of the container, as for Jupyter, until the forward or the shell is closed.

        Args:
            local_port: the port of 127.0.0.1 to listen on; 0 for any free port.
            remote_port: the port to connect to.
            remote_host: the host to connect to, as seen from the container.

        Raises:
            SSHError: the port cannot be forwarded.
            InvalidArgumentError: a port or the host cannot be used.
            ClientStateError: the shell is not open.
        """
        return await open_forward(
            self._connection, local_port=local_port, remote_port=remote_port, remote_host=remote_host
        )

    async def reverse_forward(self, *, remote_port: int, local_port: int, local_host: str = _LOOPBACK) -> AsyncForward:
        """Forward a port of the container to one of this machine, until the forward or the shell is closed.

        Args:
            remote_port: the port of the container's own localhost to listen on; 0 for any free port.
            local_port: the port to connect to.
            local_host: the host to connect to, as seen from this machine.

        Raises:
            SSHError: the port cannot be forwarded.
            InvalidArgumentError: a port or the host cannot be used.
            ClientStateError: the shell is not open.
        """
        return await open_reverse_forward(
            self._connection, remote_port=remote_port, local_port=local_port, local_host=local_host
        )

    async def interact(self, command: str | None = None) -> CommandResult:
        """Connect this program's terminal to a shell on the container, or to a command, until the shell or command ends.

        Returns:
            The result, with the command as it was given, or an empty one for a shell, and without output.

        Raises:
            SSHError: the shell or command could not be started, or the connection was lost.
            ClientStateError: the shell is not open, or this program has no terminal.
        """
        try:
            from netmind_rentgpu.ssh.terminal import run_terminal
        except ImportError as error:
            raise ClientStateError(
                "cannot interact: this system has no POSIX terminals; use run() or stream()"
            ) from error

        return await run_terminal(self._connection, command)

    async def wait_disconnected(self) -> SSHError | None:
        """Wait until the connection is lost, and return the error; return None once the shell is closed.

        A connection that has broken silently is noticed by `keepalive` of `gpu.ssh`. Any number of calls may wait.

        Raises:
            ClientStateError: the shell is not open.
        """
        return await self._connection.wait_disconnected()

    async def close(self) -> None:
        """End all commands and copies, and close the connection. A second call does nothing.

        Raises:
            ClientStateError: the shell was opened in another event loop.
        """
        try:
            await self._connection.close()
        finally:
            await self._renewed.close()

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __copy__(self) -> Self:
        """Return a shell that cannot be used, for another process such as a forked child."""
        connection = self._connection
        over = connection.over or "it belongs to another process"
        return type(self)(connection.open_connection, connection.limits, over=over)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self._connection.label}: {self._connection.state}>"

    def __reduce__(self) -> str:
        raise TypeError("a shell holds a connection and cannot be pickled")
