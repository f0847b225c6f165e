"""The copies of the packages that guardians run from, made once for all tests, because making them takes seconds."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from netmind_rentgpu.rentals.guardian.packages import copy_packages, user_id


class SharedCopies:
    """The copies that all guardians of a run of the tests use.

    Attributes:
        folder: the folder of this run, which xdist's workers share; None before the first test.
    """

    folder: Path | None = None


def share_copies(folder: Path) -> None:
    """Give the guardians of a state file the shared copies, as if an earlier guardian had made them.

    Args:
        folder: the folder of the state file.
    """
    if SharedCopies.folder is None or not hasattr(os, "fork"):
        return
    copies = _copies_in(SharedCopies.folder)
    own = folder / f"guardian-{user_id()}"
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    (own / copies.name).symlink_to(copies)


@functools.cache
def _copies_in(folder: Path) -> Path:
    """Return the copies below a folder; the first worker makes them while the others wait."""
    import fcntl

    with (folder / "guardian.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        copies = copy_packages(folder / "guardian", {"PATH": os.environ["PATH"]})
    os.close(copies.lock)
    return copies.folder
