"""The time for which a machine has been idle, by readings of its activity. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import attrs

__all__ = ["IdleClock", "between_readings"]

# A reading may take as long on a slow machine. A longer gap tells nothing of the time since the reading before.
_LONGEST_DELAY: Final = timedelta(minutes=1)
# The readings within a short idle_timeout.
_LEAST_READINGS: Final = 4


def between_readings(timeout: timedelta, longest: timedelta) -> timedelta:
    """Return the pause between two readings: `longest`, or less for a short idle_timeout."""
    return min(longest, timeout / _LEAST_READINGS)


@attrs.frozen
class IdleClock:
    """The time for which a machine has been idle, by all readings so far.

    Attributes:
        since: the moment from which on all readings have shown an idle machine: the last that has not, or the first.
        read_at: the moment of the last reading.
    """

    since: datetime
    read_at: datetime

    def after(self, *, is_idle: bool, at: datetime, pause: timedelta) -> IdleClock:
        """Return the clock after one more reading.

        Args:
            at: the moment of the reading.
            pause: the planned pause since the last one. If far more has passed, as while this process was suspended, the
                machine counts as busy until now, because nothing is known of that time.
        """
        is_known = self.read_at <= at <= self.read_at + 2 * pause + _LONGEST_DELAY
        return IdleClock(self.since if is_idle and is_known else at, at)

    @property
    def idle(self) -> timedelta:
        """The time for which the machine had been idle at the last reading."""
        return self.read_at - self.since
