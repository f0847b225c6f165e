"""What is under way over one connection, and ends before that does: commands, which wait for their turn, and copies.

No asynchronous generators here: when an event loop ends, it closes each that was left half way, and the inner ones with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from netmind_rentgpu.concurrency.cancellation import wait_shielded

if TYPE_CHECKING:
    import asyncssh

    from netmind_rentgpu.ssh.commands import Command

__all__ = ["ActiveOperations"]

# OpenSSH allows ten sessions for a connection. One is for copies, one for ending commands.
_COMMANDS_AT_ONCE = 8
_LONGEST_GOODBYE = 10.0


class ActiveOperations:
    """What a shell has under way.

    Attributes:
        turns: to be held by each command from before it starts until it is over.
    """

    def __init__(self) -> None:
        self.turns: asyncio.Semaphore = asyncio.Semaphore(_COMMANDS_AT_ONCE)
        self._turn_to_end = asyncio.Lock()
        # Each with the task that ends it, if there is one.
        self._commands: dict[Command, asyncio.Task[None] | None] = {}
        self._copies: set[asyncio.Task[None]] = set()

    async def start(self, command: Command, connection: asyncssh.SSHClientConnection) -> None:
        """Start a command. Whatever comes of that, `finish` has to follow.

        Raises:
            OSError, asyncssh.Error: it cannot be.
        """
        self._commands[command] = None
        await command.start(connection)

    async def finish(self, command: Command) -> None:
        """See that a command is over."""
        if command.closed:
            self._commands.pop(command, None)
        elif command in self._commands:
            await wait_shielded(self._end(command))

    async def copy(self, copying: Coroutine[Any, Any, None]) -> bool:
        """Copy; tell whether that came to its end, or was ended with all the rest."""
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
                task.exception()  # it is not for anybody any more
            raise
        return True

    async def close(self, connection: asyncssh.SSHClientConnection) -> None:
        """End everything, and close its connection."""
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
        """End a command in a task of its own: whoever is cancelled once more must not keep it from being ended."""
        task = self._commands[command]
        if task is None:
            task = self._commands[command] = asyncio.get_running_loop().create_task(command.end(self._turn_to_end))
            task.add_done_callback(lambda _: self._commands.pop(command, None))
        return task
