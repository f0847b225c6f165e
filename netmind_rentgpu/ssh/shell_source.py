"""Sources of shells on one container, for what goes on when a connection is lost: jobs and lasting forwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from netmind_rentgpu.ssh.connection import OpenConnection, ShellConnection
from netmind_rentgpu.ssh.limits import SSHLimits

if TYPE_CHECKING:
    from netmind_rentgpu.ssh.shell import AsyncShell

__all__ = ["LONGEST_OUTAGE", "RenewedShell", "ShellSource"]

LONGEST_OUTAGE = 300.0
"""The seconds for which a call goes on trying to connect again."""


class ShellSource(Protocol):
    """A source of shells on one container, until its user closes it."""

    async def usable_shell(self) -> AsyncShell:
        """Return a shell that is neither closed nor known to be lost.

        Raises:
            SSHError: no connection could be made.
            RentGPUError: no shell can be opened any more.
        """
        ...

    @property
    def longest_outage(self) -> float:
        """The seconds for which a call goes on trying to connect again."""
        ...


class RenewedShell:
    """A shell, and another one on the same container once its connection is lost.

    Attributes:
        longest_outage: as in `ShellSource`.
    """

    def __init__(
        self, shell: AsyncShell, connection: ShellConnection, kind: Callable[[OpenConnection, SSHLimits], AsyncShell]
    ) -> None:
        """Set up.

        Args:
            connection: the shell's connection.
            kind: makes another shell.
        """
        self._shell = shell
        self._connection = connection
        self._kind = kind
        self._opening = asyncio.Lock()
        self._other: AsyncShell | None = None
        self.longest_outage: float = LONGEST_OUTAGE

    async def usable_shell(self) -> AsyncShell:
        """Return the shell, or the other one."""
        self._connection.check_open()
        if not self._shell.lost:
            return self._shell
        async with self._opening:
            if self._other is None or self._other.lost or self._other.closed:
                other = self._kind(self._connection.open_connection, self._connection.limits)
                await other.__aenter__()
                try:
                    self._connection.check_open()
                except BaseException:
                    await other.close()
                    raise
                self._other = other
            return self._other

    async def close(self) -> None:
        """Close the other shell."""
        if self._other is not None:
            await self._other.close()
