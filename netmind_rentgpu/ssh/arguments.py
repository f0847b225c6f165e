"""What a shell is told, checked; and what it says of a command. Pure."""

from __future__ import annotations

from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.ssh.results import CommandResult

__all__ = ["check_ports", "described", "remote_path", "shown"]


def check_ports(**ports: tuple[int, int]) -> None:
    """Check ports, each given with the least that it may be.

    Raises:
        InvalidArgumentError: one is none.
    """
    for name, (port, least) in ports.items():
        if type(port) is not int or not least <= port <= 65_535:
            raise InvalidArgumentError(name, f"must be a port, {least} to 65535: {port!r}")


def remote_path(path: str) -> str:
    """Return a path on the container as it is.

    Raises:
        InvalidArgumentError: it is none.
    """
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidArgumentError("remote", f"must be a path on the container, as a text: {path!r}")
    return path


def shown(command: str) -> str:
    """Return how errors call a command."""
    line, *more = command.splitlines() or [""]
    return f"{line[:100]!r}" + (" ..." if more or len(line) > 100 else "")


def described(done: CommandResult) -> str:
    """Say how a command ended."""
    how = f"status {done.exit_status}" if done.exit_signal is None else f"signal {done.exit_signal}"
    last = done.stderr.strip().rpartition("\n")[2][:300]
    return f"{shown(done.command)} ended with {how}" + (f": {last}" if last else "")
