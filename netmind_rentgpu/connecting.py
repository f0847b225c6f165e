"""A TCP connection to a container's endpoint, whichever of its addresses answers.

The only file that knows aiohappyeyeballs.
"""

from __future__ import annotations

import asyncio
import socket

from aiohappyeyeballs import (
    start_connection,  # pyright: ignore[reportUnknownVariableType]  # its tuples have any length
)

__all__ = ["connect"]

# Before the next address is tried beside the first (RFC 8305, 8).
_NEXT_ADDRESS = 0.25


async def connect(host: str, port: int) -> socket.socket:
    """Return a connected socket.

    Raises:
        socket.gaierror: no such name is known (an OSError).
        UnicodeError: what can be no name.
        OSError: no address of it answers.
    """
    return await start_connection(await _addresses(host, port), happy_eyeballs_delay=_NEXT_ADDRESS)


async def _addresses(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    kind = socket.SOCK_STREAM
    try:
        # An address needs no thread to be looked up in.
        found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=kind)
    return found  # type: ignore[return-value]  # typeshed's is wider
