"""Sources of connections to one container, for what goes on when a connection is lost: jobs and lasting forwards."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Protocol

from netmind_rentgpu.ssh.connection import ShellConnection

__all__ = ["LONGEST_OUTAGE", "ConnectionSource", "ConnectionUse", "LongCalls", "RenewedConnection"]

LONGEST_OUTAGE: Final = 300.0
"""The seconds for which a call goes on trying to connect again."""
_LONG_CALLS_AT_ONCE: Final = 4


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

    @property
    def long_calls(self) -> LongCalls:
        """The connections for calls that last."""
        ...


class LongCalls:
    """The connections for calls that last: waits, and logs that are read.

    Only a few share the connection of all other calls, because a server allows few sessions on a connection. Further ones
    get connections of their own, which are closed after the last of them.
    """

    def __init__(self) -> None:
        self._opening = asyncio.Lock()
        self._counts: dict[ShellConnection, int] = {}
        self._own: set[ShellConnection] = set()

    async def begin(self, source: ConnectionSource) -> ShellConnection:
        """Return a connection for one call. `end` has to be called with it.

        Args:
            source: the source of the connection of all other calls.

        Raises:
            RentGPUError: as for the source.
        """
        async with self._opening:
            shared = await source.usable_connection()
            for connection in (shared, *self._own):
                is_usable = not (connection.lost or connection.closed)
                if is_usable and self._counts.get(connection, 0) < _LONG_CALLS_AT_ONCE:
                    break
            else:
                connection = ShellConnection(shared.open_connection, shared.limits, "")
                await connection.open()
                self._own.add(connection)
            self._counts[connection] = self._counts.get(connection, 0) + 1
            return connection

    async def end(self, connection: ShellConnection) -> None:
        """End a call; close its connection if no other call uses it."""
        self._counts[connection] -= 1
        if not self._counts[connection]:
            del self._counts[connection]
            if connection in self._own:
                self._own.discard(connection)
                await connection.close()

    async def close(self) -> None:
        """Close the connections of long calls."""
        for connection in tuple(self._own):
            await connection.close()


class ConnectionUse:
    """The use of a connection by one call: `async with use as connection`.

    Attributes:
        connection: the connection; None before there is one.
    """

    def __init__(self, source: ConnectionSource, *, is_long: bool) -> None:
        """Set up.

        Args:
            is_long: True for a call that lasts.
        """
        self._source = source
        self._is_long = is_long
        self.connection: ShellConnection | None = None

    async def __aenter__(self) -> ShellConnection:
        source = self._source
        self.connection = await (source.long_calls.begin(source) if self._is_long else source.usable_connection())
        return self.connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_long and self.connection is not None:
            await self._source.long_calls.end(self.connection)


class RenewedConnection:
    """The connection of a shell, and another one to the same container once that is lost.

    Attributes:
        longest_outage, long_calls: as in `ConnectionSource`.
    """

    def __init__(self, connection: ShellConnection) -> None:
        self._own = connection
        self._opening = asyncio.Lock()
        self._other: ShellConnection | None = None
        self.longest_outage: float = LONGEST_OUTAGE
        self.long_calls: LongCalls = LongCalls()

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
        """Close all connections but the shell's own."""
        await self.long_calls.close()
        if self._other is not None:
            await self._other.close()
