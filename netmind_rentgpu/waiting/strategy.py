"""How to look at containers, and how often. Pure."""

from __future__ import annotations

import math

import attrs

from netmind_rentgpu.errors import RateLimitError, RentGPUError, ServerError

__all__ = ["AdaptiveInterval", "one_by_one", "pages_left", "worth_recounting"]


def pages_left(*, account: int, seen: int, page: int, wanted: int, found: int) -> int:
    """Estimate how many more pages a walk over the list takes until it has seen all that is wanted.

    Args:
        account: how many containers there are at least, as far as is known.
        seen: how many of them the walk has passed.
        page: how many stand on a page.
        wanted: how many are wanted that it has not passed.
        found: how many were that it has.
    """
    if account > seen:
        return math.ceil((account - seen) / page)
    if not seen:
        return 1
    # Nobody knows how long it goes on. To assume as much again as was walked never costs more than twice the best.
    walked = math.ceil(seen / page)
    # Those that are wanted may be as frequent as before, too.
    return min(walked, math.ceil(wanted * seen / (found * page))) if found else walked


def one_by_one(wanted: int, pages: int) -> bool:
    """Tell whether to get the wanted containers by themselves and not to walk on; a list may also lag behind."""
    return wanted <= pages


def worth_recounting(wanted: int, pages: int, *, gets: int) -> bool:
    """Tell whether to find out by walking how long the list is now, since it may have become short.

    That adds a tenth to what is spent where it has not.

    Args:
        gets: how many containers were got by themselves since that was last found out.
    """
    return wanted > 1 and gets > 10 * pages


@attrs.define
class AdaptiveInterval:
    """How long to wait from one look to the next, in seconds: short while things change, longer while they don't.

    Attributes:
        shortest, longest: the bounds.
        failures: how many looks in a row have failed.
    """

    shortest: float = 0.25
    longest: float = 5.0
    failures: int = attrs.field(default=0, init=False)
    _interval: float = attrs.field(default=0.0, init=False)

    def reset(self) -> None:
        """Begin anew."""
        self._interval = 0.0
        self.failures = 0

    def after_look(self, random: float, *, changed: bool) -> float:
        """Return how long to wait after a look.

        Args:
            random: from 0 up to 1.
            changed: it showed something new.
        """
        self.failures = 0
        grown = self._interval * 1.5
        self._interval = self.shortest if changed else min(self.longest, max(self.shortest, grown))
        # Those who began together must not go on together.
        return self._interval * (1 - random / 4)

    def after_failure(self, random: float, error: RentGPUError) -> float:
        """Return how long to wait after a look that failed: at least as long as the service asked."""
        self.failures += 1
        delay = min(self.longest, self.shortest * 2.0 ** min(self.failures - 1, 16)) * (1 - random / 4)
        asked = error.retry_after if isinstance(error, (RateLimitError, ServerError)) else None
        return delay if asked is None else max(delay, asked + delay)
