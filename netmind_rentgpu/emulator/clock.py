"""What time it is for an emulated service, and what is due by then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from heapq import heappop, heappush

__all__ = ["LATEST", "Clock", "Timeline"]

LATEST = 253_370_764_800.0
"""The last moment that a clock shows, in seconds since 1970: the year 9999 begins. There it stops."""
_FURTHEST = 1e9


class Clock:
    """An emulator's time: real, scaled, or standing still until it is moved. It never goes back.

        Clock()             as fast as the machine's own
        Clock(scale=3600)   an hour in a second
        Clock(scale=0)      stands still until `advance`

    Containers start, and costs grow, by it. Delays of answers do not follow it: they meet a client's own timeouts.
    """

    def __init__(self, *, scale: float = 1.0, start: float | None = None) -> None:
        """Start a clock.

        Args:
            scale: seconds that pass here in each real one; 0 for none.
            start: seconds since 1970; now where it is None.

        Raises:
            ValueError: the scale is negative, or the start is not within the years 1970 to 9998.
        """
        start = time.time() if start is None else start
        if not 0 <= start <= LATEST:
            raise ValueError(f"a clock shows the years 1970 to 9998, not {start!r} seconds since 1970")
        self._start = start
        # How far it had gone, at which moment of the machine's, and how fast it goes since. Counted from the start, since
        # seconds since 1970 leave little room for fractions.
        self._gone = 0.0
        self._since = time.monotonic()
        self._scale: float = _checked_scale(scale)
        self._lock = threading.Lock()  # one thread may look while another moves it

    @property
    def now(self) -> float:
        """What it shows, in seconds since 1970."""
        with self._lock:
            return min(LATEST, self._start + self._gone_by(time.monotonic()))

    @property
    def scale(self) -> float:
        """How many seconds pass here in each real one; setting it leaves the time as it is."""
        return self._scale

    @scale.setter
    def scale(self, scale: float) -> None:
        self.advance(0, scale=scale)

    def advance(self, seconds: float, *, scale: float | None = None) -> None:
        """Move it forward, and, where a scale is given, let it go on at that.

        Raises:
            ValueError: the seconds are not from 0 to 1,000,000,000, or the scale is not from 0 to 1,000,000. The clock is
                as it was.
        """
        if not 0 <= seconds <= _FURTHEST:
            raise ValueError(f"a clock goes forward, by 0 to {_FURTHEST:,.0f} seconds, not by {seconds!r}")
        scale = self._scale if scale is None else _checked_scale(scale)
        with self._lock:
            moment = time.monotonic()
            self._gone = min(LATEST, self._gone_by(moment) + seconds)
            self._since, self._scale = moment, scale

    def _gone_by(self, moment: float) -> float:
        return self._gone + (moment - self._since) * self._scale

    def __repr__(self) -> str:
        return f"Clock(scale={self.scale:g}, start={self.now!r})"


class Timeline:
    """What happens by itself, each at its moment. It happens when someone looks, and then in the order of those moments.

    Attributes:
        now: the moment that is looked at, in seconds since 1970: it stands still until the next `settle`.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._planned = 0
        self.now: float = clock.now

    def plan(self, moment: float, act: Callable[[], object]) -> None:
        """Let something happen at a moment; what is due at the same one happens in the order of planning."""
        self._planned += 1
        heappush(self._due, (moment, self._planned, act))

    def settle(self) -> None:
        """Go to the present, and let happen what is due by then."""
        now = self._clock.now
        while self._due and self._due[0][0] <= now:
            self.now, _, act = heappop(self._due)
            act()
        self.now = now


def _checked_scale(scale: float) -> float:
    if not 0 <= scale <= 1e6:
        raise ValueError(f"a clock's scale is from 0 to 1,000,000, not {scale!r}")
    return scale
