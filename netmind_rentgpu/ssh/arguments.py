"""Checks of the arguments of a shell's methods, and descriptions of commands for its errors. Pure."""

from __future__ import annotations

import os
from pathlib import Path

from netmind_rentgpu.arguments import shown_value
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.results import CommandResult

__all__ = ["check_ports", "described", "local_path", "remote_path", "shown", "text"]


def check_ports(**ports: tuple[int, int]) -> None:
    """Check ports, each given with the lowest number that it may have.

    Raises:
        InvalidArgumentError: a port is not a whole number in its range.
    """
    for name, (port, lowest) in ports.items():
        if type(port) is not int or not lowest <= port <= 65_535:
            raise InvalidArgumentError(name, f"must be a port, {lowest} to 65535: {shown_value(port)}")


def text(argument: str, value: str, errors: str = "strict") -> str:
    """Return a text unchanged, if it can be sent.

    Args:
        errors: the error handler of the encoding, which decides on lone surrogates.

    Raises:
        InvalidArgumentError: the text is empty, contains a null character, or cannot be encoded.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise InvalidArgumentError(argument, "must be a text without null characters, and not empty")
    try:
        value.encode(errors=errors)
    except UnicodeEncodeError:
        raise InvalidArgumentError(argument, "holds half a character, which cannot be sent") from None
    return value


def remote_path(path: str) -> str:
    """Return a path on the container unchanged, if it can be sent.

    Raises:
        InvalidArgumentError: the path is not a text that can be sent, or is empty.
    """
    # A file's name may be any bytes. Bytes that are not UTF-8 appear as lone surrogates in a text.
    return text("remote", path, "surrogateescape")


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return a path on this machine as a `Path`.

    Raises:
        InvalidArgumentError: the value is not a path, is empty, or contains a character that no path can have.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidArgumentError("local", f"must be a path, not {type(path).__name__}")
    return Path(text("local", os.fspath(path), "surrogateescape"))


def shown(command: str) -> str:
    """Return the start of a command's first line, by which errors name the command."""
    line, *more = command.splitlines() or [""]
    return f"{line[:100]!r}" + (" ..." if more or len(line) > 100 else "")


def described(done: CommandResult) -> str:
    """Describe how a command ended: its status or signal, and the last line of its stderr."""
    how = f"status {done.exit_status}" if done.exit_signal is None else f"signal {done.exit_signal}"
    last = done.stderr.strip().rpartition("\n")[2][:300]
    return f"{shown(done.command)} ended with {how}" + (f": {last}" if last else "")
