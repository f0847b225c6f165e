"""The look at the containers that all who wait share: at most one at a time, made by one of them.

There is no background task. Whoever waits and finds nobody looking, looks, until what it waits for has come; then another
goes on where it stopped. What is to be asked for next, and when, is decided by `strategy`; what it means, by `snapshots`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from random import random
from typing import Any

import attrs

from netmind_rentgpu.errors import ClientStateError, NotFoundError, RentGPUError
from netmind_rentgpu.models import Container
from netmind_rentgpu.waiting.snapshots import KnownPage, Seat, Snapshots
from netmind_rentgpu.waiting.strategy import Pace, one_by_one, pages_left
from netmind_rentgpu.wire.caller import Caller, Reply
from netmind_rentgpu.wire.outcome import UNCHANGED, Request
from netmind_rentgpu.wire.paging import PageSize, Walk

__all__ = ["Sweep"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_AT_ONCE = 8
# Of the containers that a list lags behind with, so many are asked for by themselves at each look, or as many as the list
# has pages.
_LEAST_UNLISTED = 32

Satisfied = Callable[[], bool]
"""Takes in a seat's news; tells whether the one who sits there has what it came for."""


@attrs.define(eq=False)
class _Round:
    """One look at what is wanted, which another may finish.

    Attributes:
        whole: it is about all that is wanted, and not only about what nobody has looked at yet.
        to_end: the list has to be walked to its end.
        left: the ids that have not been seen yet.
        pages, hits: how many pages it has taken, and how many of those ids it found there.
        answered: how many containers were there that the list did not show.
        bases: those who wait for its end to know how all containers are.
    """

    whole: bool
    to_end: bool
    left: set[int]
    walk: Walk = attrs.field(factory=Walk)
    pages: int = 0
    hits: int = 0
    answered: int = 0
    bases: list[Seat] = attrs.field(factory=list[Seat])
    known_pages: dict[tuple[int | str | None, int], KnownPage] = attrs.field(
        factory=dict["tuple[int | str | None, int]", KnownPage]
    )

    @property
    def over(self) -> bool:
        return not self.left and (self.walk.done or not self.to_end)


