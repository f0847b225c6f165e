"""The poll of the containers, which all waits and watches of a client share.

There is no background task. A waiting task becomes the leader if there is none, and polls for all until its own wait is
over. Then another waiting task goes on where the leader stopped. `schedule` decides when to send a request, `strategy` which
one; `snapshots` judges the answers.
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
from netmind_rentgpu.waiting.schedule import PollSchedule
from netmind_rentgpu.waiting.snapshots import Snapshots, Subscription
from netmind_rentgpu.waiting.strategy import AdaptiveInterval
from netmind_rentgpu.wire.caller import Caller
from netmind_rentgpu.wire.paging import PageSize

__all__ = ["SharedPoller"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_MOST_UNSETTLED_WALKS = 10


class SharedPoller:
    """The poll that the waits and watches of one client share.

    All times are seconds on the event loop's clock.

    Attributes:
        schedule: the times of the requests.
        failure: the error of the last poll; None if the poll succeeded.
        failing_since: the time of the first of the failures in a row; None if the last poll succeeded.
    """

    def __init__(
        self,
        caller: Caller,
        sizes: PageSize,
        path: str,
        *,
        interval: AdaptiveInterval | None = None,
        random: Callable[[], float] = random,
    ) -> None:
        """Set up, without a request: the first call of `wait_until` sends the first one.

        Args:
            sizes: the number of items to ask the list for.
            path: the path of the list; the path of a container is this path followed by the id.
            interval: the pause between poll rounds.
            random: returns a random number from 0 up to 1.
        """
        self._caller = caller
        self.schedule: PollSchedule = PollSchedule(AdaptiveInterval() if interval is None else interval)
        self._random = random
        self._snapshots = Snapshots(partial(caller.codec.one, Container), lag=caller.profile.list_lag.total_seconds())
        self._poller = Poller(caller, sizes, path, self._snapshots)
        self._poll_round: PollRound | None = None
        # The ids that are part of no round yet.
        self._new: set[int] = set()
        self._leader: Subscription | None = None
        self._blocked: dict[Subscription, asyncio.Future[None]] = {}
        self._nap: asyncio.Future[None] | None = None
        self.failure: RentGPUError | None = None
        self.failing_since: float | None = None
        # The start of the last whole round. Later answers are recent enough for new subscribers.
        self._looked_at = math.inf
        # The number of walks in a row that may have missed containers, and the ids known after the last of these walks.
        self._unsettled_walks = 0
        self._known_before: set[int] = set()
        caller.when_closed(self._wake_all)

    def subscribe(self, ids: Iterable[int] | None) -> Subscription:
        """Subscribe to containers; None for all containers.

        Raises:
            ClientStateError: the client is closed or belongs to another event loop.
        """
        self._caller.check_usable()
        now = running_loop().time()
        if self._snapshots.nobody:
            self.schedule.reset(now)
            self.failure = self.failing_since = None
        subscription = Subscription(None if ids is None else set(ids))
        first = not self._snapshots.all_wanted
        owed = self._snapshots.subscribe(
            subscription, since=math.inf if self.schedule.is_round_due(now) else self._looked_at
        )
        if subscription.ids is None and first:
            # Begin anew, because the round under way has not kept all the containers that it has passed.
            self.schedule.round_due = now
            self._poll_round = None
        if self._poll_round is not None:
            ahead = {container_id for container_id in owed if not self._poll_round.passed(container_id)}
            self._poll_round.left |= ahead
            owed -= ahead
        self._new |= owed
        self._wake_leader()
        return subscription

    def unsubscribe(self, subscription: Subscription, ids: Iterable[int] | None = None) -> None:
        """End a subscription, or its part for some ids."""
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
        """Record that a call of this client has just changed a container, or may have: earlier answers do not count."""
        self._snapshots.touch(container_id, running_loop().time(), deleted=deleted)

    def is_deleted(self, container_id: int) -> bool:
        """Return True if this client has recently deleted a container, or found it to be gone."""
        return self._snapshots.is_deleted(container_id, running_loop().time())

    def created(self, container_id: int) -> None:
        """Record that a call of this client has created a container."""
        self._snapshots.created(container_id)

    def creating(self, more: int) -> None:
        """Add to the number of creates under way. A due round waits for them for a moment, to include their containers."""
        self.schedule.creates += more
        if not self.schedule.creates:
            self._wake_leader()

    def failure_of(self, ids: Iterable[int]) -> RentGPUError | None:
        """Return the error of the last poll, or of the last GET of one of these containers; None if neither failed."""
        failures = self._poller.failures
        return self.failure or next((failures[container_id] for container_id in ids if container_id in failures), None)

    async def wait_until(self, subscription: Subscription, satisfied: Satisfied, *, until: float | None = None) -> None:
        """Wait until a subscriber is satisfied; poll for all subscribers while no other task does.

        Args:
            satisfied: reads the subscriber's news; returns True if the wait is over.
            until: the time at which to return at the latest; None for no limit.

        Raises:
            ClientStateError: the client is closed or belongs to another event loop.
            BaseException: any error of `satisfied`.
        """
        loop = running_loop()
        raised: BaseException | None = None

        def done() -> bool:
            # Keep the error, because otherwise it would count as a failure of the poll.
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
                del raised  # break the reference cycle

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
        """Poll, again and again, until the leader is satisfied."""
        loop = running_loop()
        if self.schedule.is_stale(loop.time()):
            self._poll_round = None
        try:
            while not satisfied() and (until is None or loop.time() < until):
                self._caller.check_usable()
                now = loop.time()
                due = self.schedule.next_request(now, in_round=self._poll_round is not None, has_new=bool(self._new))
                if due > now:
                    await self._sleep_until(due if until is None else min(due, until))
                else:
                    await self._poll_once(satisfied)
        finally:
            self.schedule.leader_stopped(loop.time())

    async def _poll_once(self, satisfied: Satisfied) -> None:
        """Make the next request, or the next GETs, of the round; begin a round if there is none."""
        loop = running_loop()
        if self._poll_round is not None and not self._poll_round.whole and self.schedule.is_round_due(loop.time()):
            # Drop the round: its GETs may fail again and again, while all containers are due.
            self._poll_round = None
        if self._poll_round is None:
            await self._poller.abandon()
            # Run other tasks first, so that waits that begin at the same time are part of the round.
            await asyncio.sleep(0)
            self.schedule.round_begun()
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
        whole = self.schedule.is_round_due(now)
        to_end = whole and snapshots.all_wanted
        left = snapshots.known if to_end else snapshots.wanted if whole else self._new
        self._new = set()
        return PollRound(now, whole, to_end, left)

    def _failed(self, error: RentGPUError) -> None:
        now = running_loop().time()
        self.failure = error
        if self.failing_since is None:
            self.failing_since = now
        delay = self.schedule.failed(now, self._random(), error)
        logger.info("the poll of the containers failed: %s; the next attempt is in %.1f s", error, delay)

    def _finish(self, current: PollRound) -> None:
        self._poll_round = None
        self.schedule.round_finished()
        self._poller.finish(current)
        if not current.whole:
            return
        if current.to_end and self._snapshots.base_wanted and self._settled(current):
            self._snapshots.take_end()
        changed, self._snapshots.changed = self._snapshots.changed, False
        self._looked_at = current.began
        # A watch of all containers that began during the round needs a walk to the end at once.
        repeat = self._snapshots.all_wanted and not current.to_end
        self.schedule.whole_round_finished(running_loop().time(), self._random(), changed=changed, repeat=repeat)

    def _settled(self, current: PollRound) -> bool:
        """Return True if all containers were seen, or if enough walks were made.

        One complete walk over a list that is sorted by id sees all containers. Another list is walked over again until a
        walk finds no more containers.
        """
        known = self._snapshots.known
        self._unsettled_walks += 1
        settled = (current.walk.complete and current.walk.seen.are_sorted) or known <= self._known_before
        if settled or self._unsettled_walks >= _MOST_UNSETTLED_WALKS:
            self._unsettled_walks = 0
            self._known_before = set()
            return True
        self._known_before = known
        return False


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
