"""Walking a list that is moved, cut and clamped: in no world does it end too early, or give an item twice."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu import Auth, InvalidField, InvalidRequestError, NotFoundError, UnexpectedResponseError
from netmind_rentgpu.wire.paging import AsyncPager, ListedItems, PageSize

DETAILS: dict[str, Any] = {"code": None, "message": "", "body": None, "request_id": None, "method": "GET", "path": "/"}


@dataclass
class World:
    """A service's list, and how it pages: what the contract leaves open."""

    ids: list[int]
    cap: int | None = None
    refuses: bool = False
    descending: bool = False
    inclusive: bool = False
    dead_marker: str = "by value"  # or: "empty", "first page", "404"
    unreadable: frozenset[int] = frozenset()
    order: list[int] | None = None  # of all ids; by id where it is None
    after_page: Callable[["World", list[int]], None] = lambda world, page: None
    asked: list[tuple[int | str | None, int]] = field(default_factory=list)

    async def fetch(self, marker: int | str | None, limit: int) -> ListedItems[Auth]:
        self.asked.append((marker, limit))
        if self.cap is not None and limit > self.cap:
            if self.refuses:
                rejected = InvalidField(("query", "limit"), "too large", "value_error")
                raise InvalidRequestError("", fields=(rejected,), status=422, **DETAILS)
            limit = self.cap
        page = self.page(None if marker is None else int(marker), limit)
        readable = [item for item in page if item not in self.unreadable]
        self.after_page(self, page)
        count = len(page) - len(readable)
        # One error stands for many.
        errors = (UnexpectedResponseError("", status=200, method="", path=""),) if count else ()
        return ListedItems([Auth(id=item) for item in readable], errors, count)

    def page(self, marker: int | None, limit: int) -> list[int]:
        ordered = sorted(self.ids, reverse=self.descending)
        if self.order is not None:
            ordered = [item for item in self.order if item in self.ids]
        if marker is None:
            return ordered[:limit]
        if marker not in ordered and self.dead_marker != "by value":
            if self.dead_marker == "404":
                raise NotFoundError("", status=404, **DETAILS)
            return [] if self.dead_marker == "empty" else ordered[:limit]
        if self.order is not None:
            place = self.order.index(marker)
            rest = [item for item in ordered if self.order.index(item) >= place + (not self.inclusive)]
        elif self.descending:
            rest = [item for item in ordered if item < marker or (self.inclusive and item == marker)]
        else:
            rest = [item for item in ordered if item > marker or (self.inclusive and item == marker)]
        return rest[:limit]

    def pager(
        self, *, marker: int | str | None = None, page_size: int | None = None, largest: int = 100
    ) -> AsyncPager[Auth]:
        return AsyncPager(self.fetch, path="/x", marker=marker, page_size=page_size, sizes=PageSize(largest))


async def ids_of(pager: AsyncPager[Auth]) -> list[int]:
    return [item.id async for item in pager]


WORLDS = [
    {"descending": descending, "inclusive": inclusive, "dead_marker": dead}
    for descending in (False, True)
    for inclusive in (False, True)
    for dead in ("by value", "empty", "first page", "404")
]


async def test_pages_of_one_item_get_past_an_inclusive_marker() -> None:
    service = World([1, 2, 3], inclusive=True)
    assert await ids_of(service.pager(page_size=1)) == [1, 2, 3]
    assert len(await World([1, 2, 3]).pager(page_size=1)) == 1


@pytest.mark.parametrize("world", WORLDS, ids=str)
async def test_unchanging_list_is_returned_whole_in_few_requests(world: dict[str, Any]) -> None:
    for count, cap in product([0, 1, 2, 9, 10, 11, 20, 25], [5, 10, None]):
        service = World(list(range(1, count + 1)), cap=cap, **world)
        assert sorted(await ids_of(service.pager(page_size=10))) == list(range(1, count + 1)), (count, cap)
        # A page each (an inclusive marker costs a place on each), the empty one, and what confirms it.
        size = min(cap or 10, 10) - world["inclusive"]
        assert len(service.asked) <= count // size + 4, (count, cap)


