"""A TCP connection to a container's endpoint, whichever of its addresses answers.

The only file that knows aiohappyeyeballs.
"""

from __future__ import annotations

import socket
from typing import TypeAlias

from aiohappyeyeballs import (
    start_connection,  # pyright: ignore[reportUnknownVariableType]  # its tuples have any length
)

from netmind_rentgpu.concurrency.threads import run_in_thread

__all__ = ["Addresses", "connect", "look_up"]

Addresses: TypeAlias = list[tuple[int, int, int, str, tuple[str, int]]]
"""As `socket.getaddrinfo` gives them."""

# Before the next address is tried beside the first (RFC 8305, 8).
_NEXT_ADDRESS = 0.25


async def look_up(host: str, port: int) -> Addresses:
    """Find a host's addresses.

    Raises:
        socket.gaierror: no such name is known (an OSError).
        UnicodeError: what can be no name.
    """
    kind = socket.SOCK_STREAM
    try:
        # An address needs no thread to be looked up in.
        found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await run_in_thread(lambda: socket.getaddrinfo(host, port, type=kind))
    return found  # type: ignore[return-value]  # typeshed's is wider


async def connect(addresses: Addresses) -> socket.socket:
    """Return a connected socket.

    Raises:
        OSError: no address answers.
    """
    return await start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS)
