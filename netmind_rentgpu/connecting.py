"""A TCP connection to a container's endpoint, by the first of its addresses that answers.

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
"""Addresses in the form in which `socket.getaddrinfo` returns them."""

# Seconds before the next address is tried beside the first (RFC 8305, section 8).
_NEXT_ADDRESS = 0.25


async def look_up(host: str, port: int) -> Addresses:
    """Find a host's addresses.

    Raises:
        socket.gaierror: the name is not known (an OSError).
        UnicodeError: the text cannot be a host's name.
    """
    kind = socket.SOCK_STREAM
    try:
        # Without a thread, because a host that is an address needs no look-up, which would block.
        found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await run_in_thread(lambda: socket.getaddrinfo(host, port, type=kind))
    return found  # type: ignore[return-value]  # typeshed's type is wider


async def connect(addresses: Addresses) -> socket.socket:
    """Connect to the first of some addresses that answers; return the connected socket.

    Raises:
        OSError: none of the addresses answers.
    """
    return await start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS)
