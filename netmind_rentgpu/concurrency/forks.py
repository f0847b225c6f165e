"""Callbacks around the forks of this process. A system without forks calls none of them."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["at_fork", "at_fork_in_child"]


def at_fork(
    *, before: Callable[[], object], after_in_parent: Callable[[], object], after_in_child: Callable[[], object]
) -> None:
    """Register callbacks that each fork from now on calls."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)


def at_fork_in_child(act: Callable[[], object]) -> None:
    """Register a callback that each forked child from now on calls."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=act)
