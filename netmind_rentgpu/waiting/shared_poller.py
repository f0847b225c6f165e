"""The look at the containers that all who wait share: at most one at a time, made by one of them.

There is no background task. Whoever waits and finds nobody looking, looks, until what it waits for has come; then another
goes on where it stopped. What is to be asked for next, and when, is decided by `strategy`; what it means, by `snapshots`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from functools import partial
from random import random

from netmind_rentgpu.concurrency.running_loop import running_loop
from netmind_rentgpu.errors import ClientStateError, RentGPUError
from netmind_rentgpu.models import Container
from netmind_rentgpu.waiting.poll_round import Poller, PollRound, Satisfied
from netmind_rentgpu.waiting.snapshots import Snapshots, Subscription
from netmind_rentgpu.waiting.strategy import AdaptiveInterval
from netmind_rentgpu.wire.caller import Caller
from netmind_rentgpu.wire.paging import PageSize

__all__ = ["SharedPoller"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_MOST_MOVING = 10


class SharedPoller:
    """The look that one client's waits and watches share.

    Attributes:
        failure: why the last look failed; None if it did not.
        failing_since: since when, by the event loop's clock, no look has succeeded.
    """

    def __init__(
        self,
        caller: Caller,
        sizes: PageSize,
        path: str,
        *,
        pace: AdaptiveInterval | None = None,
        random: Callable[[], float] = random,
    ) -> None:
        """Set up; nothing happens before somebody attends.

        Args:
            sizes: how many items the list is asked for.
            path: the list's; an item's is that and its id.
        """
        self._caller = caller
        self._pace = AdaptiveInterval() if pace is None else pace
        self._random = random
        self._snapshots = Snapshots(partial(caller.codec.one, Container), lag=caller.profile.list_lag.total_seconds())
        self._poller = Poller(caller, sizes, path, self._snapshots)
        self._poll_round: PollRound | None = None
        # Ids that no look is about yet.
        self._new: set[int] = set()
        # When, by the event loop's clock, something was last done here, the next whole look is due, and may be tried.
        self._active_at = 0.0
        self._next = 0.0
        self._not_before = 0.0
        # How many creates are under way, and until when the look that is due waits for them.
        self._creating = 0
        self._held_until: float | None = None
        self._leader: Subscription | None = None
        self._blocked: dict[Subscription, asyncio.Future[None]] = {}
        self._nap: asyncio.Future[None] | None = None
        self.failure: RentGPUError | None = None
        self.failing_since: float | None = None
        # What can be asked is fresh if it was asked for since then.
        self._looked_at = math.inf
        # How many looks at all containers have found some that the one before had not.
        self._moving = 0
        self._known_before: set[int] = set()
        caller.when_closed(self._wake_all)

    def subscribe(self, ids: Iterable[int] | None) -> Subscription:
        """Begin to ask about containers; None for all.

        Raises:
            ClientStateError: the client is closed or belongs to another event loop.
        """
        self._caller.check_usable()
        now = running_loop().time()
        if self._snapshots.nobody:
            self._pace.reset()
            self._next = now
            self.failure = self.failing_since = None
        subscription = Subscription(None if ids is None else set(ids))
        first = not self._snapshots.all_wanted
        owed = self._snapshots.subscribe(subscription, since=self._looked_at if now < self._next else math.inf)
        if subscription.ids is None and first:
            # What a round under way has passed was not kept, so that its end would not be the end of all.
            self._next = now
            self._poll_round = None
        if self._poll_round is not None:
            ahead = {one for one in owed if not self._poll_round.passed(one)}
            self._poll_round.left |= ahead
            owed -= ahead
        self._new |= owed
        self._wake_leader()
        return subscription

    def unsubscribe(self, subscription: Subscription, ids: Iterable[int] | None = None) -> None:
        """Ask no more, or no more about some."""
        forgotten = self._snapshots.unsubscribe(subscription, ids)
        self._new.difference_update(forgotten)
        if self._poll_round is not None:
            self._poll_round.left.difference_update(forgotten)
            for container_id in self._poll_round.missing.keys() & set(forgotten):
                del self._poll_round.missing[container_id]
        self._poller.forget(forgotten)
        if self._snapshots.nobody:
            self._poller.begin_anew()
            self._poll_round = None

    def touch(self, container_id: int, *, deleted: bool = False) -> None:
        """Take in that a call of our own has just changed a container, or may have: what was seen before is old."""
        self._snapshots.touch(container_id, running_loop().time(), deleted=deleted)

    def is_deleted(self, container_id: int) -> bool:
        """Return True if a call of ours has deleted a container a while ago."""
        return self._snapshots.is_deleted(container_id, running_loop().time())

    def created(self, container_id: int) -> None:
        """Record that a call of ours has created a container."""
        self._snapshots.created(container_id)

    def creating(self, more: int) -> None:
        """Take in that so many more creates are under way; what they make is soon asked about, and best in one look."""
        self._creating += more
        if not self._creating:
            self._wake_leader()

    def failure_of(self, ids: Iterable[int]) -> RentGPUError | None:
        """Return why nothing has been learned of some containers lately; None if nothing failed."""
        failures = self._poller.failures
        return self.failure or next((failures[one] for one in ids if one in failures), None)

    async def wait_until(self, subscription: Subscription, satisfied: Satisfied, *, until: float | None = None) -> None:
        """Wait until one who has joined is satisfied, looking for all while nobody else does.

        Args:
            until: return then at the latest, by the event loop's clock.

        Raises:
            ClientStateError: the client is closed or belongs to another event loop.
            BaseException: whatever `satisfied` raises.
        """
        loop = running_loop()
        raised: BaseException | None = None

        def done() -> bool:
            # What it raises must not be taken for a failure of the look.
            nonlocal raised
            try:
                return raised is not None or satisfied()
            except BaseException as error:  # noqa: BLE001  # raised below
                raised = error
                return True

        try:
            while not done() and (until is None or loop.time() < until):
                if self._leader is None:
                    self._leader = subscription
                    try:
                        await self._lead(done, until)
                    finally:
                        self._leader = None
                else:
                    await self._until_woken(subscription, until)
        finally:
            if self._leader is None:
                if self._blocked:
                    _wake(next(iter(self._blocked.values())))
                else:
                    await self._poller.abandon()
        if raised is not None:
            try:
                raise raised
            finally:
                del raised  # its traceback leads here

    async def _until_woken(self, subscription: Subscription, until: float | None) -> None:
        loop = running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        self._blocked[subscription] = woken
        subscription.wake = lambda: _wake(woken)
        alarm = None if until is None else loop.call_at(until, _wake, woken)
        try:
            await woken
        finally:
            subscription.wake = None
            del self._blocked[subscription]
            if alarm is not None:
                alarm.cancel()

    async def _lead(self, satisfied: Satisfied, until: float | None) -> None:
        """Look, again and again, until satisfied."""
        loop = running_loop()
        if loop.time() - self._active_at > self._pace.longest:
            # What others have seen when they last looked is too old to go on from.
            self._poll_round = None
        try:
            while not satisfied() and (until is None or loop.time() < until):
                self._caller.check_usable()
                now = loop.time()
                due = self._due(now)
                if due > now:
                    await self._sleep_until(due if until is None else min(due, until))
                else:
                    await self._look_on(satisfied)
        finally:
            self._active_at = loop.time()

    def _due(self, now: float) -> float:
        """Return when to ask next."""
        due = max(self._not_before, now if self._poll_round is not None or self._new else self._next)
        if due > now or self._poll_round is not None or not self._creating:
            return due
        if self._held_until is None:
            self._held_until = now + self._pace.shortest
        return max(due, self._held_until)

    async def _look_on(self, satisfied: Satisfied) -> None:
        """Ask once more."""
        loop = running_loop()
        if self._poll_round is not None and not self._poll_round.whole and loop.time() >= self._next:
            # Those that it is about may never be got, and the others are due.
            self._poll_round = None
        if self._poll_round is None:
            await self._poller.abandon()
            # Others who begin to wait at the same time are to be in it.
            await asyncio.sleep(0)
            self._held_until = None
            self._poll_round = self._begin(loop.time())
        current = self._poll_round
        try:
            await self._poller.advance(current, satisfied)
        except ClientStateError:
            raise
        except RentGPUError as error:
            self._failed(error)
        else:
            self.failure = self.failing_since = None
            if current.over and self._poll_round is current:
                self._finish(current)

    async def _sleep_until(self, moment: float) -> None:
        loop = running_loop()
        self._nap = loop.create_future()
        alarm = loop.call_at(moment, _wake, self._nap)
        try:
            await self._nap
        finally:
            alarm.cancel()
            self._nap = None

    def _wake_leader(self) -> None:
        if self._nap is not None:
            _wake(self._nap)

    def _wake_all(self) -> None:
        self._wake_leader()
        for future in self._blocked.values():
            _wake(future)

    def _begin(self, now: float) -> PollRound:
        snapshots = self._snapshots
        whole = now >= self._next
        to_end = whole and snapshots.all_wanted
        left = snapshots.known if to_end else snapshots.wanted if whole else self._new
        self._new = set()
        return PollRound(now, whole, to_end, left)

    def _failed(self, error: RentGPUError) -> None:
        now = running_loop().time()
        self.failure = error
        if self.failing_since is None:
            self.failing_since = now
        delay = self._pace.after_failure(self._random(), error)
        self._not_before = max(self._not_before, now + delay)
        logger.info("a look at the containers failed, and is tried again in %.1f s: %s", delay, error)

    def _finish(self, current: PollRound) -> None:
        self._poll_round = None
        self._not_before = 0.0
        self._poller.finish(current)
        if not current.whole:
            return
        if current.to_end and self._snapshots.base_wanted and self._settled(current):
            self._snapshots.take_end()
        delay = self._pace.after_look(self._random(), changed=self._snapshots.changed)
        self._snapshots.changed = False
        self._looked_at = current.began
        now = running_loop().time()
        # Whoever has come to ask about all is still to be looked for.
        self._next = now if self._snapshots.all_wanted and not current.to_end else now + delay

    def _settled(self, current: PollRound) -> bool:
        """Tell whether all containers were seen. A list that moves has to be walked until no more turn up, within reason."""
        known = self._snapshots.known
        self._moving += 1
        settled = (current.walk.complete and current.walk.sorted_by_id) or known <= self._known_before
        if settled or self._moving >= _MOST_MOVING:
            self._moving = 0
            self._known_before = set()
            return True
        self._known_before = known
        return False


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
