"""The times at which the shared poller sends its requests. Pure: each method takes the present time.

All times are seconds on the event loop's clock.
"""

from __future__ import annotations

import attrs

from netmind_rentgpu.errors import RentGPUError
from netmind_rentgpu.waiting.strategy import AdaptiveInterval

__all__ = ["PollSchedule"]


@attrs.define(eq=False)
class PollSchedule:
    """The schedule of one poller.

    Attributes:
        interval: the pause between whole rounds.
        round_due: the time of the next whole round, which polls all wanted containers.
        creates: the number of creates under way. A due round waits for them for a moment, to include their containers.
    """

    interval: AdaptiveInterval
    round_due: float = 0.0
    creates: int = 0
    # The earliest time of the next request after a failure, and the time until which a due round waits for creates.
    _not_before: float = 0.0
    _held_until: float | None = None
    _stopped_at: float = 0.0

    def reset(self, now: float) -> None:
        """Begin anew, for the first subscriber: a round is due at once."""
        self.interval.reset()
        self.round_due = now

    def next_request(self, now: float, *, in_round: bool, has_new: bool) -> float:
        """Return the time at which to send the next request.

        Args:
            in_round: True if a round is under way.
            has_new: True if there are containers that no round has polled yet.
        """
        due = max(self._not_before, now if in_round or has_new else self.round_due)
        if due > now or in_round or not self.creates:
            return due
        if self._held_until is None:
            self._held_until = now + self.interval.shortest
        return max(due, self._held_until)

    def is_round_due(self, now: float) -> bool:
        """Return True if a whole round is due."""
        return now >= self.round_due

    def round_begun(self) -> None:
        """Record that a round has begun."""
        self._held_until = None

    def failed(self, now: float, random: float, error: RentGPUError) -> float:
        """Return the pause after a failed request, in seconds, and postpone the next request by it.

        Args:
            random: a random number from 0 up to 1.
        """
        delay = self.interval.after_failure(random, error)
        self._not_before = max(self._not_before, now + delay)
        return delay

    def round_finished(self) -> None:
        """Record that a round has ended; the next request waits no longer for earlier failures."""
        self._not_before = 0.0

    def whole_round_finished(self, now: float, random: float, *, changed: bool, repeat: bool) -> None:
        """Set the time of the next whole round.

        Args:
            random: a random number from 0 up to 1.
            changed: True if the round showed a change.
            repeat: True if another round is needed at once.
        """
        delay = self.interval.after_look(random, changed=changed)
        self.round_due = now if repeat else now + delay

    def leader_stopped(self, now: float) -> None:
        """Record that a leader has stopped polling."""
        self._stopped_at = now

    def is_stale(self, now: float) -> bool:
        """Return True if the answers of a round are too old for the next leader to go on with."""
        return now - self._stopped_at > self.interval.longest
