"""Notes on stderr, and one line of progress that a terminal redraws. No error of stderr stops the program."""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from netmind_rentgpu.cli.writing import is_writable, write_some, write_within
from netmind_rentgpu.escaping import escaped

__all__ = ["Notes"]

_BETWEEN_LINES = 30.0
_CLEAR = "\r\x1b[K"
_DEFAULT_WIDTH = 80
# Seconds.
_LONGEST_WRITE = 1.0
_PAUSE = 0.01


class Notes:
    """A writer of notes to stderr.

    Progress is one line on a terminal, which the next one replaces. Elsewhere each change is a line, but at most one in 30
    seconds, so that a log stays short.
    """

    def __init__(
        self,
        descriptor: int = 2,
        *,
        is_quiet: bool = False,
        is_terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up.

        Args:
            is_quiet: True to write errors and questions alone.
            is_terminal: None to ask the descriptor.
        """
        self._descriptor = descriptor
        self._is_quiet = is_quiet
        self.is_terminal: bool = _is_terminal(descriptor) if is_terminal is None else is_terminal
        self._clock = clock
        self._live = ""
        self._shown_at = -_BETWEEN_LINES
        self._last_progress = ""
        self._line_end = "\n"
        self._terminal_before: list[Any] | None = None
        # True while the reader of stderr makes no room, so that no further note waits for it.
        self._is_stuck = False

    def say(self, text: str) -> None:
        """Write a note, unless notes are hidden."""
        if not self._is_quiet:
            self.insist(text)

    def insist(self, text: str) -> None:
        """Write an error or a warning, even if notes are hidden."""
        self.clear()
        self._write("".join(f"{line}{self._line_end}" for line in escaped(text).split("\n")))

    def ask(self, text: str) -> None:
        """Write a question, whose answer is typed behind it."""
        self.clear()
        self._write(escaped(text))

    def progress(self, text: str) -> None:
        """Show how far something is; the next progress replaces it."""
        if self._is_quiet:
            return
        shown = escaped(text.replace("\n", " ").replace("\t", " "))
        if self.is_terminal:
            # Shorter than the terminal, because a line that wraps could not be redrawn.
            shown = _cut(shown, max(1, _width(self._descriptor) - 1))
            if shown != self._live:
                self._live = shown
                self._write(_CLEAR + shown)
        elif text != self._last_progress and self._clock() >= self._shown_at + _BETWEEN_LINES:
            self._last_progress, self._shown_at = text, self._clock()
            self._write(f"{shown}\n")

    def clear(self) -> None:
        """Remove the line of progress, as before the output of something else."""
        if self._live:
            self._live = ""
            self._write(_CLEAR)

    @contextmanager
    def raw(self) -> Generator[None]:
        """Write notes so that they begin at the left of a terminal in raw mode, which a remote shell is connected to."""
        self.clear()
        self._terminal_before, self._line_end = _terminal_settings(), "\r\n"
        try:
            yield
        finally:
            self._line_end, self._terminal_before = "\n", None

    def leave_raw(self) -> None:
        """Restore the terminal, because the program is about to end at once."""
        if self._terminal_before is not None:
            _restore_terminal(self._terminal_before)
            self._line_end = "\n"

    async def pass_on(self, data: bytes) -> None:
        """Write bytes as they are, such as those of a remote command's stderr, however long their reader takes."""
        import asyncio

        self.clear()
        left = memoryview(data)
        with suppress(OSError):
            while left:
                if is_writable(self._descriptor, 0):
                    left = write_some(self._descriptor, left)
                else:
                    await asyncio.sleep(_PAUSE)

    def _write(self, text: str) -> None:
        """Write a text, but wait only a moment for a reader, because the caller may be about to give a machine back."""
        with suppress(OSError):
            data = text.encode("utf-8", "backslashreplace")
            self._is_stuck = not write_within(self._descriptor, data, 0 if self._is_stuck else _LONGEST_WRITE)


def _terminal_settings() -> list[Any] | None:
    """Return the settings of the terminal that is stdin; None without one."""
    if sys.platform == "win32":
        return None
    import termios

    try:
        return termios.tcgetattr(0)
    except (OSError, termios.error):
        return None


def _restore_terminal(settings: list[Any]) -> None:
    if sys.platform != "win32":
        import termios

        with suppress(OSError, termios.error):
            termios.tcsetattr(0, termios.TCSANOW, settings)


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _width(descriptor: int) -> int:
    try:
        return os.get_terminal_size(descriptor).columns or _DEFAULT_WIDTH
    except OSError:
        return _DEFAULT_WIDTH


def _cut(text: str, columns: int) -> str:
    """Return as much of a text as some columns of a terminal have room for."""
    if text.isascii():
        return text[:columns]
    room = columns
    for index, character in enumerate(text):
        room -= _columns_of(character)
        if room < 0:
            return text[:index]
    return text


def _columns_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
