"""One round of the poll of the containers: its next request, and the record of each answer.

`strategy` decides between pages of the list and GETs of single containers; `snapshots` judges the answers.
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
from netmind_rentgpu.wire.list_traversal import ListTraversal
from netmind_rentgpu.wire.messages import Request
from netmind_rentgpu.wire.paging import PageSize
from netmind_rentgpu.wire.responses import UNCHANGED

__all__ = ["PollRound", "Poller", "Satisfied"]

_MOST_GETS_AT_ONCE = 8
# After a walk, a round makes this many GETs of containers that the list does not show, or one for each page if that is more.
_LEAST_GETS_AFTER_WALK = 32

Satisfied: TypeAlias = Callable[[], bool]
"""A function that reads a subscription's news; it returns True if the subscriber's wait is over."""


@attrs.define(eq=False)
class PollRound:
    """One poll of the wanted containers. One leader may begin the round, and another finish it.

    Attributes:
        began: the start of the round, in seconds on the event loop's clock.
        whole: True if the round polls all wanted containers, False if only those that are new to the poller.
        to_end: True if the round has to walk to the end of the list.
        left: the ids that the round has not seen yet.
        walk: the round's walk over the list.
        walking: True if the latest request is for a page of the list.
        pages, hits: the number of pages read, and the number of ids in `left` that these pages showed.
        answered: the number of GETs that showed a container.
        told: True if the service has answered a request of the round with data, or a GET with 404.
        failed: the errors of the containers that the round has given up, by id.
        missing: the ids for which a GET was answered with 404, the time of that GET, and its error. A gateway may be wrong,
            so the ids count as gone only after a walk to the end of the list.
        recount: True if the round walks as far as the list is thought to reach, even if GETs seem to cost less.
        kept: the pages that the round has seen, by marker and limit.
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
        """True if the round has nothing left to request."""
        return not self.left and (self.walk.done or not (self.to_end or self.missing))

    @property
    def walked_to_end(self) -> bool:
        """True if the walk has seen the end of the list, and could read everything before it."""
        return self.walk.complete

    def passed(self, container_id: int) -> bool:
        """Return True if the round would miss a container that is wanted only now."""
        return not self.walking or container_id in self.walk.seen