@pytest.mark.parametrize("world", WORLDS, ids=str)
async def test_iteration_reaches_every_item_while_the_caller_deletes_them(world: dict[str, Any]) -> None:
    for page_size in (2, 3, 10, 100):
        service = World(list(range(1, 61)), **world)
        given_out = []
        async for item in service.pager(page_size=page_size):
            given_out.append(item.id)
            service.ids.remove(item.id)
        assert sorted(given_out) == list(range(1, 61))
        assert service.ids == []


@pytest.mark.parametrize("world", WORLDS, ids=str)
async def test_walk_whose_markers_are_all_deleted_misses_no_living_item(world: dict[str, Any]) -> None:
    def kill_the_last(service: World, page: list[int]) -> None:
        if page and page[-1] in service.ids:
            service.ids.remove(page[-1])

    service = World(list(range(1, 101)), after_page=kill_the_last, **world)
    found = await ids_of(service.pager(page_size=10))
    assert len(found) == len(set(found))
    assert set(service.ids) <= set(found)


@st.composite
def moving_worlds(draw: st.DrawFn) -> tuple[World, set[int], int]:
    stable = draw(st.sets(st.integers(1, 400), max_size=40))
    passing = draw(st.sets(st.integers(1, 400), max_size=40)) - stable
    events = draw(st.lists(st.tuples(st.booleans(), st.sampled_from(sorted(passing) or [0])), max_size=60))
    remaining = iter(events)
    gone: set[int] = set()

    def move(service: World, page: list[int]) -> None:
        # Ids are not used again: what went does not come back.
        for appears, item in (event for event, _ in zip(remaining, range(3), strict=False)):
            if item and appears and item not in service.ids and item not in gone:
                service.ids.append(item)
            elif item and not appears and item in service.ids:
                service.ids.remove(item)
                gone.add(item)

    world = World(
        sorted(stable | draw(st.sets(st.sampled_from(sorted(passing) or [0]))) - {0}),
        cap=draw(st.sampled_from([None, 2, 3, 7])),
        refuses=draw(st.booleans()),
        descending=draw(st.booleans()),
        inclusive=draw(st.booleans()),
        dead_marker=draw(st.sampled_from(["by value", "empty", "first page", "404"])),
        after_page=move,
    )
    return world, stable, draw(st.integers(2, 12))


@given(moving_worlds())
def test_item_present_throughout_is_returned_once_while_others_change(drawn: tuple[World, set[int], int]) -> None:
    import anyio

    world, stable, page_size = drawn
    found = anyio.run(ids_of, world.pager(page_size=page_size))
    assert len(found) == len(set(found))
    assert stable <= set(found)
    assert len(world.asked) < 400


@st.composite
def reordered_worlds(draw: st.DrawFn) -> tuple[World, set[int], int]:
    """Draw a list in no order of ids, which is put into another order once, and loses things, at any time."""
    ids = list(range(1, draw(st.integers(1, 25)) + 1))
    stable = set(draw(st.lists(st.sampled_from(ids), unique=True)))
    first, second = draw(st.permutations(ids)), draw(st.permutations(ids))
    when = draw(st.integers(0, 12))
    lost = iter(draw(st.permutations(sorted(set(ids) - stable))))

    def move(service: World, page: list[int]) -> None:
        if len(service.asked) == when:
            service.order = second
        if len(service.asked) <= when and (gone := next(lost, None)) is not None:
            service.ids.remove(gone)

    world = World(
        ids,
        cap=draw(st.sampled_from([None, 3, 7])),
        inclusive=draw(st.booleans()),
        dead_marker=draw(st.sampled_from(["by value", "empty", "first page", "404"])),
        order=first,
        after_page=move,
    )
    return world, stable, draw(st.integers(2, 12))


@given(reordered_worlds())
def test_unsorted_list_loses_no_item_or_raises(drawn: tuple[World, set[int], int]) -> None:
    import anyio

    world, stable, page_size = drawn
    found: list[int] = []

    async def walk() -> None:
        async for item in world.pager(page_size=page_size):
            found.append(item.id)

    told = False
    try:
        anyio.run(walk)
    except UnexpectedResponseError:
        told = True
    assert len(found) == len(set(found))
    # What looked sorted by id all the way cannot be told from a list that is, and is walked once.
    looked_sorted = found in (sorted(found), sorted(found, reverse=True))
    assert told or looked_sorted or stable <= set(found)
    assert len(world.asked) < 400


