"""One look at the containers: which request it makes next, and what its answer says.

`strategy` decides between pages of the list and containers by themselves; what an answer means is for `snapshots`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import NoReturn, TypeAlias

import attrs

from netmind_rentgpu.concurrency.running_loop import running_loop
from netmind_rentgpu.concurrency.turns import ITEMS_PER_TURN, run_in_turns
from netmind_rentgpu.errors import APITimeoutError, ClientStateError, NotFoundError, RateLimitError, RentGPUError
from netmind_rentgpu.requests import ListQuery
from netmind_rentgpu.waiting.snapshots import KnownPage, Snapshots
from netmind_rentgpu.waiting.strategy import one_by_one, pages_left, worth_recounting
from netmind_rentgpu.wire.caller import Caller, DecodedResponse
from netmind_rentgpu.wire.messages import Request
from netmind_rentgpu.wire.paging import ListTraversal, PageSize
from netmind_rentgpu.wire.responses import UNCHANGED

__all__ = ["PollRound", "Poller", "Satisfied"]

_AT_ONCE = 8
# Of the containers that a list lags behind with, so many are asked for by themselves at each look, or as many as the list
# has pages.
_LEAST_UNLISTED = 32
# A connection that has died silently must not use up the deadlines of all who wait. Where the service is that slow, more is
# allowed from then on.
_FIRST_PATIENCE = 10.0

Satisfied: TypeAlias = Callable[[], bool]
"""Takes a subscription's news; returns True if its subscriber has what it waits for."""


@attrs.define(eq=False)
class PollRound:
    """One look at what is wanted, which one may begin and another finish.

    Attributes:
        began: when.
        whole: it is about all that is wanted, and not only about what nobody has looked at yet.
        to_end: the list has to be walked to its end.
        left: the ids that have not been seen yet.
        walking: it goes through the list just now.
        pages, hits: how many pages it has taken, and how many of those ids it found there.
        answered: how many containers were there that the list did not show.
        told: some request of it was answered.
        failed: why those could not be got that it has given up.
        missing: ids that a GET has answered with 404, and when that was sent. A gateway may be wrong, so that the list is
            walked to its end before they count as gone.
        recount: it walks as far as the account is thought to reach, even where that seems to cost more.
        kept: the pages that it has seen, by marker and limit.
    """

    began: float
    whole: bool
    to_end: bool
    left: set[int]
    walk: ListTraversal = attrs.field(factory=ListTraversal)
    walking: bool = False
    pages: int = 0
    hits: int = 0
    answered: int = 0
    told: bool = False
    failed: dict[int, RentGPUError] = attrs.field(factory=dict[int, RentGPUError])
    missing: dict[int, tuple[float, NotFoundError]] = attrs.field(factory=dict[int, "tuple[float, NotFoundError]"])
    recount: bool = False
    kept: set[tuple[int | str | None, int]] = attrs.field(factory=set["tuple[int | str | None, int]"])

    @property
    def over(self) -> bool:
        return not self.left and (self.walk.done or not (self.to_end or self.missing))

    @property
    def walked_to_end(self) -> bool:
        """The walk has seen all there was when it came by."""
        return self.walk.complete

    def passed(self, container_id: int) -> bool:
        """Tell whether one that is wanted only now would be missed."""
        return not self.walking or container_id in self.walk


