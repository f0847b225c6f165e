"""Copies between this machine and a rented one, with their progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import attrs

from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.notes import Notes
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.cli.values import shown_size
from netmind_rentgpu.results import TransferProgress
from netmind_rentgpu.ssh.shell import AsyncShell

__all__ = ["NEVER_UPLOADED", "Upload", "check_distinct", "check_local", "local_target", "progress_of", "upload_all"]

NEVER_UPLOADED: Final = (".git", ".venv")


@attrs.frozen
class Upload:
    """A file or folder of this machine that goes into the working folder of a command.

    Attributes:
        local: its path here.
        name: its name there; empty for a folder whose content goes right into the working folder.
    """

    local: str
    name: str

    @classmethod
    def of(cls, local: str) -> Upload:
        """Return the upload of a path: `.` and `..` stand for their content, and all else keeps its name."""
        name = Path(local).name
        return cls(local, "" if name in ("", "..") else name)


def check_local(path: str) -> None:
    """Check that a file or folder to copy exists.

    Raises:
        CommandError: it does not.
    """
    if not os.path.lexists(path):
        raise CommandError(ExitCode.NOT_FOUND, f"there is no file or folder {path!r} here")


def check_distinct(option: str, names: Sequence[str]) -> None:
    """Check that no two copies get the same name, because the second would replace the first.

    Raises:
        CommandError: two do.
    """
    for name in names:
        if names.count(name) > 1:
            raise CommandError(
                ExitCode.USAGE, f"{option}: two of them would be called {name or '.'!r}; copy one by one"
            )


def local_target(remote: str) -> str:
    """Return where a download of a path goes: into the present folder, under its own name."""
    name = remote.rstrip("/").rpartition("/")[2]
    if name in ("", ".", ".."):
        raise CommandError(ExitCode.USAGE, f"cannot download {remote!r}: it has no name; name a file or a folder")
    return name


def progress_of(notes: Notes, verb: str, *, tells_size: bool = False) -> Callable[[TransferProgress], None]:
    """Return a function that shows the progress of a copy.

    Args:
        verb: the beginning of the note, such as `uploading`.
        tells_size: True to note at the beginning how much is copied.
    """
    begun: list[bool] = []

    def show(progress: TransferProgress) -> None:
        files = "1 file" if progress.files_total == 1 else f"{progress.files_total} files"
        if tells_size and not begun:
            begun.append(True)
            notes.say(f"{verb}: {files}, {shown_size(progress.bytes_total)}")
        if tells_size and not notes.is_terminal:
            return  # said already
        done = f"{progress.files_done} of {files}, {shown_size(progress.bytes_done)} of"
        notes.progress(f"{verb}: {done} {shown_size(progress.bytes_total)}")

    return show


async def upload_all(
    shell: AsyncShell, uploads: Sequence[Upload], folder: str, excluded: Sequence[str], notes: Notes
) -> None:
    """Upload files and folders into a folder of the machine, but for what is never uploaded.

    Args:
        excluded: the user's own patterns, as `AsyncShell.upload` takes them.

    Raises:
        SSHError: a copy failed.
    """
    patterns = (*NEVER_UPLOADED, *excluded)
    for upload in uploads:
        target = f"{folder}/{upload.name}" if upload.name else folder
        show = progress_of(notes, f"uploading {upload.local} without {', '.join(patterns)}", tells_size=True)
        await shell.upload(upload.local, target, exclude=patterns, on_progress=show)
    notes.clear()