async def test_sorted_list_is_walked_once_and_an_unsorted_list_until_it_is_stable() -> None:
    sorted_one, other = World(list(range(1, 31))), World(list(range(1, 31)), order=[*range(16, 31), *range(1, 16)])
    assert await ids_of(sorted_one.pager(page_size=10)) == list(range(1, 31))
    assert await ids_of(other.pager(page_size=10)) == other.order
    assert len(other.asked) == 2 * len(sorted_one.asked)


async def test_awaited_pager_is_its_first_page() -> None:
    service = World(list(range(1, 26)))
    page = await service.pager(page_size=10)
    assert [item.id for item in page] == list(range(1, 11))
    assert page[2].id == 3
    assert "async for" in repr(service.pager())
    assert (len(page), page.next_marker, page.unreadable) == (10, 10, ())
    rest = await service.pager(page_size=10, marker=page.next_marker).first_page()
    assert [item.id for item in rest.items] == list(range(11, 21))
    assert (await World([]).pager()).next_marker is None


async def test_pages_are_iterated_and_resumed_from_a_marker() -> None:
    service = World(list(range(1, 26)))
    pages = [page async for page in service.pager(page_size=10).pages()]
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [page.next_marker for page in pages] == [10, 20, None]
    assert await ids_of(service.pager(page_size=10, marker=20)) == [21, 22, 23, 24, 25]
    assert await ids_of(service.pager(page_size=10, marker="20")) == [21, 22, 23, 24, 25]
    assert await ids_of(service.pager(page_size=10, marker=25)) == []


async def test_unknown_marker_of_the_caller_raises() -> None:
    with pytest.raises(NotFoundError):
        await ids_of(World([1, 2, 3], dead_marker="404").pager(marker=99))


async def test_resumed_walk_stays_behind_its_marker() -> None:
    def delete_all(service: World, page: list[int]) -> None:
        service.ids = [item for item in service.ids if item < 10]

    service = World(list(range(1, 21)), dead_marker="empty", after_page=delete_all)
    assert await ids_of(service.pager(page_size=5, marker=10)) == [11, 12, 13, 14, 15]


async def test_refused_limit_is_lowered_and_remembered() -> None:
    service = World(list(range(1, 31)), cap=10, refuses=True)
    sizes = PageSize(100)
    pager = AsyncPager(service.fetch, path="/x", marker=None, page_size=None, sizes=sizes)
    assert len(await ids_of(pager)) == 30
    assert [limit for _, limit in service.asked[:4]] == [100, 50, 20, 10]
    service.asked.clear()
    assert len(await ids_of(pager)) == 30
    assert {limit for _, limit in service.asked} == {10}


async def test_limit_lowered_during_a_walk_is_not_taken_for_the_end() -> None:
    service = World(list(range(1, 101)))

    def tighten(world: World, page: list[int]) -> None:
        world.cap, world.refuses = 10, True

    service.after_page = tighten
    assert len(await ids_of(service.pager(page_size=50))) == 100


async def test_limit_refused_at_every_size_raises() -> None:
    with pytest.raises(InvalidRequestError):
        await ids_of(World([1], cap=0, refuses=True).pager())


async def test_refusal_of_another_field_raises_at_once() -> None:
    asked: list[int] = []

    async def fetch(marker: object, limit: int) -> Any:
        asked.append(limit)
        raise InvalidRequestError("", fields=(InvalidField(("query", "marker"), "", ""),), status=422, **DETAILS)

    with pytest.raises(InvalidRequestError):
        await ids_of(AsyncPager(fetch, path="/x", marker=None, page_size=None, sizes=PageSize(100)))
    assert asked == [100]


async def test_limit_refused_in_plain_text_is_lowered() -> None:
    asked: list[int] = []

    async def fetch(marker: object, limit: int) -> Any:
        asked.append(limit)
        if limit > 10:
            details = {**DETAILS, "message": "Limit must not exceed 10"}
            raise InvalidRequestError("", fields=(), status=422, **details)
        return ListedItems([], (), 0)

    assert await ids_of(AsyncPager(fetch, path="/x", marker=None, page_size=None, sizes=PageSize(100))) == []
    assert asked[-1] == 10


