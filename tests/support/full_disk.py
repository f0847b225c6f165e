"""A full disk, as a program sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def disk_full() -> Iterator[None]:
    """Let no file grow, as on a full disk, beyond the index of the state file's log, which is there already."""
    resource = pytest.importorskip("resource", reason="there are no limits of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32 * 1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
