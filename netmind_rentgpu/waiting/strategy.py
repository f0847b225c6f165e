"""The choice between pages of the list and single GETs, and the pause between poll rounds. Pure."""

from __future__ import annotations

import math

import attrs

from netmind_rentgpu.errors import RateLimitError, RentGPUError, ServerError

__all__ = ["AdaptiveInterval", "one_by_one", "pages_left", "worth_recounting"]


def pages_left(*, account: int, seen: int, page: int, wanted: int, found: int) -> int:
    """Estimate the number of pages that a walk over the list still has to read to see all wanted containers.

    Args:
        account: the least number of containers on the list, as far as it is known.
        seen: the number of containers that the walk has passed.
        page: the number of containers on a page.
        wanted: the number of wanted containers that the walk has not passed.
        found: the number of wanted containers that the walk has passed.
    """
    if account > seen:
        return math.ceil((account - seen) / page)
    if not seen:
        return 1
    # The rest of the list has an unknown length. To expect as many pages as were read costs at most twice the best choice.
    walked = math.ceil(seen / page)
    # The wanted containers may also be as frequent in the rest as they were so far.
    return min(walked, math.ceil(wanted * seen / (found * page))) if found else walked


def one_by_one(wanted: int, pages: int) -> bool:
    """Return True if a GET for each wanted container is better than to walk on, also because the list may lag behind."""
    return wanted <= pages


def worth_recounting(wanted: int, pages: int, *, gets: int) -> bool:
    """Return True if a walk should measure the list again, because the list may have become short.

    If it has not, the walk adds a tenth to the number of requests.

    Args:
        gets: the number of GETs that were made instead of walks since the last measurement.
    """
    return wanted > 1 and gets > 10 * pages


@attrs.define
class AdaptiveInterval:
    """The pause between poll rounds, in seconds: short while containers change, longer while they do not.

    Attributes:
        shortest, longest: the limits, in seconds.
        failures: the number of requests that have failed since the last whole round.
    """

    shortest: float = 0.25
    longest: float = 5.0
    failures: int = attrs.field(default=0, init=False)
    _interval: float = attrs.field(default=0.0, init=False)

    def reset(self) -> None:
        """Reset the pause and the number of failures."""
        self._interval = 0.0
        self.failures = 0

    def after_look(self, random: float, *, changed: bool) -> float:
        """Return the pause after a round, in seconds.

        Args:
            random: a random number from 0 up to 1.
            changed: True if the round showed a change.
        """
        self.failures = 0
        grown = self._interval * 1.5
        self._interval = self.shortest if changed else min(self.longest, max(self.shortest, grown))
        # The random part spreads the polls of clients that began at the same time.
        return self._interval * (1 - random / 4)

    def after_failure(self, random: float, error: RentGPUError) -> float:
        """Return the pause after a failed request, in seconds: at least as long as the service asked for."""
        self.failures += 1
        delay = min(self.longest, self.shortest * 2.0 ** min(self.failures - 1, 16)) * (1 - random / 4)
        asked = error.retry_after if isinstance(error, (RateLimitError, ServerError)) else None
        return delay if asked is None else max(delay, asked + delay)