async def test_unreadable_items_count_for_the_length_of_a_page() -> None:
    service = World(list(range(1, 31)), unreadable=frozenset({3, 10, 20, 30}))
    pages = [page async for page in service.pager(page_size=10).pages()]
    assert [item.id for page in pages for item in page] == [n for n in range(1, 31) if n not in (3, 10, 20, 30)]
    assert sum(page.unreadable_count for page in pages) >= 4


async def test_list_without_a_readable_item_raises_unexpected_response_error() -> None:
    service = World([1, 2, 3], unreadable=frozenset({1, 2, 3}))
    with pytest.raises(UnexpectedResponseError):
        await ids_of(service.pager())
    with pytest.raises(UnexpectedResponseError):
        await service.pager()


@pytest.mark.parametrize("answers", [[[1, 2, 3]], [[1, 2], [2, 1]]], ids=str)
async def test_walk_of_a_service_that_ignores_markers_ends(answers: list[list[int]]) -> None:
    asked = []

    async def fetch(marker: object, limit: int) -> Any:
        asked.append(marker)
        return ListedItems([Auth(id=item) for item in answers[len(asked) % len(answers)]], (), 0)

    found = []
    with pytest.raises(UnexpectedResponseError, match="could not be read to its end"):
        async for item in AsyncPager(fetch, path="/x", marker=None, page_size=None, sizes=PageSize(100)):
            found.append(item.id)
    assert sorted(found) == sorted(answers[0])
    assert len(asked) < 60


async def test_smaller_pages_of_another_walk_are_not_taken_for_the_end() -> None:
    service = World(list(range(1, 1001)))
    sizes = PageSize(100)

    def pager() -> AsyncPager[Auth]:
        return AsyncPager(service.fetch, path="/x", marker=None, page_size=None, sizes=sizes)

    walk = aiter(pager())
    found = [(await anext(walk)).id for _ in range(100)]
    service.cap, service.refuses = 50, True
    assert len(await pager()) == 50
    found += [item.id async for item in walk]
    assert found == list(range(1, 1001))


async def test_rate_limit_answered_with_400_lowers_no_limit() -> None:
    service = World([1, 2, 3])
    sizes = PageSize(100)

    async def fetch(marker: object, limit: int) -> Any:
        details = {**DETAILS, "message": "rate limit reached, slow down"}
        raise InvalidRequestError("", fields=(), status=400, **details)

    with pytest.raises(InvalidRequestError):
        await AsyncPager(fetch, path="/x", marker=None, page_size=None, sizes=sizes)
    assert await ids_of(AsyncPager(service.fetch, path="/x", marker=None, page_size=None, sizes=sizes)) == [1, 2, 3]
    assert {limit for _, limit in service.asked} == {100}


async def test_limit_refused_at_every_size_is_not_remembered() -> None:
    sizes = PageSize(100)
    refusing = World([1], cap=0, refuses=True)
    with pytest.raises(InvalidRequestError):
        await AsyncPager(refusing.fetch, path="/x", marker=None, page_size=None, sizes=sizes)
    assert sizes.limit(None) == 100


async def test_page_size_may_exceed_the_usual_size() -> None:
    service = World([1])
    await service.pager(page_size=500)
    assert service.asked == [(None, 500)]


@pytest.mark.parametrize(
    "service",
    [
        World(list(range(1, 21)), cap=2, inclusive=True, unreadable=frozenset({5})),
        World(list(range(1, 31)), cap=10, unreadable=frozenset(range(11, 21))),
    ],
    ids=["behind an inclusive marker", "a whole page"],
)
async def test_impassable_marker_raises_after_every_reachable_item(service: World) -> None:
    found = []
    with pytest.raises(UnexpectedResponseError, match="could not be read to its end"):
        async for item in service.pager():
            found.append(item.id)
    assert found == [item for item in range(1, len(found) + 1) if item not in service.unreadable]
    assert len(found) > 2


async def test_item_behind_many_deleted_items_is_found() -> None:
    def kill_all_but_one(service: World, page: list[int]) -> None:
        service.ids = [5]

    service = World([1, 2, 3, 5], dead_marker="empty", cap=2, after_page=kill_all_but_one)
    assert await ids_of(service.pager()) == [1, 2, 5]
    lone = World([1, 2, 3, 5], dead_marker="empty", descending=True, after_page=kill_all_but_one)
    assert await ids_of(lone.pager()) == [5, 3, 2, 1]
    assert len(lone.asked) < 10
