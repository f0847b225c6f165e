"""What a shell is told, checked; and what it says of a command. Pure."""

from __future__ import annotations

import os
from pathlib import Path

from netmind_rentgpu.arguments import shown_value
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.results import CommandResult

__all__ = ["check_ports", "described", "local_path", "remote_path", "shown", "text"]


def check_ports(**ports: tuple[int, int]) -> None:
    """Check ports, each given with the least that it may be.

    Raises:
        InvalidArgumentError: one is none.
    """
    for name, (port, least) in ports.items():
        if type(port) is not int or not least <= port <= 65_535:
            raise InvalidArgumentError(name, f"must be a port, {least} to 65535: {shown_value(port)}")


def text(argument: str, value: str, errors: str = "strict") -> str:
    """Return a text as it is.

    Args:
        errors: how characters are taken that cannot be sent.

    Raises:
        InvalidArgumentError: it is none that can be sent, or empty.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise InvalidArgumentError(argument, "must be a text without null characters, and not empty")
    try:
        value.encode(errors=errors)
    except UnicodeEncodeError:
        raise InvalidArgumentError(argument, "holds half a character, which cannot be sent") from None
    return value


def remote_path(path: str) -> str:
    """Return a path on the container as it is.

    Raises:
        InvalidArgumentError: it is none.
    """
    # Names there may be any bytes, which stand so in a text.
    return text("remote", path, "surrogateescape")


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return a path of this machine.

    Raises:
        InvalidArgumentError: it is none.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidArgumentError("local", f"must be a path, not {type(path).__name__}")
    return Path(text("local", os.fspath(path), "surrogateescape"))


def shown(command: str) -> str:
    """Return how errors call a command."""
    line, *more = command.splitlines() or [""]
    return f"{line[:100]!r}" + (" ..." if more or len(line) > 100 else "")


def described(done: CommandResult) -> str:
    """Say how a command ended."""
    how = f"status {done.exit_status}" if done.exit_signal is None else f"signal {done.exit_signal}"
    last = done.stderr.strip().rpartition("\n")[2][:300]
    return f"{shown(done.command)} ended with {how}" + (f": {last}" if last else "")
