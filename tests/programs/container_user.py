"""The container, a folder and a pipe, for programs that use a shell."""

from __future__ import annotations

import os
import random
from pathlib import Path

CONTAINER = int(os.environ.get("CONTAINER", "0"))
HERE = Path(os.environ["HERE"])


class Alive:
    """A pipe that ends when the last process that has it open has ended."""

    def __init__(self) -> None:
        self.path = HERE / f"alive-{random.random()}"
        os.mkfifo(self.path)
        self.pipe = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(self.pipe, True)
        self.own = os.open(self.path, os.O_WRONLY)

    def command(self, then: str) -> str:
        """Return a command that holds the pipe, as does a child of it."""
        return f"exec 9>{self.path}; echo began >&9; sleep 1000 & {then}; wait"

    def began(self) -> None:
        """Wait until the command runs."""
        assert os.read(self.pipe, 6) == b"began\n"
        os.close(self.own)

    def wait(self) -> None:
        """Wait until the command and its child have ended."""
        assert os.read(self.pipe, 1) == b""


def names(folder: Path = HERE) -> list[str]:
    """Return the names of the files in a folder, without the pipes."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("alive"))
