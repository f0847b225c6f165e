"""Lists that come in pages: one object to await (a page) and to iterate (every item of every page).

`ListTraversal` decides what to ask for next and when the list has ended; it is pure. `AsyncPager` does the asking.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from itertools import pairwise
from operator import lt
from typing import Any, Final, Generic, Protocol, TypeVar, cast

import attrs

from netmind_rentgpu.errors import InvalidRequestError, NotFoundError, UnexpectedResponseError

__all__ = ["AsyncPager", "ListTraversal", "ListedItems", "Page", "PageSize"]


_MOST_SILENT: Final = 24
_MOST_CONTRADICTIONS: Final = 10
_MOST_WALKS: Final = 5


class Identified(Protocol):
    """What can stand in a list: an item with an id."""

    @property
    def id(self) -> int: ...


Item = TypeVar("Item", bound=Identified)
Answered = TypeVar("Answered")
Listed = TypeVar("Listed")


@attrs.frozen
class Page(Generic[Item]):
    """One page of a list.

    Attributes:
        items: in the service's order.
        next_marker: the `marker` that asks for what comes after; None where the list has ended (to ask with None would be
            to begin anew). The service does not say how long a list is, so the last page may have a marker too, and an
            empty page after it. `pages()` sees to all that.
        unreadable: an error for each item that could not be read, or for the first 20 of them.
        unreadable_count: how many items could not be read.
    """

    items: tuple[Item, ...]
    next_marker: int | str | None = None
    unreadable: tuple[UnexpectedResponseError, ...] = ()
    unreadable_count: int = attrs.field(
        default=attrs.Factory(lambda page: len(page.unreadable), takes_self=True), kw_only=True
    )

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]


@attrs.frozen
class ListedItems(Generic[Listed]):
    """The items of an answer that is a list.

    Attributes:
        items: the items that could be read, in the service's order.
        unreadable: an error for each of the others, or for the first of them where they are many.
        unreadable_count: how many others there are.
    """

    items: list[Listed]
    unreadable: tuple[UnexpectedResponseError, ...]
    unreadable_count: int


Fetch = Callable[[int | str | None, int], Awaitable[ListedItems[Item]]]
"""Asks for one page: (marker, limit) -> its items."""


class ListTraversal:
    """One walk over a list whose length is not told, which may change meanwhile, and whose markers may die.

    A page ends the list if it is shorter than an earlier one of this walk (the service may send fewer items than were
    asked for, so the limit says nothing). A page with nothing new, or a marker the service does not know, may mean the end,
    or only that the marker's item was deleted. So it is confirmed with an earlier item's marker, further back each time,
    and at last from the start: the list has ended if what came just before is found there and nothing new follows it.

    Attributes:
        marker: what to ask for next.
        done: there is nothing more to ask for.
        complete: the end was seen, and all before it could be read.
        gave_up: there may be more, which cannot be reached.
    """

    def __init__(self, marker: int | str | None = None) -> None:
        self.marker = marker
        self.done: bool = False
        self.complete: bool = False
        self.gave_up: bool = False
        self._start = marker
        self._limit = 0
        self._given: list[int] = []
        self._position: dict[int, int] = {}
        self._longest = 0
        self._pages = 0
        self._silent = 0
        self._back = 0
        self._blind = False
        self._orders = {"ascending", "descending"}
        self._dead_end = 0
        self._contradictions = 0
        self._alive: int | None = None
        self._empty_after: int | str | None = None

    @property
    def sorted_by_id(self) -> bool:
        """What was seen of the list was sorted by id, one way or the other."""
        return len(self._given) < 2 or any(
            all((one < other) is (order == "ascending") for one, other in pairwise(self._given))
            for order in self._orders
        )

    @property
    def seen(self) -> list[int]:
        """What was given, in the order in which it came."""
        return self._given

    def __contains__(self, item: int) -> bool:
        return item in self._position

    @property
    def empty(self) -> bool:
        """Nothing was given yet."""
        return not self._given

    def received(self, ids: Sequence[int], count: int, limit: int) -> list[int]:
        """Take in the page that `marker` led to; return the indexes in `ids` of what is new.

        Args:
            ids: the ids of the items that could be read, in order.
            count: how many items the page had.
            limit: how many were asked for. Pages that were asked for with different limits do not compare.
        """
        self._learn_order(ids)
        new = self._remember(ids)
        if limit != self._limit:
            self._limit, self._longest = limit, 0
        short = count < self._longest
        self._longest = max(self._longest, count)
        self._blind = self._blind or count > len(ids)
        if new:
            self._pages += 1
            self._silent = self._back = 0
            self._alive = self._empty_after = None
        else:
            self._silent += 1
        if count and short:
            self._end(complete=True)
        elif not new and count > len(ids):
            # What follows cannot be asked for: what is new here has no id.
            self._give_up()
        elif new:
            self.marker = ids[-1]
        else:
            self._nothing_new(ids)
        return new

    def marker_refused(self) -> bool:
        """Take in that the service does not know `marker`; return False if that is where the caller wanted to start."""
        if not self._given:
            return False
        self.received((), 0, self._limit)
        return True

    def _remember(self, ids: Sequence[int]) -> list[int]:
        given, position = self._given, self._position
        if position.keys().isdisjoint(ids) and len(set(ids)) == len(ids):
            # As good as always, and quicker.
            position.update(zip(ids, range(len(given), len(given) + len(ids)), strict=True))
            given.extend(ids)
            return list(range(len(ids)))
        new: list[int] = []
        for index, item in enumerate(ids):
            if item not in position:
                position[item] = len(given)
                given.append(item)
                new.append(index)
        return new

    def _end(self, *, complete: bool) -> None:
        self.done = True
        self.complete = complete and not self._blind

    def _give_up(self) -> None:
        self.gave_up = True
        self._end(complete=False)

    def _nothing_new(self, ids: Sequence[int]) -> None:
        if not ids and self.marker is None:
            self._end(complete=True)
        elif self._silent > self._pages + _MOST_SILENT or self._contradictions > _MOST_CONTRADICTIONS:
            # The service ignores markers, or moves its list about faster than it can be read.
            self._give_up()
        elif ids and self._follows_marker(ids):
            if ids[-1] in (self.marker, self._empty_after):
                # It is still there, so it was there when nothing came after it.
                self._end(complete=True)
            else:
                self._alive = self.marker = ids[-1]
                self._back = 0
        else:
            if not ids and not self._back:
                self._empty_after = self.marker
            elif ids and self.marker == self._alive:
                self._contradictions += 1
            self._step_back()

    def _learn_order(self, ids: Sequence[int]) -> None:
        """Find out whether the list is sorted by id, either way, as far as it has been seen."""
        following = ids[1:]
        if not all(map(lt, ids, following)):
            self._orders.discard("ascending")
        if any(map(lt, ids, following)):
            self._orders.discard("descending")

    def _in_order(self) -> list[int]:
        """Return what was given, as the list would have it: things that appear on the way may stand anywhere."""
        if len(self._orders) != 1:
            return self._given
        return sorted(self._given, reverse="descending" in self._orders)

    def _follows_marker(self, ids: Sequence[int]) -> bool:
        """Tell whether a page is what comes after the marker, and not the list from its start again."""
        if not isinstance(self.marker, int):
            return True
        if len(self._orders) == 1:
            return min(ids) >= self.marker if "ascending" in self._orders else max(ids) <= self.marker
        after = self._position.get(self.marker, -1)
        return all(self._position[item] >= after for item in ids)

    def _step_back(self) -> None:
        """Ask again from an earlier item: the one before, then a page back, then four times as far each time."""
        if self.marker == self._start:
            # There is nothing before what the caller wanted to start from.
            self._end(complete=False)
            return
        if not self._back:
            self._dead_end = cast("int", self.marker)
        self._back = max(self._longest, self._back * 4) if self._back else 1
        given = self._in_order()
        position = given.index(self._dead_end) - self._back
        self.marker = given[position] if position >= 0 else self._start


class PageSize:
    """How many items to ask a list for: as many as are wanted, as long as the service does not refuse so many."""

    STEPS = (100, 50, 20, 10, 5, 2)

    def __init__(self, usual: int) -> None:
        self._usual = usual
        self._allowed: int | None = None

    def limit(self, wanted: int | None) -> int:
        """Return how many items to ask for."""
        limit = self._usual if wanted is None else wanted
        return limit if self._allowed is None else min(limit, self._allowed)

    async def ask(self, limit: int, ask: Callable[[int], Awaitable[Answered]]) -> tuple[Answered, int]:
        """Ask for a page, of fewer items where the service refuses so many; return the answer and the limit it took."""
        refused = False
        while True:
            try:
                response = await ask(limit)
            except InvalidRequestError as error:
                smaller = next((step for step in self.STEPS if step < limit), None)
                if smaller is None or not _refuses_limit(error):
                    raise
                limit, refused = smaller, True
            else:
                if refused:
                    self._allowed = limit
                return response, limit


class AsyncPager(Generic[Item]):
    """A list on the service. Await it for its first page, iterate it for every item.

    One page is held at a time. Items that were given once are not given again: lists move while they are walked. A list that
    turns out not to be sorted by id is walked until it was the same twice, since what moves in it can be passed by.
    """

    def __init__(
        self, fetch: Fetch[Item], *, path: str, marker: int | str | None, page_size: int | None, sizes: PageSize
    ) -> None:
        self._fetch = fetch
        self._path = path
        self._marker = marker
        self._page_size = page_size
        self._sizes = sizes

    def __repr__(self) -> str:
        return "<AsyncPager: await it for a page, iterate it with 'async for' for every item>"

    def __await__(self) -> Generator[Any, None, Page[Item]]:
        return self.first_page().__await__()

    async def first_page(self) -> Page[Item]:
        """Return the first page, or the one after `marker`."""
        fetched, _ = await self._page_after(self._marker, self._sizes.limit(self._page_size))
        items = fetched.items
        if fetched.unreadable and not items:
            raise fetched.unreadable[0]
        next_marker = items[-1].id if items else None
        return Page(tuple(items), next_marker, fetched.unreadable, unreadable_count=fetched.unreadable_count)

    async def pages(self) -> AsyncIterator[Page[Item]]:
        """Give page after page, each without the items of earlier ones; never an empty one.

        Raises:
            UnexpectedResponseError: a page is not as documented, or, after all that could be reached was given, there may
                be more that cannot be reached.
            RentGPUError: any other of the client's errors.
        """
        given: set[int] = set()
        before: list[int] | None = None
        gave_up = False
        for _ in range(_MOST_WALKS):
            walk = ListTraversal(self._marker)
            async for page in self._walk(walk):
                new = tuple(item for item in page.items if item.id not in given)
                given.update(item.id for item in new)
                if new or (page.unreadable and before is None):
                    yield attrs.evolve(page, items=new)
            # In a list that is not sorted by id, a thing may have moved from where the walk was yet to come to where it had
            # been. So such a list is walked until it has been the same twice.
            gave_up = walk.gave_up
            if gave_up:
                settled = before is not None and sorted(walk.seen) == sorted(before)
            else:
                settled = walk.sorted_by_id or walk.seen == before
            if settled:
                break
            before = walk.seen
        if gave_up:
            raise self._unreachable()

    async def _walk(self, walk: ListTraversal) -> AsyncIterator[Page[Item]]:
        while not walk.done:
            try:
                # Where a marker's own item is listed again, pages of one item would never get past it.
                limit = max(2, self._sizes.limit(self._page_size))
                fetched, limit = await self._page_after(walk.marker, limit)
            except NotFoundError:
                if not walk.marker_refused():
                    raise
                continue
            items, unreadable, count = fetched.items, fetched.unreadable, fetched.unreadable_count
            if unreadable and not items and walk.empty:
                raise unreadable[0]
            new = walk.received([item.id for item in items], len(items) + count, limit)
            if new or unreadable:
                next_marker = None if walk.done else walk.marker
                yield Page(tuple(items[index] for index in new), next_marker, unreadable, unreadable_count=count)

    async def __aiter__(self) -> AsyncIterator[Item]:
        async for page in self.pages():
            for item in page.items:
                yield item

    async def _page_after(self, marker: int | str | None, limit: int) -> tuple[ListedItems[Item], int]:
        """Ask for a page; return it with the limit that the service took."""
        return await self._sizes.ask(limit, lambda limit: self._fetch(marker, limit))

    def _unreachable(self) -> UnexpectedResponseError:
        return UnexpectedResponseError(
            "the list could not be read to its end: markers lead nowhere", status=200, method="GET", path=self._path
        )


def _refuses_limit(error: InvalidRequestError) -> bool:
    if error.fields:
        return any("limit" in field.loc for field in error.fields)
    return error.status == 422 and "limit" in error.message.lower()
