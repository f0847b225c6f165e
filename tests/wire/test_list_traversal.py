"""One walk over a list, page by page, without a service: its phases, its end, and what it asks for next."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.wire.list_traversal import ListEnd, ListTraversal, TraversalPhase

FORWARD, BACK, DONE = TraversalPhase.FORWARD, TraversalPhase.PROBING_BACK, TraversalPhase.DONE


@pytest.mark.parametrize(
    ("pages", "phase", "marker", "end"),
    [
        # Each page is a list of ids; None is a marker that the service does not know.
        ([], FORWARD, None, None),
        ([[]], DONE, None, ListEnd.COMPLETE),
        ([[1, 2]], FORWARD, 2, None),
        ([[1, 2], [3]], DONE, 2, ListEnd.COMPLETE),
        # Nothing came: the list has ended, or item 2 is gone.
        ([[1, 2], []], BACK, 1, None),
        ([[1, 2], None], BACK, 1, None),
        ([[1, 2], [], [2]], DONE, 1, ListEnd.COMPLETE),
        ([[1, 2], [], [3, 4]], FORWARD, 4, None),
        # Item 1 is gone, too: from the start again.
        ([[1, 2], [], []], BACK, None, None),
        ([[1, 2], [], [], [3, 4]], FORWARD, 4, None),
        # The whole list went away.
        ([[1, 2], [], [], []], DONE, None, ListEnd.COMPLETE),
        # A page of known items goes on after the last of them, once.
        ([[1, 2], [3, 4], [], [4]], DONE, 3, ListEnd.COMPLETE),
    ],
)
def test_phase_follows_from_the_pages(
    pages: Sequence[Sequence[int] | None], phase: TraversalPhase, marker: int | None, end: ListEnd | None
) -> None:
    walk = ListTraversal()
    for page in pages:
        assert not walk.done
        if page is None:
            assert walk.marker_refused()
        else:
            walk.received(page, len(page), 10)
    assert (walk.phase, walk.marker, walk.end) == (phase, marker, end)


def test_marker_of_the_caller_that_is_unknown_is_refused() -> None:
    assert not ListTraversal(7).marker_refused()


def test_walk_from_a_marker_does_not_go_back_beyond_it() -> None:
    walk = ListTraversal(7)
    walk.received([8, 9], 2, 10)
    for _ in range(3):
        if not walk.done:
            walk.received([], 0, 10)
    assert walk.end is ListEnd.INCOMPLETE


pages = st.lists(st.lists(st.integers(1, 12), max_size=4), max_size=60)


@given(pages=pages, unreadable=st.lists(st.booleans(), min_size=60, max_size=60), start=st.none() | st.integers(1, 12))
def test_walk_ends_whatever_the_service_sends_and_gives_no_item_twice(
    pages: list[list[int]], unreadable: list[bool], start: int | None
) -> None:
    walk = ListTraversal(start)
    given: list[int] = []
    for ids, is_unreadable in zip(pages, unreadable, strict=False):
        if walk.done:
            break
        asked, before = walk.marker, list(given)
        given += [ids[index] for index in walk.received(ids, len(ids) + is_unreadable, 10)]
        assert walk.seen.ids == given
        # It asks with a marker that it has seen, or from where it began.
        assert walk.marker in (start, asked) or walk.marker in given
        assert (walk.phase is DONE) == (walk.end is not None)
        if given != before and not walk.done:
            assert (walk.phase, walk.marker) == (FORWARD, ids[-1])
    assert len(set(given)) == len(given)
    for _ in range(200):
        if walk.done:
            return
        walk.received([], 0, 10)
    raise AssertionError("the walk has no end")


def test_walk_with_an_unreadable_item_is_incomplete() -> None:
    walk = ListTraversal()
    walk.received([1, 2], 3, 10)
    walk.received([4], 1, 10)
    assert (walk.done, walk.complete) == (True, False)
    walk = ListTraversal()
    walk.received([1, 2], 2, 10)
    walk.received([], 2, 10)
    assert (walk.done, walk.complete) == (True, False)


def walk(pages: Sequence[Sequence[int]]) -> ListTraversal:
    walk = ListTraversal()
    for page in pages:
        assert not walk.done
        walk.received(page, len(page), 10)
    return walk


def test_walk_reports_whether_it_saw_the_end() -> None:
    assert (walk([[]]).done, walk([[]]).complete) == (True, True)
    assert walk([[1, 2], [3]]).complete
    confirmed = walk([[1, 2], []])
    assert (confirmed.done, confirmed.marker) == (False, 1)
    confirmed.received([2], 1, 10)
    assert confirmed.complete
    ignoring = ListTraversal()
    while not ignoring.done:
        ignoring.received([1, 2], 2, 10)
    assert (ignoring.done, ignoring.complete) == (True, False)


def test_iteration_keeps_one_page_in_memory() -> None:
    long = ListTraversal()
    for start in range(0, 10_000, 100):
        long.received(range(start, start + 100), 100, 100)
    assert long.marker == 9_999
