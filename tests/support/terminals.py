"""A program on a terminal of its own, as a user has it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

LONGEST = 60.0


class Terminal:
    """A terminal and the program on it.

    Attributes:
        shown: all that the program has written to it.
        process: the program.
    """

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self.process = process
        self.shown = ""

    def type(self, keys: str) -> None:
        """Type keys; `\\x03` is Ctrl-C."""
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Change the size, of which the kernel tells the program."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, pattern: str) -> str:
        """Wait until the program has written a text that matches, behind all that matched before; return it."""
        deadline = time.monotonic() + LONGEST
        while (found := re.search(pattern, self.shown[self._seen :])) is None:
            assert time.monotonic() < deadline, self.shown
            assert self._read(), f"{pattern!r} is not in {self.shown!r}"
        self._seen += found.end()
        return found[0]

    _seen = 0

    def end(self) -> int:
        """Read until the program has ended, and return its exit code."""
        deadline = time.monotonic() + LONGEST
        while self._read():
            assert time.monotonic() < deadline, self.shown
        return self.process.wait(LONGEST)

    def _read(self) -> bool:
        """Read what there is; return False at the end."""
        if not select.select([self._master], [], [], 0.2)[0]:
            return self.process.poll() is None
        self.shown += os.read(self._master, 65536).decode("utf-8", "replace")
        return True


@contextmanager
def terminal(
    words: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    columns: int = 100,
    lines: int = 30,
    stdout: int | None = None,
) -> Iterator[Terminal]:
    """Run a program on a terminal.

    Args:
        stdout: where its stdout goes instead; None for the terminal.
    """
    master, slave = pty.openpty()

    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    # The first terminal that the leader of a session opens becomes the session's, and its keys become signals.
    streams = '<>"$0" 2>&0' + (" >&0" if stdout is None else "")
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$@" {streams}', os.ttyname(slave), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if stdout is None else stdout,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={**environment, "TERM": "xterm-256color"},
        start_new_session=True,
    )
    try:
        yield Terminal(master, process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        os.close(master)
        os.close(slave)
