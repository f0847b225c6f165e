"""The connections from a forwarded port of the container to a port of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast

import asyncssh
from asyncssh.constants import OPEN_CONNECT_FAILED

__all__ = ["leading_to"]


def leading_to(host: str, port: int) -> Callable[[str, int], Awaitable[asyncssh.SSHTCPSession[bytes]]]:
    """Return a session factory for `create_server` of an SSH connection: it connects each client to a host and port."""

    async def connect(_host: str, _port: int) -> asyncssh.SSHTCPSession[bytes]:
        loop = asyncio.get_running_loop()
        try:
            _, here = await loop.create_connection(_Here, host, port)
        except OSError as error:
            raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, str(error)) from None
        there = _There(here)
        # asyncssh connects the session in this turn of the loop, or never, if the SSH connection was lost meanwhile.
        loop.call_soon(there.close_unless_connected)
        # A forwarder has all that a session needs; asyncssh uses its own forwarders as sessions in the same way.
        return cast("asyncssh.SSHTCPSession[bytes]", there)

    return connect


class _Here(asyncssh.SSHForwarder):
    """The end on this machine.

    uvloop may read data before the other end is open, and asyncssh 2.24 would lose it. So early events wait in a list.
    """

    def __init__(self) -> None:
        super().__init__()
        self._early: list[Callable[[], object]] | None = []

    def open(self) -> None:
        """Forward the events that came before the other end was open, and later events at once."""
        early, self._early = self._early or [], None
        for event in early:
            event()

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        event = partial(super().data_received, data, datatype)
        event() if self._early is None else self._early.append(event)

    def eof_received(self) -> bool:
        if self._early is None:
            return super().eof_received()
        self._early.append(super().eof_received)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        event = partial(super().connection_lost, exc)
        event() if self._early is None else self._early.append(event)


class _There(asyncssh.SSHForwarder):
    """The end on the container."""

    def __init__(self, here: _Here) -> None:
        super().__init__(here)
        self._here = here

    def close_unless_connected(self) -> None:
        """Close the connection on this machine if asyncssh has not connected the session to a channel."""
        if self._transport is None:
            self._here.close()

    def session_started(self) -> None:
        self._here.open()
