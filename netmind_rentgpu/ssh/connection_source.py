"""Sources of connections to one container, for what goes on when a connection is lost: jobs and lasting forwards."""

from __future__ import annotations

import asyncio
from typing import Protocol

from netmind_rentgpu.ssh.connection import ShellConnection

__all__ = ["LONGEST_OUTAGE", "ConnectionSource", "RenewedConnection"]

LONGEST_OUTAGE = 300.0
"""The seconds for which a call goes on trying to connect again."""


class ConnectionSource(Protocol):
    """A source of connections to one container, until its user closes it."""

    async def usable_connection(self) -> ShellConnection:
        """Return a connection that is neither closed nor known to be lost.

        Raises:
            SSHError: no connection could be made.
            RentGPUError: no connection can be made any more.
        """
        ...

    @property
    def longest_outage(self) -> float:
        """The seconds for which a call goes on trying to connect again."""
        ...


class RenewedConnection:
    """The connection of a shell, and another one to the same container once that is lost.

    Attributes:
        longest_outage: as in `ConnectionSource`.
    """

    def __init__(self, connection: ShellConnection) -> None:
        self._own = connection
        self._opening = asyncio.Lock()
        self._other: ShellConnection | None = None
        self.longest_outage: float = LONGEST_OUTAGE

    async def usable_connection(self) -> ShellConnection:
        """Return the shell's connection, or the other one.

        Raises:
            SSHError: the other one could not be opened.
            ClientStateError: the shell is not open.
        """
        self._own.check_open()
        if not self._own.lost:
            return self._own
        async with self._opening:
            if self._other is None or self._other.lost or self._other.closed:
                other = ShellConnection(self._own.open_connection, self._own.limits, "")
                await other.open()
                try:
                    self._own.check_open()
                except BaseException:
                    await other.close()
                    raise
                self._other = other
            return self._other

    async def close(self) -> None:
        """Close the other connection."""
        if self._other is not None:
            await self._other.close()
