"""Opening sessions over a connection that may be lost meanwhile, or whose server refuses them for a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncssh

__all__ = ["open_once", "open_patiently"]

Opened = TypeVar("Opened")

# Seconds to pause before each retry.
_PAUSES = (0.02, 0.1, 0.3, 1.0, 2.0)


async def open_once(connection: asyncssh.SSHClientConnection, opening: Awaitable[Opened]) -> Opened:
    """Wait until a session, or something else that uses the connection, is open.

    Raises:
        OSError, asyncssh.Error: it could not be opened.
    """
    try:
        return await opening
    except (AttributeError, AssertionError) as error:
        # asyncssh goes on with an answer whose session it has forgotten, if the connection was lost right behind the answer.
        if not connection.is_closed():
            raise
        raise asyncssh.ConnectionLost("Connection lost") from error


async def open_patiently(
    connection: asyncssh.SSHClientConnection, open_session: Callable[[], Awaitable[Opened]]
) -> Opened:
    """Open a session, again after a pause if the server still counts others that have just ended, and refuses it.

    Raises:
        asyncssh.ChannelOpenError: the server refuses it still.
        OSError, asyncssh.Error: it could not be opened.
    """
    pauses = iter(_PAUSES)
    while True:
        try:
            return await open_once(connection, open_session())
        except asyncssh.ChannelOpenError:
            pause = next(pauses, None)
            if pause is None or connection.is_closed():
                raise
            await asyncio.sleep(pause)
