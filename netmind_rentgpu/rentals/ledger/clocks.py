"""Two clocks: the time of day, which other machines know, and the clock of this boot, which is never set.

This module reads the clocks; what they mean for a record is pure.
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
        boot: identifies this boot, and the clock that counts since then; empty where the system does not tell.
        since_boot: seconds on that clock, time asleep included.
    """

    wall: datetime
    boot: str = ""
    since_boot: float = 0.0

    @property
    def booted_at(self) -> datetime | None:
        """When the system was booted, if the time of day is right now; None where the boot is not known."""
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
        # Unlike `time.monotonic`, it goes on while the machine sleeps.
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
