"""Copies over a shell's connection, within a time limit, with the errors of a shell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any

from netmind_rentgpu.errors import SSHError, SSHTimeoutError
from netmind_rentgpu.ssh.connection import ShellConnection
from netmind_rentgpu.ssh.listing import Server, TransferError
from netmind_rentgpu.waiting.waits import checked_timeout

__all__ = ["run_copy"]


async def run_copy(
    connection: ShellConnection,
    what: str,
    timeout: float | None,
    copying: Callable[[Server], Coroutine[Any, Any, None]],
) -> None:
    """Run a copy, within a number of seconds.

    Args:
        what: the source and the target, as errors name them.

    Raises:
        SSHTimeoutError: the copy took longer.
        SSHError: the copy failed.
        ClientStateError: the shell is not open, or was closed meanwhile.
    """
    deadline = asyncio.timeout(None if timeout is None else checked_timeout(timeout))
    try:
        async with deadline:
            with connection.operations.copying(), _transferring(connection, what):
                server = Server(await connection.sftp_client(), connection.limits)
                whole = await connection.operations.copy(copying(server))
    except TimeoutError as error:
        if not deadline.expired():
            raise
        problem = f"{connection.label}: cannot copy {what}: it did not end within {timeout:g} s"
        raise SSHTimeoutError(problem, stage="transfer") from error
    finally:
        del deadline  # break the reference cycle
    if not whole:
        raise connection.unusable()


@contextmanager
def _transferring(connection: ShellConnection, what: str) -> Generator[None]:
    with connection.failing("transfer", f"cannot copy {what}"):
        try:
            yield
        except TransferError as error:
            raise SSHError(f"{connection.label}: cannot copy {what}: {error}", stage="transfer") from error
