"""Two clocks: the wall clock, which other machines share, and the clock of this boot, which is never set.

This module only reads the clocks; `records` compares a record's times with a reading.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import attrs

__all__ = ["ClockReading", "read_clocks"]


@attrs.frozen
class ClockReading:
    """One moment, by both clocks.

    Attributes:
        wall: UTC wall time.
        boot: an id of this boot, and of the clock that counts since then; empty if the system provides none.
        since_boot: seconds on that clock, which include the time that the machine was asleep.
    """

    wall: datetime
    boot: str = ""
    since_boot: float = 0.0

    @property
    def booted_at(self) -> datetime | None:
        """The wall time of the boot, if the wall clock is right at present; None if the boot is not known."""
        return self.wall - timedelta(seconds=self.since_boot) if self.boot else None


def read_clocks() -> ClockReading:
    """Read both clocks."""
    return ClockReading(_wall(), _boot(), _since_boot())


def _wall() -> datetime:
    return datetime.now(UTC)


def _since_boot() -> float:
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        # Unlike `time.monotonic`, this clock goes on while the machine sleeps.
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.monotonic()


@cache
def _boot() -> str:
    if sys.platform == "linux":
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            # Each time namespace has a clock of its own.
            clock = Path("/proc/self/ns/time")
            return f"{boot} {clock.readlink()}" if clock.exists() else boot
        except (OSError, ValueError):
            return ""
    return _boot_of_macos() if sys.platform == "darwin" else ""


def _boot_of_macos() -> str:
    import ctypes

    try:
        size = ctypes.c_size_t(64)
        value = ctypes.create_string_buffer(size.value)
        failed = ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", value, ctypes.byref(size), None, 0)
        return "" if failed else value.value.decode("ascii")
    except (OSError, AttributeError, ValueError):
        return ""
