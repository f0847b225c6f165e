"""A command that runs, and the lines that it writes, one by one."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Protocol, Self

from netmind_rentgpu.results import CommandResult, OutputLine
from netmind_rentgpu.ssh.commands import Command, Prepared
from netmind_rentgpu.ssh.connection import ShellConnection
from netmind_rentgpu.ssh.output import Output

__all__ = ["LineOutput", "LineStream"]


class LineOutput(Output, Protocol):
    """A receiver of output that makes lines of it."""

    @property
    def room(self) -> bool:
        """True if the waiting lines leave room for more."""
        ...

    def next(self) -> OutputLine | None:
        """Return the next line; None if no line waits."""
        ...

    def finish(self) -> None:
        """Add what is left as lines, because the command has ended."""
        ...


class LineStream:
    """A command from its start to its end: `async with LineStream(...) as stream`. Leaving the block ends the command.

    This is no asynchronous generator, because an ending event loop closes each unfinished generator, inner ones too.
    """

    def __init__(self, connection: ShellConnection, ready: Prepared, lines: LineOutput, *, check: bool = False) -> None:
        """Set up.

        Args:
            check: True to raise an error for a result unless the command ends with status 0.
        """
        self._connection = connection
        self._lines = lines
        self._check = check
        self._feeding: asyncio.Future[None] | None = None
        self._command = Command(ready, lines)

    async def __aenter__(self) -> Self:
        await self._connection.operations.turns.__aenter__()
        try:
            await self._connection.start(self._command)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        self._feeding = asyncio.ensure_future(self._command.feed())
        return self

    async def next(self) -> OutputLine | None:
        """Return the next line, once it has come; None once the command has ended, and no line is left."""
        while True:
            if has_ended := self._command.closed:
                self._lines.finish()
            line = self._lines.next()
            # After that, because it may have made room.
            if self._lines.room:
                self._command.go_on()
            if line is not None or has_ended:
                return line
            await self._command.news()

    def result(self) -> CommandResult:
        """Return the result of the command, which has ended.

        Raises:
            SSHError: the connection was lost, or the command failed and `check` is True.
            ClientStateError: the shell was closed.
        """
        return self._connection.checked(self._command, self._command.result(), check=self._check)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._feeding is not None:
            self._feeding.cancel()
        try:
            await self._connection.operations.finish(self._command)
        finally:
            await self._connection.operations.turns.__aexit__(kind, error, traceback)
