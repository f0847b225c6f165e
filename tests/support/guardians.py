"""Guardians that run on this machine."""

from __future__ import annotations

from pathlib import Path

from until import command_line, is_running


def guardians(folder: Path) -> list[int]:
    """Return the process ids of the guardians, and of their children, whose copies of the packages are below a folder."""
    found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [pid for pid in found if f"{folder}/guardian-" in command_line(pid) and is_running(pid)]
