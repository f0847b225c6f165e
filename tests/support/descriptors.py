"""Pipes and pseudo-terminals as the descriptors that a program writes to. For POSIX systems."""

from __future__ import annotations

import os
import pty
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


class Stream:
    """A pipe or a pseudo-terminal.

    Attributes:
        reader: the end that is read.
        descriptor: the end that is written to.
    """

    def __init__(self, reader: int, descriptor: int) -> None:
        self.reader: int = reader
        self.descriptor: int = descriptor

    def written(self) -> str:
        """Close both ends, and return all that was written."""
        os.close(self.descriptor)
        found = b""
        try:
            while chunk := os.read(self.reader, 65_536):
                found += chunk
        except OSError:  # the end of a pseudo-terminal on Linux
            pass
        os.close(self.reader)
        return found.decode()


def pipe() -> Stream:
    return Stream(*os.pipe())


def terminal(columns: int = 80) -> Stream:
    """Open a pseudo-terminal that passes on each byte as it is."""
    reader, descriptor = pty.openpty()
    tty.setraw(descriptor)
    termios.tcsetwinsize(descriptor, (24, columns))
    return Stream(reader, descriptor)


@contextmanager
def in_place_of(number: int, descriptor: int) -> Iterator[None]:
    """Put a descriptor in the place of stdin, stdout or stderr."""
    saved = os.dup(number)
    os.dup2(descriptor, number)
    try:
        yield
    finally:
        os.dup2(saved, number)
        os.close(saved)
