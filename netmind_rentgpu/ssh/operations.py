"""The commands and copies that run over one connection. Commands wait for their turn, and all end before it closes.

No function here is an asynchronous generator, because an ending event loop closes each unfinished generator, inner ones too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.ssh.turns import CommandTurns, ProbeResult

if TYPE_CHECKING:
    import asyncssh

    from netmind_rentgpu.ssh.commands import Command

__all__ = ["ActiveOperations", "OpenForward"]

# Seconds.
_LONGEST_GOODBYE = 10.0
_LONGEST_PROBE_TO_WAIT_FOR = 2.0


class OpenForward(Protocol):
    """A forwarded port."""

    @property
    def closed(self) -> bool:
        """True if it accepts no more connections."""
        ...


class ActiveOperations:
    """The commands and copies that a shell has under way.

    Attributes:
        turns: a caller holds one from before it starts a command until the command is over.
        copies_under_way: the number of copies.
    """

    def __init__(self) -> None:
        self.turns: CommandTurns = CommandTurns(self._probe)
        self._connection: asyncssh.SSHClientConnection | None = None
        self._turn_to_end = asyncio.Lock()
        # Each command with the task that ends it, or None while there is no such task.
        self._commands: dict[Command, asyncio.Task[None] | None] = {}
        self._copies: set[asyncio.Task[None]] = set()
        self._copies_begun = 0
        self.copies_under_way: int = 0
        self._forwards: set[OpenForward] = set()
        self._forwards_begun = 0

    async def start(self, command: Command, connection: asyncssh.SSHClientConnection) -> None:
        """Start a command. The caller has to call `finish` afterwards, even if this raises.

        Raises:
            OSError, asyncssh.Error: the command could not be started.
        """
        self._connection = connection
        self._commands[command] = None
        await command.start(connection)

    async def finish(self, command: Command) -> None:
        """End a command if it still runs, and forget it."""
        if command.closed:
            self._commands.pop(command, None)
        elif command in self._commands:
            await wait_shielded(self._end(command))

    async def copy(self, copying: Coroutine[Any, Any, None]) -> bool:
        """Run a copy; return True if it finished, False if `close` ended it."""
        task = asyncio.get_running_loop().create_task(copying)
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                return False
            task.cancel()
            await wait_shielded(task)
            if not task.cancelled():
                task.exception()  # mark it as retrieved, because the caller wants no error now and asyncio would log it
            raise
        return True

    @contextmanager
    def copying(self) -> Generator[None]:
        """Count a copy as under way, from before it uses SFTP."""
        self._copies_begun += 1
        self.copies_under_way += 1
        try:
            yield
        finally:
            self.copies_under_way -= 1

    def add_forward(self, forward: OpenForward) -> None:
        """Record that a port is forwarded, until it is closed."""
        self._forwards.add(forward)
        self._forwards_begun += 1

    @property
    def under_way(self) -> int:
        """The number of commands, copies, terminals and forwards that the connection has now."""
        self._forwards = {forward for forward in self._forwards if not forward.closed}
        return self.turns.under_way + self.copies_under_way + len(self._forwards)

    @property
    def begun(self) -> int:
        """The number of commands, copies, terminals and forwards that have begun so far."""
        return self.turns.begun + self._copies_begun + self._forwards_begun

    async def close(self, connection: asyncssh.SSHClientConnection) -> None:
        """End all commands and copies, and close the connection."""
        for copying in self._copies:
            copying.cancel()
        try:
            if ending := {*map(self._end, tuple(self._commands)), *self._copies}:
                await asyncio.wait(ending, timeout=_LONGEST_GOODBYE)
        finally:
            connection.close()
        try:
            async with asyncio.timeout(_LONGEST_GOODBYE):
                await connection.wait_closed()
        except TimeoutError:
            connection.abort()

    def _end(self, command: Command) -> asyncio.Task[None]:
        """End a command in a task of its own, which goes on if the caller is cancelled again."""
        task = self._commands[command]
        if task is None:
            task = self._commands[command] = asyncio.get_running_loop().create_task(self._end_now(command))
            task.add_done_callback(lambda _: self._commands.pop(command, None))
        return task

    async def _end_now(self, command: Command) -> None:
        try:
            await self.turns.claim_reserve(timeout=_LONGEST_PROBE_TO_WAIT_FOR)
            await command.end(self._turn_to_end)
        finally:
            self.turns.return_reserve()

    async def _probe(self, count: int) -> ProbeResult:
        if self._connection is None:
            return ProbeResult(opened=0, refused=count, running=0)
        from netmind_rentgpu.ssh.session_probe import probe_sessions

        return await probe_sessions(
            self._connection, count, lambda: sum(command.is_running for command in self._commands)
        )
