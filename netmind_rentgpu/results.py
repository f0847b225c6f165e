"""What a shell gives: of a command, of a transfer, of a forwarded port. Values; no I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import attrs

__all__ = ["CommandResult", "Forward", "OnTransferProgress", "OutputLine", "TransferProgress"]


@attrs.frozen(kw_only=True)
class CommandResult:
    """What came of a command.

    Attributes:
        command: as it was given.
        exit_status: 0 where it went well; None where a signal ended it.
        exit_signal: that signal's name without SIG, as `TERM`.
        stdout, stderr: what it wrote, as UTF-8; bytes that are none are replaced.
        truncated: it wrote more than was to be kept, and these are the ends.
    """

    command: str
    exit_status: int | None
    exit_signal: str | None = None
    stdout: str = attrs.field(repr=False)
    stderr: str = attrs.field(repr=False)
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """It went well."""
        return self.exit_status == 0


@attrs.frozen
class OutputLine:
    """A line that a command wrote, without its end.

    Attributes:
        stream: where it wrote it.
    """

    text: str
    stream: Literal["stdout", "stderr"]

    def __str__(self) -> str:
        return self.text


@attrs.frozen(kw_only=True)
class TransferProgress:
    """How far an upload or download has come.

    Attributes:
        path: of the file that the news is about, below what is copied; empty for that itself.
        bytes_done, bytes_total: of all files.
        files_done, files_total: how many have arrived under their names, and how many there are.
    """

    path: str
    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int


OnTransferProgress: TypeAlias = Callable[[TransferProgress], object]


@attrs.frozen(kw_only=True)
class Forward:
    """A port that is forwarded as long as the shell is open.

    Attributes:
        listens: on which side connections are taken.
        local_port, remote_port: of this machine's 127.0.0.1, and of the container.
    """

    listens: Literal["here", "there"]
    local_port: int
    remote_port: int
