"""Where a forwarded port of the container leads to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast

import asyncssh
from asyncssh.constants import OPEN_CONNECT_FAILED

__all__ = ["leading_to"]


def leading_to(host: str, port: int) -> Callable[[str, int], Awaitable[asyncssh.SSHTCPSession[bytes]]]:
    """For `create_server` of an SSH connection: what is connected to its port is connected to this one."""

    async def connect(_host: str, _port: int) -> asyncssh.SSHTCPSession[bytes]:
        try:
            _, here = await asyncio.get_running_loop().create_connection(_Here, host, port)
        except OSError as error:
            raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, str(error)) from None
        # All that a session needs; asyncssh has its own forwarders for one in the same way.
        return cast("asyncssh.SSHTCPSession[bytes]", _There(here))

    return connect


class _Here(asyncssh.SSHForwarder):
    """The end on this machine.

    What is said here before the other end is open would be lost (asyncssh 2.24), and uvloop reads that early: it waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self._early: list[Callable[[], object]] | None = []

    def open(self) -> None:
        """Hand on what came before the other end was open, and what comes from now on."""
        early, self._early = self._early or [], None
        for act in early:
            act()

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        act = partial(super().data_received, data, datatype)
        act() if self._early is None else self._early.append(act)

    def eof_received(self) -> bool:
        if self._early is None:
            return super().eof_received()
        self._early.append(super().eof_received)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        act = partial(super().connection_lost, exc)
        act() if self._early is None else self._early.append(act)


class _There(asyncssh.SSHForwarder):
    """The end on the container."""

    def __init__(self, here: _Here) -> None:
        super().__init__(here)
        self._here = here

    def session_started(self) -> None:
        self._here.open()
