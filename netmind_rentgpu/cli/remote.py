"""A remote command between this program's own streams or terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Protocol

from netmind_rentgpu.cli.notes import Notes
from netmind_rentgpu.cli.output import writing_output
from netmind_rentgpu.cli.session import is_terminal
from netmind_rentgpu.results import CommandResult
from netmind_rentgpu.ssh.streams import PipeSink, PipeSource

__all__ = ["Machine", "own_stdin", "run_here"]


class Machine(Protocol):
    """A rental or a shell, on which commands run."""

    async def pipe(
        self,
        command: str,
        *,
        stdin: PipeSource | None = None,
        stdout: PipeSink | None = None,
        stderr: PipeSink | None = None,
        check: bool = False,
        timeout: float | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> CommandResult:
        """Run a command between streams of bytes."""
        ...


class _Stderr:
    """The program's own stderr, whose errors stop nothing."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    async def write(self, data: bytes) -> None:
        """Write bytes."""
        await self._notes.pass_on(data)


def own_stdin() -> int | None:
    """Return the descriptor of stdin; None if it is a terminal, or cannot be read, as under `nohup`."""
    return None if is_terminal(0) or not _is_readable(0) else 0


def _is_readable(descriptor: int) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY


async def run_here(
    machine: Machine,
    command: str,
    notes: Notes,
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> CommandResult:
    """Run a command between stdin, stdout and stderr of this program; a terminal is no stdin for it.

    Raises:
        OutputClosedError: the reader of stdout has closed it; the command was ended.
        OutputError: stdout could not be written; the command was ended.
        RentGPUError: as for `pipe`.
    """
    notes.clear()
    with writing_output("the command was ended"):
        return await machine.pipe(
            command,
            stdin=own_stdin(),
            stdout=1,
            stderr=_Stderr(notes),
            timeout=timeout,
            environment=environment,
        )
