"""Writes to a descriptor that another program reads, or does not: none waits longer than its caller says."""

from __future__ import annotations

import os
import select
import sys
import time

__all__ = ["is_writable", "write_some", "write_within"]

# A terminal that reports to be writable has room for so many bytes on Linux.
_TERMINAL_PIECE = 256


def is_writable(descriptor: int, seconds: float) -> bool:
    """Return True if a descriptor has room for a piece, or has an error, within so many seconds; on Windows, at once."""
    if sys.platform == "win32":
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


def write_some(descriptor: int, data: memoryview) -> memoryview:
    """Write a piece of some bytes to a writable descriptor, and return the rest.

    Raises:
        OSError: the descriptor is broken.
    """
    piece = _TERMINAL_PIECE if os.isatty(descriptor) else getattr(select, "PIPE_BUF", 512)
    try:
        return data[os.write(descriptor, data[:piece]) :]
    except BlockingIOError:
        return data  # another program that shares the descriptor was faster


def write_within(descriptor: int, data: bytes, seconds: float) -> bool:
    """Write bytes until they are written or their reader has made no room for some seconds; return True if all were written.

    Raises:
        OSError: the descriptor is broken.
    """
    left, deadline = memoryview(data), time.monotonic() + seconds
    while left:
        if not is_writable(descriptor, max(0.0, deadline - time.monotonic())):
            return False
        left = write_some(descriptor, left)
    return True