class Poller:
    """The requests of one client's poll rounds, of one round at a time.

    Attributes:
        failures: the errors of the containers whose last GET failed, by id.
        first_read_timeout: seconds. A connection that has died silently must not use up the deadlines of all waits. Each
            timeout doubles it, because the service may be slow.
    """

    def __init__(self, caller: Caller, sizes: PageSize, path: str, snapshots: Snapshots) -> None:
        """Set up.

        Args:
            sizes: the number of items to ask the list for.
            path: the path of the list; the path of a container is this path followed by the id.
        """
        self._caller = caller
        self._sizes = sizes
        self._path = path
        self._snapshots = snapshots
        self._pages: dict[tuple[int | str | None, int], KnownPage] = {}
        # An estimate of the number of containers that a walk has to pass to see all wanted ones.
        self._walk_length = 0
        self._page = caller.profile.page_size
        self._gets = 0
        self.first_read_timeout: float = 10.0
        self._read_timeout: float | None = None
        # The ids of containers that GETs have shown, and no walk since then, in the order of the last GETs.
        self._unlisted: dict[int, None] = {}
        self.failures: dict[int, RentGPUError] = {}
        # The GETs that run, with their ids. They go on when the wait of the leader that sent them is over; the next leader
        # uses their answers.
        self._running: dict[asyncio.Task[None], int] = {}

    def forget(self, ids: Iterable[int]) -> None:
        """Forget containers that have no subscriber any more."""
        for container_id in ids:
            self._unlisted.pop(container_id, None)
            self.failures.pop(container_id, None)

    def begin_anew(self) -> None:
        """Forget all pages, and reset the read timeout, because there is no subscription any more."""
        self._keep(set())
        self._read_timeout = None

    async def abandon(self) -> None:
        """Cancel the GETs that run."""
        running = list(self._running)
        self._running.clear()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def advance(self, poll_round: PollRound, satisfied: Satisfied) -> None:
        """Read the next page, or get the containers that are left, each by a GET.

        Raises:
            RentGPUError: the page could not be read; or GETs failed before the service answered a request of the round; or
                the service refused a GET because of too many requests.
        """
        seen, wanted = len(poll_round.walk.seen.ids), len(poll_round.left)
        pages = pages_left(account=self._walk_length, seen=seen, page=self._page, wanted=wanted, found=poll_round.hits)
        if not poll_round.pages and worth_recounting(wanted, pages, gets=self._gets):
            poll_round.recount, self._gets = True, 0
        by_itself = one_by_one(wanted, pages) and not (poll_round.recount and seen < self._walk_length)
        to_end = poll_round.to_end or bool(poll_round.missing)
        poll_round.walking = not poll_round.walk.done and (to_end or not by_itself)
        if poll_round.walking:
            await self._read_next_page(poll_round)
            return
        if not poll_round.walk.done:
            # The walk has not passed the containers that are left, and they are probably too far ahead to walk on.
            self._walk_length = max(self._walk_length, seen + wanted * self._page)
            self._gets += wanted
        await self._get_each(poll_round, satisfied)

    async def _call(self, request: Request) -> DecodedResponse:
        longest, timeouts = self._read_timeout or self.first_read_timeout, self._caller.timeouts
        read = longest if timeouts.read is None else min(longest, timeouts.read)
        try:
            return await self._caller.call(request, attrs.evolve(timeouts, read=read))
        except APITimeoutError:
            self._read_timeout = max(self._read_timeout or 0, 2 * longest)
            raise

    async def _read_next_page(self, poll_round: PollRound) -> None:
        walk = poll_round.walk
        marker = walk.marker
        asked = running_loop().time()

        async def ask(limit: int) -> tuple[KnownPage | None, list[int | None], DecodedResponse]:
            known = self._pages.get((marker, limit))
            query = self._caller.codec.query(ListQuery(marker=marker, page_size=limit))
            request = Request(method="GET", path=self._path, query=query, known=None if known is None else known.body)
            decoded = await self._call(request)
            if decoded.payload is UNCHANGED:
                # Checked only now, because a new subscriber that has to get its states may have come meanwhile.
                if known is not None and self._snapshots.holds(known):
                    return known, [], decoded
                decoded = await self._caller.parse_again(request, decoded)
            return None, await self._caller.read_in_turns(request, decoded, self._caller.codec.ids), decoded

        try:
            # At least 2: if the service lists a marker's own item again, pages of one item would hold nothing else.
            (known, ids, decoded), limit = await self._sizes.ask(max(2, self._sizes.limit(None)), ask)
        except NotFoundError:
            if not walk.marker_refused():
                raise
            return
        poll_round.told = True
        if known is None:
            page, hits = await run_in_turns(self._record_page(poll_round, ids, decoded, asked))
            self._replace_page((marker, limit), page)
        else:
            page = known
            page.asked = asked
            before = len(poll_round.left)
            poll_round.left.difference_update(page.ids)
            hits = before - len(poll_round.left)
        for container_id in poll_round.missing.keys() & set(page.ids):
            # The 404 was wrong, because the list shows the container.
            del poll_round.missing[container_id]
        poll_round.kept.add((marker, limit))
        poll_round.hits += hits
        poll_round.pages += 1
        self._page = max(page.count, 1) if poll_round.pages == 1 else max(self._page, page.count)
        walk.received(page.ids, page.count, limit)
        if walk.done:
            self._settle_missing(poll_round)
        if walk.done or (poll_round.recount and not poll_round.left):
            self._walk_length = len(walk.seen.ids)
        else:
            self._walk_length = max(self._walk_length, len(walk.seen.ids))

    def _settle_missing(self, poll_round: PollRound) -> None:
        """Record the missing containers as gone if the walk was complete, else as failures."""
        for container_id, (asked, error) in poll_round.missing.items():
            if poll_round.walked_to_end:
                self._snapshots.take_gone(container_id, asked)
            else:
                self.failures[container_id] = error
        poll_round.missing.clear()

    def _record_page(
        self, poll_round: PollRound, ids: list[int | None], decoded: DecodedResponse, asked: float
    ) -> Generator[None, None, tuple[KnownPage, int]]:
        """Record a new page in turns; return the page, and the number of ids in `left` that it shows."""
        hits = 0
        page = KnownPage(
            decoded.response.body,
            tuple(container_id for container_id in ids if container_id is not None),
            len(ids),
            asked,
        )
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

    async def _get_each(self, poll_round: PollRound, satisfied: Satisfied) -> None:
        """Get the containers that are left, several at once, until all are known or the leader is satisfied."""
        if len(poll_round.left) == 1 and not self._running:
            await self._get(poll_round, next(iter(poll_round.left)))
        else:
            await self._get_several(poll_round, satisfied)
        if poll_round.failed and not poll_round.left:
            if not poll_round.told:
                # No request was answered, so the problem may be the service, and not these few containers.
                self._raise_first_failure(poll_round)
            poll_round.failed.clear()

    async def _get_several(self, poll_round: PollRound, satisfied: Satisfied) -> None:
        asked = set(self._running.values())
        waiting = deque(container_id for container_id in self._ordered_ids(poll_round) if container_id not in asked)
        while True:
            for task in [task for task in self._running if task.done()]:
                del self._running[task]
                task.result()
            if satisfied():
                return
            if not poll_round.told and len(poll_round.failed) >= _MOST_GETS_AT_ONCE:
                self._raise_first_failure(poll_round)
            while waiting and len(self._running) < _MOST_GETS_AT_ONCE and not self._made_enough_gets(poll_round):
                container_id = waiting.popleft()
                self._running[asyncio.create_task(self._get(poll_round, container_id))] = container_id
            if not self._running:
                break
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        if self._made_enough_gets(poll_round):
            # The next rounds get the other containers.
            poll_round.left.clear()

    @staticmethod
    def _raise_first_failure(poll_round: PollRound) -> NoReturn:
        """Raise the error of the first container that failed, and leave all that failed to the next attempt."""
        error = next(iter(poll_round.failed.values()))
        poll_round.left.update(poll_round.failed)
        poll_round.failed.clear()
        raise error

    def _ordered_ids(self, poll_round: PollRound) -> list[int]:
        """Return the ids that are left in the order in which to get them.

        Containers without an earlier GET come first, then containers that only GETs have shown, the earliest GET first. The
        containers whose last GET failed come last.
        """
        return [
            *(
                container_id
                for container_id in poll_round.left
                if container_id not in self._unlisted and container_id not in self.failures
            ),
            *(
                container_id
                for container_id in self._unlisted
                if container_id in poll_round.left and container_id not in self.failures
            ),
            *(container_id for container_id in self.failures if container_id in poll_round.left),
        ]

    def _made_enough_gets(self, poll_round: PollRound) -> bool:
        return poll_round.walk.done and poll_round.answered >= max(_LEAST_GETS_AFTER_WALK, poll_round.pages)

    async def _get(self, poll_round: PollRound, container_id: int) -> None:
        """Get a container. Record a failure in the round, and raise only the errors below.

        Raises:
            RateLimitError: the service refuses requests because there were too many.
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
            unlisted = poll_round.walked_to_end and container_id not in poll_round.walk.seen
            if unlisted or self._snapshots.is_deleted(container_id, asked):
                counts = self._snapshots.take_gone(container_id, asked)
            elif poll_round.walk.done:
                # The list shows the container, or the walk did not see all of the list.
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
        """Forget the pages that a whole round did not see, and earlier GETs of the containers that its walk has seen."""
        if poll_round.whole:
            self._keep(poll_round.kept)
        for container_id in [container_id for container_id in self._unlisted if container_id in poll_round.walk.seen]:
            del self._unlisted[container_id]

    def _keep(self, keys: set[tuple[int | str | None, int]]) -> None:
        for key in self._pages.keys() - keys:
            self._snapshots.forget_page(self._pages.pop(key))
