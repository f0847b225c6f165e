"""An emulated service's clock, and the actions that the service does at planned times."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from heapq import heappop, heappush

__all__ = ["LATEST", "Clock", "Timeline"]

LATEST = 253_370_764_800.0
"""The start of the year 9999, in seconds since 1970. A clock stops there."""
_FURTHEST = 1e9


class Clock:
    """An emulator's clock: as fast as real time, scaled, or stopped until `advance`. It never goes back.

        Clock()             as fast as real time
        Clock(scale=3600)   an hour in each real second
        Clock(scale=0)      stopped until `advance`

    Start-up times and costs follow this clock. Delayed answers follow real time, as the client's own timeouts do.
    """

    # The machine's own clocks, which a test may replace.
    _read_wall: Callable[[], float] = staticmethod(time.time)
    _read_monotonic: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, *, scale: float = 1.0, start: float | None = None) -> None:
        """Start a clock.

        Args:
            scale: emulated seconds in a real second; 0 to stop the clock.
            start: the time to begin with, in seconds since 1970; None for the present.

        Raises:
            ValueError: the scale is negative, or the start is not within the years 1970 to 9998.
        """
        start = self._read_wall() if start is None else start
        if not 0 <= start <= LATEST:
            raise ValueError(f"a clock shows the years 1970 to 9998, not {start!r} seconds since 1970")
        self._start = start
        # The emulated seconds that had passed at `_since` (seconds on the monotonic clock), the start of the current scale.
        # They are kept apart from `_start`, because a float of seconds since 1970 is less precise.
        self._elapsed = 0.0
        self._since = self._read_monotonic()
        self._scale: float = _checked_scale(scale)
        self._lock = threading.Lock()  # because one thread may read the clock while another advances it

    @property
    def now(self) -> float:
        """The emulated time, in seconds since 1970."""
        with self._lock:
            return min(LATEST, self._start + self._elapsed_at(self._read_monotonic()))

    @property
    def scale(self) -> float:
        """The emulated seconds in a real second. A new scale does not change the time."""
        return self._scale

    @scale.setter
    def scale(self, scale: float) -> None:
        self.advance(0, scale=scale)

    def advance(self, seconds: float, *, scale: float | None = None) -> None:
        """Move the clock forward, and change its scale if one is given.

        Raises:
            ValueError: the seconds are not from 0 to 1,000,000,000, or the scale is not from 0 to 1,000,000. The clock does
                not change then.
        """
        if not 0 <= seconds <= _FURTHEST:
            raise ValueError(f"a clock goes forward, by 0 to {_FURTHEST:,.0f} seconds, not by {seconds!r}")
        scale = self._scale if scale is None else _checked_scale(scale)
        with self._lock:
            moment = self._read_monotonic()
            self._elapsed = min(LATEST, self._elapsed_at(moment) + seconds)
            self._since, self._scale = moment, scale

    def _elapsed_at(self, moment: float) -> float:
        return self._elapsed + (moment - self._since) * self._scale

    def __repr__(self) -> str:
        return f"Clock(scale={self.scale:g}, start={self.now!r})"


class Timeline:
    """Actions that an emulated service does at planned times.

    No timer runs. An action that is due waits for the next `settle`, which each call of the service begins with, and which
    an emulator with SSH calls every 50 milliseconds.

    Attributes:
        now: the time of the last `settle`, in seconds since 1970; while an action runs, the time that it was planned for.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._planned = 0
        self.now: float = clock.now

    def plan(self, moment: float, act: Callable[[], object]) -> None:
        """Schedule an action for a moment in seconds since 1970. Actions of one moment run in the order of planning."""
        self._planned += 1
        heappush(self._due, (moment, self._planned, act))

    def settle(self) -> None:
        """Run all actions that are due, and set `now` to the clock's time."""
        now = self._clock.now
        while self._due and self._due[0][0] <= now:
            self.now, _, act = heappop(self._due)
            act()
        self.now = now


def _checked_scale(scale: float) -> float:
    if not 0 <= scale <= 1e6:
        raise ValueError(f"a clock's scale is from 0 to 1,000,000, not {scale!r}")
    return scale
