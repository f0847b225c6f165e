"""When workers start again after a failure, and when no more are started. Pure."""

from __future__ import annotations

from typing import Final

import attrs

__all__ = ["SHORT_LIFE", "FailuresInARow"]

SHORT_LIFE: Final = 10.0
"""The seconds after which a worker that has joined the cluster counts as a success."""
_LONGEST_PAUSE: Final = 60.0


@attrs.frozen
class FailuresInARow:
    """The failures since the last success, of all workers of a cluster together.

    Attributes:
        most: the number of failures after which no more workers are started.
        count: the number of failures.
    """

    most: int
    count: int = 0

    @property
    def are_too_many(self) -> bool:
        """True if no more workers are to be started."""
        return self.count >= self.most

    @property
    def pause(self) -> float:
        """The seconds until workers are started again: 0 after a success, and then 2, 4, 8 and so on."""
        return min(2.0**self.count, _LONGEST_PAUSE) if self.count else 0.0

    def and_one_more(self) -> FailuresInARow:
        """Return the failures after another one."""
        return attrs.evolve(self, count=self.count + 1)

    def after_success(self) -> FailuresInARow:
        """Return the failures after a success."""
        return attrs.evolve(self, count=0)
