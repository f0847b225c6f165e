"""One command from its turn to its result, within a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from netmind_rentgpu.errors import SSHTimeoutError
from netmind_rentgpu.results import CommandResult
from netmind_rentgpu.ssh.arguments import shown
from netmind_rentgpu.ssh.commands import Command
from netmind_rentgpu.ssh.connection import ShellConnection
from netmind_rentgpu.ssh.output import Capture
from netmind_rentgpu.waiting.waits import checked_timeout

__all__ = ["run_command"]


async def run_command(
    connection: ShellConnection,
    running: Command,
    captured: Capture,
    attend: Callable[[], Awaitable[None]],
    *,
    check: bool,
    timeout: float | None,
) -> CommandResult:
    """Start a command, attend to it, end it if it still runs, and return its result.

    Args:
        captured: the output that the result has.
        attend: feeds the command, and returns once it has ended.
        check: True to raise an error unless the command ends with status 0.
        timeout: the seconds for all of this; None for no limit.

    Raises:
        SSHTimeoutError: it took too long.
        SSHError: the command could not be started, the connection was lost, or the command failed and `check` is True.
        ClientStateError: the shell is not open, or was closed meanwhile.
    """
    deadline = asyncio.timeout(None if timeout is None else checked_timeout(timeout))
    try:
        async with deadline, connection.operations.turns:
            try:
                await connection.start(running)
                await attend()
            finally:
                await connection.operations.finish(running)
    except TimeoutError as error:
        if not deadline.expired():
            raise
        done = running.result(captured)
        problem = f"{connection.label}: {shown(done.command)} did not end within {timeout:g} s, and was cancelled"
        raise SSHTimeoutError(problem, stage="command", result=done) from error
    finally:
        del deadline  # break the reference cycle
    return connection.checked(running, running.result(captured), check=check)
