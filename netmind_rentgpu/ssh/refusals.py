"""Sessions that a server refuses for a moment, because it still counts others that have just ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncssh

__all__ = ["open_patiently"]

Opened = TypeVar("Opened")

# Seconds to pause before each retry.
_PAUSES = (0.02, 0.1, 0.3, 1.0, 2.0)


async def open_patiently(
    connection: asyncssh.SSHClientConnection, open_session: Callable[[], Awaitable[Opened]]
) -> Opened:
    """Open a session, again after a pause if the server refuses it; nothing was started then.

    Raises:
        asyncssh.ChannelOpenError: the server refuses it still.
        OSError, asyncssh.Error: it could not be opened.
    """
    pauses = iter(_PAUSES)
    while True:
        try:
            return await open_session()
        except asyncssh.ChannelOpenError:
            pause = next(pauses, None)
            if pause is None or connection.is_closed():
                raise
            await asyncio.sleep(pause)