class Sweep:
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
        pace: Pace | None = None,
        random: Callable[[], float] = random,
    ) -> None:
        """Set up; nothing happens before somebody attends.

        Args:
            sizes: how many items the list is asked for.
            path: the list's; an item's is that and its id.
        """
        self._caller = caller
        self._sizes = sizes
        self._path = path
        self._pace = Pace() if pace is None else pace
        self._random = random
        self._snapshots = Snapshots(self._read, lag=caller.profile.list_lag.total_seconds())
        self._pages: dict[tuple[int | str | None, int], KnownPage] = {}
        # How many containers there are at least, and how many stand on a page.
        self._account = 0
        self._page = caller.profile.page_size
        self._round: _Round | None = None
        # Ids that no round is about yet.
        self._new: set[int] = set()
        self._unlisted: dict[int, None] = {}
        # When, by the event loop's clock, something was last done here, the next whole look is due, and may be tried.
        self._active_at = 0.0
        self._next = 0.0
        self._not_before = 0.0
        self._leader: Seat | None = None
        self._blocked: dict[Seat, asyncio.Future[None]] = {}
        self._nap: asyncio.Future[None] | None = None
        self.failure: RentGPUError | None = None
        self.failing_since: float | None = None

    def join(self, ids: Iterable[int] | None) -> Seat:
        """Begin to ask about containers; None for all.

        Raises:
            ClientStateError: the client is closed or belongs to another event loop.
        """
        self._caller.check_usable()
        now = asyncio.get_running_loop().time()
        if self._snapshots.nobody:
            self._pace.reset()
            self._next = now
        seat = Seat(None if ids is None else set(ids))
        owed = self._snapshots.join(seat, fresh=now < self._next)
        if self._round is not None and seat.ids is not None:
            ahead = {one for one in owed if one not in self._round.walk}
            self._round.left |= ahead
            owed -= ahead
        if seat.ids is None:
            # What nobody asked about was not read, and has to be.
            self._round = None
            self._pages.clear()
            self._next = now
        self._new |= owed
        self._wake_leader()
        return seat

    def leave(self, seat: Seat, ids: Iterable[int] | None = None) -> None:
        """Ask no more, or no more about some."""
        forgotten = self._snapshots.leave(seat, ids)
        self._new.difference_update(forgotten)
        if self._round is not None:
            self._round.left.difference_update(forgotten)
        for container_id in forgotten:
            self._unlisted.pop(container_id, None)
        if self._snapshots.nobody:
            self._pages.clear()
            self._round = None

    def touch(self, container_id: int) -> None:
        """Take in that a call of our own has just changed a container, or may have: what was seen before is old."""
        self._snapshots.touch(container_id, asyncio.get_running_loop().time())

    async def attend(self, seat: Seat, satisfied: Satisfied, *, until: float | None = None) -> None:
        """Wait until one who has joined is satisfied, looking for all while nobody else does.

        Args:
            until: return then at the latest, by the event loop's clock.

        Raises:
            ClientStateError: the client is closed or belongs to another event loop.
            BaseException: whatever `satisfied` raises.
        """
        loop = asyncio.get_running_loop()
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
                    self._leader = seat
                    try:
                        await self._lead(done, until)
                    finally:
                        self._leader = None
                else:
                    await self._until_woken(seat, until)
        finally:
            if self._leader is None and self._blocked:
                _wake(next(iter(self._blocked.values())))
        if raised is not None:
            try:
                raise raised
            finally:
                del raised  # its traceback leads here

    async def _until_woken(self, seat: Seat, until: float | None) -> None:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        self._blocked[seat] = woken
        seat.wake = lambda: _wake(woken)
        alarm = None if until is None else loop.call_at(until, _wake, woken)
        try:
            await woken
        finally:
            seat.wake = None
            del self._blocked[seat]
            if alarm is not None:
                alarm.cancel()

    async def _lead(self, satisfied: Satisfied, until: float | None) -> None:
        """Look, again and again, until satisfied."""
        loop = asyncio.get_running_loop()
        while not satisfied() and (until is None or (now := loop.time()) < until):
            now = loop.time()
            self._caller.check_usable()
            idle = now - self._active_at > self._pace.longest
            self._active_at = now
            if idle:
                self._round = None
            due = max(self._not_before, now if self._round is not None or self._new else self._next)
            if due > now:
                await self._sleep_until(due if until is None else min(due, until))
                self._active_at = loop.time()
                continue
            if self._round is None:
                # Others who begin to wait at the same time are to be in it.
                await asyncio.sleep(0)
                self._round = self._begin(loop.time())
            current = self._round
            try:
                await self._advance(current, satisfied)
            except ClientStateError:
                raise
            except RentGPUError as error:
                self._failed(error)
            else:
                self.failure = self.failing_since = None
                if current.over and self._round is current:
                    self._finish(current)

    async def _sleep_until(self, moment: float) -> None:
        loop = asyncio.get_running_loop()
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

    def _begin(self, now: float) -> _Round:
        snapshots = self._snapshots
        whole = now >= self._next
        to_end = whole and snapshots.all_wanted
        left = snapshots.known if to_end else snapshots.wanted if whole else self._new
        self._new = set()
        return _Round(whole, to_end, left, bases=snapshots.waiting_for_base() if to_end else [])

    async def _advance(self, current: _Round, satisfied: Satisfied) -> None:
        """Ask once more: for the next page, or for what is left by itself."""
        pages = pages_left(
            account=self._account,
            seen=len(current.walk.seen),
            page=self._page,
            wanted=len(current.left),
            found=current.hits,
        )
        if not current.walk.done and (current.to_end or not one_by_one(len(current.left), pages)):
            await self._ask_for_page(current)
            return
        await self._ask_each(current, satisfied)

    async def _ask_for_page(self, current: _Round) -> None:
        walk = current.walk
        marker = walk.marker
        asked = asyncio.get_running_loop().time()

        async def ask(limit: int) -> tuple[KnownPage | None, list[int | None], Reply]:
            known = self._pages.get((marker, limit))
            if known is not None and self._snapshots.needs(known.ids):
                known = None
            query = {"limit": str(limit)} if marker is None else {"limit": str(limit), "marker": str(marker)}
            request = Request(method="GET", path=self._path, query=query, known=None if known is None else known.body)
            reply = await self._caller.call(request)
            ids = [] if reply.payload is UNCHANGED else self._caller.read(request, reply, self._caller.codec.ids)
            return known, ids, reply

        try:
            # Where a marker's own item is listed again, pages of one item would never get past it.
            (known, ids, reply), limit = await self._sizes.ask(max(2, self._sizes.limit(None)), ask)
        except NotFoundError:
            if not walk.marker_refused():
                raise
            return
        before = len(current.left)
        if known is not None and reply.payload is UNCHANGED:
            page = known
            current.left.difference_update(page.ids)
        else:
            page = self._take_page(current, ids, reply, asked)
        if page.body:
            current.known_pages[marker, limit] = page
        current.hits += before - len(current.left)
        current.pages += 1
        self._page = max(page.count, 1) if current.pages == 1 else max(self._page, page.count)
        walk.received(page.ids, page.count, limit)
        self._account = len(walk.seen) if walk.done else max(self._account, len(walk.seen))

    def _take_page(self, current: _Round, ids: list[int | None], reply: Reply, asked: float) -> KnownPage:
        whole = True
        for container_id, raw in zip(ids, reply.payload, strict=True):
            if container_id is not None:
                counts = self._snapshots.take(container_id, raw, asked, listed=True)
                whole = whole and counts
                if counts:
                    current.left.discard(container_id)
        readable = tuple(one for one in ids if one is not None)
        # What did not count has to be read again, even if the page stays as it is.
        return KnownPage(reply.answer.body if whole else b"", readable, len(ids))

    async def _ask_each(self, current: _Round, satisfied: Satisfied) -> None:
        """Get what is left one by one, several at once, until it is known or the one who looks is satisfied."""
        if len(current.left) == 1:
            await self._ask_for(current, next(iter(current.left)))
            return
        waiting = deque(self._in_turn(current))
        running: set[asyncio.Task[None]] = set()
        try:
            while not satisfied():
                while waiting and len(running) < _AT_ONCE and not self._enough(current):
                    running.add(asyncio.create_task(self._ask_for(current, waiting.popleft())))
                if not running:
                    break
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        if self._enough(current):
            # The others have their turn at the next look.
            current.left.clear()

    def _in_turn(self, current: _Round) -> list[int]:
        """Order what is left: what has been asked for by itself comes last, what was so longest ago before the rest."""
        return [
            *(one for one in current.left if one not in self._unlisted),
            *(one for one in self._unlisted if one in current.left),
        ]

    def _enough(self, current: _Round) -> bool:
        return current.walk.done and current.answered >= max(_LEAST_UNLISTED, current.pages)

    async def _ask_for(self, current: _Round, container_id: int) -> None:
        asked = asyncio.get_running_loop().time()
        request = Request(method="GET", path=f"{self._path}{container_id}")
        try:
            reply = await self._caller.call(request)
        except NotFoundError:
            counts = self._snapshots.take_gone(container_id, asked)
        else:
            self._caller.read(request, reply, self._read)
            counts = self._snapshots.take(container_id, reply.payload, asked, listed=False)
            current.answered += 1
            self._unlisted.pop(container_id, None)
            self._unlisted[container_id] = None
        if counts:
            current.left.discard(container_id)

    def _read(self, raw: Any) -> Container:
        return self._caller.codec.one(Container, raw)

    def _failed(self, error: RentGPUError) -> None:
        now = asyncio.get_running_loop().time()
        self.failure = error
        if self.failing_since is None:
            self.failing_since = now
        delay = self._pace.after_failure(self._random(), error)
        self._not_before = now + delay
        logger.info("a look at the containers failed, and is tried again in %.1f s: %s", delay, error)

    def _finish(self, current: _Round) -> None:
        self._round = None
        self._not_before = 0.0
        if not current.whole:
            self._pages.update(current.known_pages)
            return
        if current.pages:
            self._pages = current.known_pages
        if current.to_end:
            self._snapshots.take_end(current.bases)
        delay = self._pace.after_look(self._random(), changed=self._snapshots.changed)
        self._snapshots.changed = False
        self._next = asyncio.get_running_loop().time() + delay


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