class Poller:
    """Makes the requests of one client's looks, one look after the other.

    Attributes:
        failures: why containers could not be got by themselves, as long as they can't.
    """

    def __init__(self, caller: Caller, sizes: PageSize, path: str, snapshots: Snapshots) -> None:
        """Set up.

        Args:
            sizes: how many items the list is asked for.
            path: the list's; an item's is that and its id.
        """
        self._caller = caller
        self._sizes = sizes
        self._path = path
        self._snapshots = snapshots
        self._pages: dict[tuple[int | str | None, int], KnownPage] = {}
        # How many containers there are, as far as it matters: a walk has to pass so many to see what is wanted.
        self._account = 0
        self._page = caller.profile.page_size
        self._gets = 0
        self._patience = _FIRST_PATIENCE
        self._unlisted: dict[int, None] = {}
        self.failures: dict[int, RentGPUError] = {}
        # Requests for containers by themselves. They go on when the one who sent them has what it came for, and are the next
        # one's.
        self._running: dict[asyncio.Task[None], int] = {}

    def forget(self, ids: Iterable[int]) -> None:
        """Take in that nobody asks about some containers any more."""
        for container_id in ids:
            self._unlisted.pop(container_id, None)
            self.failures.pop(container_id, None)

    def begin_anew(self) -> None:
        """Take in that nobody asks about anything any more."""
        self._keep(set())
        self._patience = _FIRST_PATIENCE

    async def abandon(self) -> None:
        """Leave no request running."""
        running = list(self._running)
        self._running.clear()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def advance(self, poll_round: PollRound, satisfied: Satisfied) -> None:
        """Ask once more: for the next page, or for what is left by itself.

        Raises:
            RentGPUError: nothing could be learned, or the service wants to be left alone.
        """
        seen, wanted = len(poll_round.walk.seen), len(poll_round.left)
        pages = pages_left(account=self._account, seen=seen, page=self._page, wanted=wanted, found=poll_round.hits)
        if not poll_round.pages and worth_recounting(wanted, pages, gets=self._gets):
            poll_round.recount, self._gets = True, 0
        by_itself = one_by_one(wanted, pages) and not (poll_round.recount and seen < self._account)
        to_end = poll_round.to_end or bool(poll_round.missing)
        poll_round.walking = not poll_round.walk.done and (to_end or not by_itself)
        if poll_round.walking:
            await self._ask_for_page(poll_round)
            return
        if not poll_round.walk.done:
            # What is left is not before here, and seems not to be so near that walking on would cost less.
            self._account = max(self._account, seen + wanted * self._page)
            self._gets += wanted
        await self._ask_each(poll_round, satisfied)

    async def _call(self, request: Request) -> DecodedResponse:
        patience, timeouts = self._patience, self._caller.timeouts
        read = patience if timeouts.read is None else min(patience, timeouts.read)
        try:
            return await self._caller.call(request, attrs.evolve(timeouts, read=read))
        except APITimeoutError:
            self._patience = max(self._patience, 2 * patience)
            raise

    async def _ask_for_page(self, poll_round: PollRound) -> None:
        walk = poll_round.walk
        marker = walk.marker
        asked = running_loop().time()

        async def ask(limit: int) -> tuple[KnownPage | None, list[int | None], DecodedResponse]:
            known = self._pages.get((marker, limit))
            query = self._caller.codec.query(ListQuery(marker=marker, page_size=limit))
            request = Request(method="GET", path=self._path, query=query, known=None if known is None else known.body)
            decoded = await self._call(request)
            if decoded.payload is UNCHANGED:
                # Asked only now: somebody may have come meanwhile who has to be told.
                if known is not None and self._snapshots.holds(known):
                    return known, [], decoded
                decoded = await self._caller.parse_again(request, decoded)
            return None, await self._caller.read_in_turns(request, decoded, self._caller.codec.ids), decoded

        try:
            # Where a marker's own item is listed again, pages of one item would never get past it.
            (known, ids, decoded), limit = await self._sizes.ask(max(2, self._sizes.limit(None)), ask)
        except NotFoundError:
            if not walk.marker_refused():
                raise
            return
        poll_round.told = True
        if known is None:
            page, hits = await run_in_turns(self._take_page(poll_round, ids, decoded, asked))
            self._replace_page((marker, limit), page)
        else:
            page = known
            page.asked = asked
            before = len(poll_round.left)
            poll_round.left.difference_update(page.ids)
            hits = before - len(poll_round.left)
        for container_id in poll_round.missing.keys() & set(page.ids):
            # The list shows it, so that the 404 was wrong.
            del poll_round.missing[container_id]
        poll_round.kept.add((marker, limit))
        poll_round.hits += hits
        poll_round.pages += 1
        self._page = max(page.count, 1) if poll_round.pages == 1 else max(self._page, page.count)
        walk.received(page.ids, page.count, limit)
        if walk.done:
            self._settle_missing(poll_round)
        if walk.done or (poll_round.recount and not poll_round.left):
            self._account = len(walk.seen)
        else:
            self._account = max(self._account, len(walk.seen))

    def _settle_missing(self, poll_round: PollRound) -> None:
        """Count as gone what neither a GET nor the walk has shown."""
        for container_id, (asked, error) in poll_round.missing.items():
            if poll_round.walked_to_end:
                self._snapshots.take_gone(container_id, asked)
            else:
                self.failures[container_id] = error
        poll_round.missing.clear()

    def _take_page(
        self, poll_round: PollRound, ids: list[int | None], decoded: DecodedResponse, asked: float
    ) -> Generator[None, None, tuple[KnownPage, int]]:
        """Take in a page; return it, and how many of the ids that are left it shows. Others may ask meanwhile."""
        hits = 0
        page = KnownPage(decoded.response.body, tuple(one for one in ids if one is not None), len(ids), asked)
        for position, (container_id, raw) in enumerate(zip(ids, decoded.payload, strict=True)):
            if position and position % ITEMS_PER_TURN == 0:
                yield
            if container_id is not None and self._snapshots.take(container_id, raw, asked, page=page):
                hits += container_id in poll_round.left
                poll_round.left.discard(container_id)
        return page, hits

    def _replace_page(self, key: tuple[int | str | None, int], page: KnownPage) -> None:
        before = self._pages.get(key)
        if before is not None:
            self._snapshots.forget_page(before)
        self._pages[key] = page

    async def _ask_each(self, poll_round: PollRound, satisfied: Satisfied) -> None:
        """Get what is left one by one, several at once, until it is known or the one who looks is satisfied."""
        if len(poll_round.left) == 1 and not self._running:
            await self._ask_for(poll_round, next(iter(poll_round.left)))
        else:
            await self._ask_several(poll_round, satisfied)
        if poll_round.failed and not poll_round.left:
            if not poll_round.told:
                # Nothing was learned, and the reason may be the service and not those few.
                self._raise_one(poll_round)
            poll_round.failed.clear()

    async def _ask_several(self, poll_round: PollRound, satisfied: Satisfied) -> None:
        asked = set(self._running.values())
        waiting = deque(one for one in self._in_turn(poll_round) if one not in asked)
        while True:
            for task in [task for task in self._running if task.done()]:
                del self._running[task]
                task.result()
            if satisfied():
                return
            if not poll_round.told and len(poll_round.failed) >= _AT_ONCE:
                self._raise_one(poll_round)
            while waiting and len(self._running) < _AT_ONCE and not self._enough(poll_round):
                container_id = waiting.popleft()
                self._running[asyncio.create_task(self._ask_for(poll_round, container_id))] = container_id
            if not self._running:
                break
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        if self._enough(poll_round):
            # The others have their turn at the next look.
            poll_round.left.clear()

    @staticmethod
    def _raise_one(poll_round: PollRound) -> NoReturn:
        """Fail for those that could not be got, and leave them to the next try."""
        error = next(iter(poll_round.failed.values()))
        poll_round.left.update(poll_round.failed)
        poll_round.failed.clear()
        raise error

    def _in_turn(self, poll_round: PollRound) -> list[int]:
        """Order what is left.

        What has been asked for by itself comes last, what was so longest ago before the rest; and after that what could not
        be got.
        """
        return [
            *(one for one in poll_round.left if one not in self._unlisted and one not in self.failures),
            *(one for one in self._unlisted if one in poll_round.left and one not in self.failures),
            *(one for one in self.failures if one in poll_round.left),
        ]

    def _enough(self, poll_round: PollRound) -> bool:
        return poll_round.walk.done and poll_round.answered >= max(_LEAST_UNLISTED, poll_round.pages)

    async def _ask_for(self, poll_round: PollRound, container_id: int) -> None:
        """Get one. A failure is its own, unless it tells to leave the service alone.

        Raises:
            RateLimitError: it does.
            ClientStateError: the client is closed.
        """
        asked = running_loop().time()
        request = Request(method="GET", path=f"{self._path}{container_id}")
        counts = False
        try:
            decoded = await self._call(request)
            self._caller.read(request, decoded, self._snapshots.read)
        except NotFoundError as error:
            poll_round.told = True
            self._unlisted.pop(container_id, None)
            unlisted = poll_round.walked_to_end and container_id not in poll_round.walk
            if unlisted or self._snapshots.is_deleted(container_id, asked):
                counts = self._snapshots.take_gone(container_id, asked)
            elif poll_round.walk.done:
                # The list shows it, or could not be read to its end.
                poll_round.left.discard(container_id)
                self.failures[container_id] = error
                return
            else:
                poll_round.left.discard(container_id)
                poll_round.missing[container_id] = (asked, error)
                return
        except (RateLimitError, ClientStateError):
            raise
        except RentGPUError as error:
            poll_round.left.discard(container_id)
            poll_round.failed[container_id] = error
            self.failures.pop(container_id, None)
            self.failures[container_id] = error
            return
        else:
            poll_round.told = True
            counts = self._snapshots.take(container_id, decoded.payload, asked, page=None)
            poll_round.answered += 1
            self._unlisted.pop(container_id, None)
            self._unlisted[container_id] = None
        self.failures.pop(container_id, None)
        if counts:
            poll_round.left.discard(container_id)

    def finish(self, poll_round: PollRound) -> None:
        """Keep what a look that is over has learned for the next."""
        if poll_round.whole:
            self._keep(poll_round.kept)
        for container_id in [one for one in self._unlisted if one in poll_round.walk]:
            del self._unlisted[container_id]

    def _keep(self, keys: set[tuple[int | str | None, int]]) -> None:
        for key in self._pages.keys() - keys:
            self._snapshots.forget_page(self._pages.pop(key))
