"""Lists that come in pages: one object to await (a page) and to iterate (every item of every page).

`list_traversal` decides what to ask for next, and when the list has ended. `AsyncPager` sends the requests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, Final, Generic, Protocol, TypeVar

import attrs

from netmind_rentgpu.errors import InvalidRequestError, NotFoundError, UnexpectedResponseError
from netmind_rentgpu.tables import html_table
from netmind_rentgpu.wire.list_traversal import ListEnd, ListTraversal

__all__ = ["AsyncPager", "ListedItems", "Page", "PageSize"]


_MOST_WALKS: Final = 5


class Identified(Protocol):
    """An item of a list, which has an id."""

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
        next_marker: the `marker` of the next page; None at the end of the list (a request with None would begin the list
            again). The service does not say how long a list is, so even the last page may have a marker, which leads to an
            empty page. `pages()` handles all this.
        unreadable: the errors of the items that could not be read, 20 at most.
        unreadable_count: the number of items that could not be read.
    """

    items: tuple[Item, ...]
    next_marker: int | str | None = None
    unreadable: tuple[UnexpectedResponseError, ...] = ()
    unreadable_count: int = attrs.field(
        default=attrs.Factory(lambda page: len(page.unreadable), takes_self=True), kw_only=True
    )

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def _repr_html_(self) -> str:
        return html_table(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]


@attrs.frozen
class ListedItems(Generic[Listed]):
    """The items of an answer that is a list.

    Attributes:
        items: the items that could be read, in the service's order.
        unreadable: the errors of the first of the other items, 20 at most.
        unreadable_count: the number of all other items.
    """

    items: list[Listed]
    unreadable: tuple[UnexpectedResponseError, ...]
    unreadable_count: int


Fetch = Callable[[int | str | None, int], Awaitable[ListedItems[Item]]]
"""A function that asks for one page: (marker, limit) -> its items."""


class PageSize:
    """The number of items to ask a list for: as many as the caller wants, unless the service has refused so many."""

    STEPS = (100, 50, 20, 10, 5, 2)

    def __init__(self, usual: int) -> None:
        self._usual = usual
        self._allowed: int | None = None

    def limit(self, wanted: int | None) -> int:
        """Return the number of items to ask for."""
        limit = self._usual if wanted is None else wanted
        return limit if self._allowed is None else min(limit, self._allowed)

    async def ask(self, limit: int, ask: Callable[[int], Awaitable[Answered]]) -> tuple[Answered, int]:
        """Ask for a page, with a smaller limit if the service refuses this one; return the answer and the accepted limit."""
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
    """A list on the service. Await it for its first page, or iterate it for every item.

    The pager holds one page at a time. It yields no item twice, although items may move in the list meanwhile. If the list
    turns out not to be sorted by id, the pager walks over it until two walks agree, five times at most, because one walk may
    miss an item that moves.
    """

    def __init__(
        self, *fetches: Fetch[Item], path: str, marker: int | str | None, page_size: int | None, sizes: PageSize
    ) -> None:
        """Initialize.

        Args:
            fetches: a function for each of the lists, which follow each other.
        """
        self._fetches = fetches
        self._path = path
        self._marker = marker
        self._page_size = page_size
        self._sizes = sizes

    def __repr__(self) -> str:
        return "<AsyncPager: await it for a page, iterate it with 'async for' for every item>"

    def __await__(self) -> Generator[Any, None, Page[Item]]:
        return self.first_page().__await__()

    async def first_page(self) -> Page[Item]:
        """Return the first page, or the one after `marker`; of several lists, the first page that is not empty."""
        for fetch in self._fetches:
            fetched, _ = await self._page_after(fetch, self._marker, self._sizes.limit(self._page_size))
            items = fetched.items
            if fetched.unreadable and not items:
                raise fetched.unreadable[0]
            if items:
                next_marker = items[-1].id
                return Page(tuple(items), next_marker, fetched.unreadable, unreadable_count=fetched.unreadable_count)
        return Page(())

    async def pages(self) -> AsyncIterator[Page[Item]]:
        """Yield page after page, each without the items of earlier pages, and no empty page.

        Raises:
            UnexpectedResponseError: a page is not as documented; or, after all items that could be reached, the list may
                hold more that cannot be reached.
            RentGPUError: any other of the client's errors.
        """
        given: set[int] = set()
        for fetch in self._fetches:
            async for page in self._pages_of(fetch, given):
                yield page

    async def _pages_of(self, fetch: Fetch[Item], given: set[int]) -> AsyncIterator[Page[Item]]:
        """Yield the pages of one list, without the items in `given`, and add theirs to it."""
        before: list[int] | None = None
        gave_up = False
        for _ in range(_MOST_WALKS):
            walk = ListTraversal(self._marker)
            async for page in self._walk(fetch, walk):
                new = tuple(item for item in page.items if item.id not in given)
                given.update(item.id for item in new)
                if new or (page.unreadable and before is None):
                    yield attrs.evolve(page, items=new)
            # Walk over a list that is not sorted by id until two walks agree, because an item may move from ahead of a walk
            # to behind it, and be missed.
            seen, gave_up = walk.seen.ids, walk.end is ListEnd.UNREACHABLE
            if gave_up:
                settled = before is not None and sorted(seen) == sorted(before)
            else:
                settled = walk.seen.are_sorted or seen == before
            if settled:
                break
            before = seen
        if gave_up:
            raise self._unreachable()

    async def _walk(self, fetch: Fetch[Item], walk: ListTraversal) -> AsyncIterator[Page[Item]]:
        while not walk.done:
            try:
                # At least 2: if the service lists a marker's own item again, pages of one item would hold nothing else.
                limit = max(2, self._sizes.limit(self._page_size))
                fetched, limit = await self._page_after(fetch, walk.marker, limit)
            except NotFoundError:
                if not walk.marker_refused():
                    raise
                continue
            items, unreadable, count = fetched.items, fetched.unreadable, fetched.unreadable_count
            if unreadable and not items and not walk.seen.ids:
                raise unreadable[0]
            new = walk.received([item.id for item in items], len(items) + count, limit)
            if new or unreadable:
                next_marker = None if walk.done else walk.marker
                yield Page(tuple(items[index] for index in new), next_marker, unreadable, unreadable_count=count)

    async def __aiter__(self) -> AsyncIterator[Item]:
        async for page in self.pages():
            for item in page.items:
                yield item

    async def _page_after(
        self, fetch: Fetch[Item], marker: int | str | None, limit: int
    ) -> tuple[ListedItems[Item], int]:
        """Ask for a page; return it with the limit that the service accepted."""
        return await self._sizes.ask(limit, lambda limit: fetch(marker, limit))

    def _unreachable(self) -> UnexpectedResponseError:
        return UnexpectedResponseError(
            "the list could not be read to its end: the service's markers lead to no further items",
            status=200,
            method="GET",
            path=self._path,
        )


def _refuses_limit(error: InvalidRequestError) -> bool:
    if error.fields:
        return any("limit" in field.loc for field in error.fields)
    return error.status == 422 and "limit" in error.message.lower()
