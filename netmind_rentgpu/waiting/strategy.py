"""The choice between pages of the list and single GETs, and the pause between poll rounds. Pure."""

from __future__ import annotations

import math

import attrs

from netmind_rentgpu.concurrency.backoff import backoff_delay
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
    # The number of rounds without a change since the last one with a change.
    _quiet_rounds: int = attrs.field(default=-1, init=False)

    def reset(self) -> None:
        """Reset the pause and the number of failures."""
        self._quiet_rounds = -1
        self.failures = 0

    def after_look(self, random: float, *, changed: bool) -> float:
        """Return the pause after a round, in seconds.

        Args:
            random: a random number from 0 up to 1.
            changed: True if the round showed a change.
        """
        self.failures = 0
        self._quiet_rounds = 0 if changed else self._quiet_rounds + 1
        pause = backoff_delay(self._quiet_rounds, first=self.shortest, longest=self.longest, factor=1.5)
        # The random part spreads the polls of clients that began at the same time.
        return pause * (1 - random / 4)

    def after_failure(self, random: float, error: RentGPUError) -> float:
        """Return the pause after a failed request, in seconds: at least as long as the service asked for."""
        self.failures += 1
        delay = backoff_delay(self.failures - 1, first=self.shortest, longest=self.longest, factor=2) * (1 - random / 4)
        asked = error.retry_after if isinstance(error, (RateLimitError, ServerError)) else None
        return delay if asked is None else max(delay, asked + delay)
