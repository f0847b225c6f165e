"""Receivers of what a command writes: the tails of it, or its lines. No I/O."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from datetime import datetime
from typing import Protocol

from netmind_rentgpu.results import OutputLine

__all__ = ["Capture", "Lines", "Output"]

_LONGEST_LINE = 1024 * 1024
_LINE_END = re.compile(rb"(\r\n|\n|\r(?!\Z))")
_MOST_WAITING = 1024 * 1024
_COST_OF_A_LINE = 100


class Output(Protocol):
    """A receiver of what a command writes."""

    def take(self, data: bytes, *, error: bool) -> bool:
        """Receive a piece of output; return True if there is room for more at once."""
        ...


class Capture:
    """The tails of what a command writes to stdout and to stderr.

    Attributes:
        truncated: True if the command wrote more than is kept.
    """

    def __init__(self, most: int) -> None:
        """Set up.

        Args:
            most: the most bytes to keep of each stream.
        """
        self._most = most
        self._pieces: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self._sizes = [0, 0]
        self.truncated: bool = False

    def take(self, data: bytes, *, error: bool) -> bool:
        """Keep a piece of output, and drop the oldest bytes above the limit."""
        pieces = self._pieces[error]
        pieces.append(data)
        self._sizes[error] += len(data)
        while self._sizes[error] > self._most:
            self.truncated = True
            surplus = self._sizes[error] - self._most
            first = pieces.popleft()
            if len(first) > surplus:
                pieces.appendleft(first[surplus:])
            self._sizes[error] -= min(surplus, len(first))
        return True

    def text(self, *, error: bool) -> str:
        """Return the kept output of one stream."""
        return b"".join(self._pieces[error]).decode(errors="replace")


class Lines:
    """The lines that a command writes to stdout and stderr, in the order of their arrival.

    Attributes:
        moment: the time that the next lines get; None if it is not known.
    """

    def __init__(self, sizes: tuple[int, int] | None = None) -> None:
        """Set up.

        Args:
            sizes: the bytes of stdout and stderr that came before, if the lines are to have positions; else None.
        """
        # The ends of the last whole line of each stream, in bytes.
        self._ends = None if sizes is None else list(sizes)
        self.moment: datetime | None = None
        self._unfinished = [b"", b""]
        # True once a carriage return has ended the last line of a stream, until a newline does.
        self._is_updating = [False, False]
        # The unfinished text of each stream, if it was handed on as an update.
        self._shown = [b"", b""]
        self._whole: deque[OutputLine] = deque()
        self._waiting = 0

    def take(self, data: bytes, *, error: bool) -> bool:
        """Split a piece of output into lines; return True if there is room for more at once."""
        # A carriage return at the end may be the first half of a line end.
        *lines, rest = _LINE_END.split(self._unfinished[error] + data)
        # Each line is followed by its end.
        for line, end in zip(lines[::2], lines[1::2], strict=True):
            self._is_updating[error] = is_update = end == b"\r"
            self.skip(len(line) + len(end), error=error)
            self._finish_line(line, error=error, is_update=is_update)
        while len(rest) > _LONGEST_LINE:
            self.skip(_LONGEST_LINE, error=error)
            self._finish_line(rest[:_LONGEST_LINE], error=error)
            rest = rest[_LONGEST_LINE:]
        self._unfinished[error] = rest
        # The text of a progress bar is handed on at once, because its return may stand before it or behind it.
        update = rest.removesuffix(b"\r")
        if update and update != self._shown[error] and (self._is_updating[error] or rest.endswith(b"\r")):
            self._add(update, error=error, is_update=True)
            self._shown[error] = update
        return self.room

    def _finish_line(self, line: bytes, *, error: bool, is_update: bool = False) -> None:
        if not is_update or (line and line != self._shown[error]):
            self._add(line, error=error, is_update=is_update)
        self._shown[error] = b""

    def skip(self, size: int, *, error: bool) -> None:
        """Move the end of a stream's last whole line forward by a number of bytes."""
        if self._ends is not None:
            self._ends[error] += size

    @property
    def room(self) -> bool:
        """True if the waiting lines leave room for more."""
        return self._waiting < _MOST_WAITING

    def finish(self) -> None:
        """Add the unfinished rest of each stream as a line."""
        for error, rest in enumerate(self._unfinished):
            self.skip(len(rest), error=bool(error))
            # An update that ends with a return was handed on, and no line follows it.
            if rest and not rest.endswith(b"\r"):
                self._add(rest, error=bool(error))
        self._unfinished = [b"", b""]

    def show_unfinished(self) -> None:
        """Add the unfinished rest of each stream as an update, which the whole line follows later."""
        for error, rest in enumerate(self._unfinished):
            if rest and rest != self._shown[error] and not rest.endswith(b"\r"):
                self._add(rest, error=bool(error), is_update=True)
                self._shown[error] = rest

    def next(self) -> OutputLine | None:
        """Return the next line; None if no line waits."""
        if not self._whole:
            return None
        line = self._whole.popleft()
        self._waiting -= len(line.text) + _COST_OF_A_LINE
        return line

    def put_back(self, lines: Iterable[OutputLine]) -> None:
        """Put lines that were taken out before all others."""
        for line in lines:
            self._whole.append(line)
            self._waiting += len(line.text) + _COST_OF_A_LINE

    def _add(self, line: bytes, *, error: bool, is_update: bool = False) -> None:
        text = line.decode(errors="replace")
        self._waiting += len(text) + _COST_OF_A_LINE
        position = None if self._ends is None else f"{self._ends[0]}-{self._ends[1]}"
        self._whole.append(OutputLine(text, "stderr" if error else "stdout", is_update, position, self.moment))
