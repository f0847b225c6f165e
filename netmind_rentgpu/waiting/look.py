"""One look at the containers: which request it makes next, and what its answer says.

`strategy` decides between pages of the list and containers by themselves; what an answer means is for `snapshots`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

import attrs

from netmind_rentgpu.errors import NotFoundError
from netmind_rentgpu.waiting.snapshots import KnownPage, Seat, Snapshots
from netmind_rentgpu.waiting.strategy import one_by_one, pages_left, worth_recounting
from netmind_rentgpu.wire.caller import Caller, Reply
from netmind_rentgpu.wire.outcome import UNCHANGED, Request
from netmind_rentgpu.wire.paging import PageSize, Walk

__all__ = ["Look", "Looker", "Satisfied"]

_AT_ONCE = 8
# Of the containers that a list lags behind with, so many are asked for by themselves at each look, or as many as the list
# has pages.
_LEAST_UNLISTED = 32

Satisfied: TypeAlias = Callable[[], bool]
"""Takes in a seat's news; tells whether the one who sits there has what it came for."""


@attrs.define(eq=False)
class Look:
    """One look at what is wanted, which one may begin and another finish.

    Attributes:
        whole: it is about all that is wanted, and not only about what nobody has looked at yet.
        to_end: the list has to be walked to its end.
        left: the ids that have not been seen yet.
        pages, hits: how many pages it has taken, and how many of those ids it found there.
        answered: how many containers were there that the list did not show.
        recount: it walks as far as the account is thought to reach, even where that seems to cost more.
        bases: those who wait for its end to know how all containers are.
    """

    whole: bool
    to_end: bool
    left: set[int]
    walk: Walk = attrs.field(factory=Walk)
    pages: int = 0
    hits: int = 0
    answered: int = 0
    recount: bool = False
    bases: list[Seat] = attrs.field(factory=list[Seat])
    known_pages: dict[tuple[int | str | None, int], KnownPage] = attrs.field(
        factory=dict["tuple[int | str | None, int]", KnownPage]
    )

    @property
    def over(self) -> bool:
        return not self.left and (self.walk.done or not self.to_end)


class Looker:
    """Makes the requests of one client's looks, one look after the other."""

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
        self._unlisted: dict[int, None] = {}
        # Requests for containers by themselves. They go on when the one who sent them has what it came for, and are the next
        # one's.
        self._running: dict[asyncio.Task[None], int] = {}

    def forget(self, ids: Iterable[int]) -> None:
        """Take in that nobody asks about some containers any more."""
        for container_id in ids:
            self._unlisted.pop(container_id, None)

    def forget_pages(self) -> None:
        """Read every page anew, whether it is as it was or not."""
        self._pages.clear()

    async def abandon(self) -> None:
        """Leave no request running."""
        running = list(self._running)
        self._running.clear()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def advance(self, look: Look, satisfied: Satisfied) -> None:
        """Ask once more: for the next page, or for what is left by itself."""
        seen, wanted = len(look.walk.seen), len(look.left)
        pages = pages_left(account=self._account, seen=seen, page=self._page, wanted=wanted, found=look.hits)
        if not look.pages and worth_recounting(wanted, pages, gets=self._gets):
            look.recount, self._gets = True, 0
        by_itself = one_by_one(wanted, pages) and not (look.recount and seen < self._account)
        if not look.walk.done and (look.to_end or not by_itself):
            await self._ask_for_page(look)
            return
        if not look.walk.done:
            # What is left is not before here, and seems not to be so near that walking on would cost less.
            self._account = max(self._account, seen + wanted * self._page)
            self._gets += wanted
        await self._ask_each(look, satisfied)

    async def _ask_for_page(self, look: Look) -> None:
        walk = look.walk
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
        before = len(look.left)
        if known is not None and reply.payload is UNCHANGED:
            page = known
            look.left.difference_update(page.ids)
        else:
            page = self._take_page(look, ids, reply, asked)
        if page.body:
            look.known_pages[marker, limit] = page
        look.hits += before - len(look.left)
        look.pages += 1
        self._page = max(page.count, 1) if look.pages == 1 else max(self._page, page.count)
        walk.received(page.ids, page.count, limit)
        if walk.done or (look.recount and not look.left):
            self._account = len(walk.seen)
        else:
            self._account = max(self._account, len(walk.seen))

    def _take_page(self, look: Look, ids: list[int | None], reply: Reply, asked: float) -> KnownPage:
        whole = True
        for container_id, raw in zip(ids, reply.payload, strict=True):
            if container_id is not None:
                counts = self._snapshots.take(container_id, raw, asked, listed=True)
                whole = whole and counts
                if counts:
                    look.left.discard(container_id)
        readable = tuple(one for one in ids if one is not None)
        # What did not count has to be read again, even if the page stays as it is.
        return KnownPage(reply.answer.body if whole else b"", readable, len(ids))

    async def _ask_each(self, look: Look, satisfied: Satisfied) -> None:
        """Get what is left one by one, several at once, until it is known or the one who looks is satisfied."""
        if len(look.left) == 1 and not self._running:
            await self._ask_for(look, next(iter(look.left)))
            return
        asked = set(self._running.values())
        waiting = deque(one for one in self._in_turn(look) if one not in asked)
        while not satisfied():
            while waiting and len(self._running) < _AT_ONCE and not self._enough(look):
                container_id = waiting.popleft()
                self._running[asyncio.create_task(self._ask_for(look, container_id))] = container_id
            if not self._running:
                break
            done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                del self._running[task]
            for error in [task.exception() for task in done]:
                if error is not None:
                    raise error
        if self._enough(look):
            # The others have their turn at the next look.
            look.left.clear()

    def _in_turn(self, look: Look) -> list[int]:
        """Order what is left: what has been asked for by itself comes last, what was so longest ago before the rest."""
        return [
            *(one for one in look.left if one not in self._unlisted),
            *(one for one in self._unlisted if one in look.left),
        ]

    def _enough(self, look: Look) -> bool:
        return look.walk.done and look.answered >= max(_LEAST_UNLISTED, look.pages)

    async def _ask_for(self, look: Look, container_id: int) -> None:
        asked = asyncio.get_running_loop().time()
        request = Request(method="GET", path=f"{self._path}{container_id}")
        try:
            reply = await self._caller.call(request)
        except NotFoundError:
            counts = self._snapshots.take_gone(container_id, asked)
            self._unlisted.pop(container_id, None)
        else:
            self._caller.read(request, reply, self._snapshots.read)
            counts = self._snapshots.take(container_id, reply.payload, asked, listed=False)
            look.answered += 1
            self._unlisted.pop(container_id, None)
            self._unlisted[container_id] = None
        if counts:
            look.left.discard(container_id)

    def finish(self, look: Look) -> None:
        """Keep what a look that is over has learned for the next."""
        if not look.whole:
            self._pages.update(look.known_pages)
        elif look.pages:
            self._pages = look.known_pages
        for container_id in [one for one in self._unlisted if one in look.walk]:
            del self._unlisted[container_id]
