"""One walk over a list of unknown length, as a state machine: each page that comes decides what to ask for next. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import pairwise
from operator import lt
from typing import Final

import attrs

__all__ = ["ListEnd", "ListTraversal", "TraversalPhase"]

_MOST_PAGES_WITHOUT_NEWS: Final = 24
_MOST_CONTRADICTIONS: Final = 10


class TraversalPhase(Enum):
    """The phases of a walk."""

    FORWARD = "each page is asked for after the last item of the page before"
    PROBING_BACK = (
        "a page brought nothing new; the walk asks after earlier items, to find out whether the list has ended"
    )
    DONE = "there is nothing more to ask for"


class ListEnd(Enum):
    """The result of a walk."""

    COMPLETE = "the walk has seen the end of the list, and could read everything before it"
    INCOMPLETE = "the walk has reached an end, and may have missed items"
    UNREACHABLE = "the list may hold more items, which no marker leads to"


@attrs.frozen
class _Stall:
    """The facts about pages without new items, since the last new item.

    Attributes:
        dead_end: the marker that the walk asks back from.
        steps_back: how many items before the dead end the walk asks now; 0 while it asks after the last item again.
        live_marker: the last marker whose item was found again.
        empty_after: the marker after which the service sent an empty page.
    """

    dead_end: int | str | None = None
    steps_back: int = 0
    live_marker: int | None = None
    empty_after: int | str | None = None


class SeenItems:
    """The ids that a walk has seen, in the order in which they came, and the order by which the list may be sorted."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._position: dict[int, int] = {}
        self._possible_orders = {"ascending", "descending"}

    def __contains__(self, item: int) -> bool:
        return item in self._position

    def add(self, ids: Sequence[int]) -> list[int]:
        """Add a page's ids; return the indexes in `ids` of the new ones."""
        self._learn_order(ids)
        known, position = self.ids, self._position
        if position.keys().isdisjoint(ids) and len(set(ids)) == len(ids):
            # The usual case, handled apart because this is quicker.
            position.update(zip(ids, range(len(known), len(known) + len(ids)), strict=True))
            known.extend(ids)
            return list(range(len(ids)))
        new: list[int] = []
        for index, item in enumerate(ids):
            if item not in position:
                position[item] = len(known)
                known.append(item)
                new.append(index)
        return new

    def _learn_order(self, ids: Sequence[int]) -> None:
        """Drop each order by id, ascending or descending, that a page contradicts."""
        following = ids[1:]
        if not all(map(lt, ids, following)):
            self._possible_orders.discard("ascending")
        if any(map(lt, ids, following)):
            self._possible_orders.discard("descending")

    @property
    def are_sorted(self) -> bool:
        """True if the items came sorted by id, in either direction."""
        return len(self.ids) < 2 or any(
            all((earlier < later) is (order == "ascending") for earlier, later in pairwise(self.ids))
            for order in self._possible_orders
        )

    def follow(self, marker: int | str | None, ids: Sequence[int]) -> bool:
        """Return True if a page of known ids holds the items after a marker, and not the list from its start again."""
        if not isinstance(marker, int):
            return True
        if len(self._possible_orders) == 1:
            return min(ids) >= marker if "ascending" in self._possible_orders else max(ids) <= marker
        after = self._position.get(marker, -1)
        return all(self._position[item] >= after for item in ids)

    def before(self, marker: int | str | None, steps: int) -> int | None:
        """Return the id so many items before another; None if the list has no such item."""
        ids = self.ids
        if len(self._possible_orders) == 1:
            # New items may have come out of order.
            ids = sorted(ids, reverse="descending" in self._possible_orders)
        position = ids.index(marker) - steps if isinstance(marker, int) else -1
        return ids[position] if position >= 0 else None


class ListTraversal:
    """One walk over a list of unknown length, which may change meanwhile, and whose markers may become invalid.

    A page ends the list if it is shorter than an earlier page of this walk. (It is not compared with the limit, because the
    service may send fewer items than were asked for.) A page without new items, or a marker that the service does not know,
    may mean the end, or only that the marker's item was deleted. Then the walk asks with the marker of an earlier item,
    further back each time, and at last from the start. The list has ended if the walk finds the item again after which
    nothing came, and still nothing new follows it.

    Attributes:
        marker: the marker to ask with next.
        phase: the present phase.
        end: the result; None until the walk is done.
        seen: the items seen so far.
    """

    def __init__(self, marker: int | str | None = None) -> None:
        self.marker = marker
        self.phase: TraversalPhase = TraversalPhase.FORWARD
        self.end: ListEnd | None = None
        self.seen: SeenItems = SeenItems()
        self._start = marker
        self._stall = _Stall()
        # The limit of the pages that are compared, and the length of the longest of these.
        self._limit = self._longest = 0
        self._pages_with_news = self._pages_without_news = self._contradictions = 0
        self._has_unreadable = False

    @property
    def done(self) -> bool:
        """True once there is nothing more to ask for."""
        return self.phase is TraversalPhase.DONE

    @property
    def complete(self) -> bool:
        """True if the walk has seen the end, and could read everything before it."""
        return self.end is ListEnd.COMPLETE

    def received(self, ids: Sequence[int], count: int, limit: int) -> list[int]:
        """Record the page that `marker` led to; return the indexes in `ids` of the new items.

        Args:
            ids: the ids of the items that could be read, in order.
            count: the number of all items of the page.
            limit: the number of items that were asked for. The walk does not compare pages with different limits.
        """
        new = self.seen.add(ids)
        if limit != self._limit:
            self._limit, self._longest = limit, 0
        is_short = count < self._longest
        self._longest = max(self._longest, count)
        self._has_unreadable = self._has_unreadable or count > len(ids)
        if new:
            self._pages_with_news += 1
            self._pages_without_news, self._stall = 0, _Stall()
            self.phase = TraversalPhase.FORWARD
        else:
            self._pages_without_news += 1
        if count and is_short:
            self._finish(ListEnd.COMPLETE)
        elif not new and count > len(ids):
            # The walk cannot go on, because the new items of this page have no readable id to ask with.
            self._finish(ListEnd.UNREACHABLE)
        elif new:
            self.marker = ids[-1]
        else:
            self._nothing_new(ids)
        return new

    def marker_refused(self) -> bool:
        """Record that the service does not know `marker`; return False if it is the marker that the caller started from."""
        if not self.seen.ids:
            return False
        self.received((), 0, self._limit)
        return True

    def _finish(self, end: ListEnd) -> None:
        self.phase = TraversalPhase.DONE
        self.end = ListEnd.INCOMPLETE if end is ListEnd.COMPLETE and self._has_unreadable else end

    def _nothing_new(self, ids: Sequence[int]) -> None:
        """Decide after a page that held nothing new, or nothing at all."""
        stall = self._stall
        if not ids and self.marker is None:
            self._finish(ListEnd.COMPLETE)
        elif (
            self._pages_without_news > self._pages_with_news + _MOST_PAGES_WITHOUT_NEWS
            or self._contradictions > _MOST_CONTRADICTIONS
        ):
            # The service ignores markers, or reorders its list faster than the walk can read it.
            self._finish(ListEnd.UNREACHABLE)
        elif ids and self.seen.follow(self.marker, ids):
            if ids[-1] in (self.marker, stall.empty_after):
                # The item is still there, so it was there when nothing came after it.
                self._finish(ListEnd.COMPLETE)
            else:
                self.phase, self.marker = TraversalPhase.FORWARD, ids[-1]
                self._stall = attrs.evolve(stall, live_marker=ids[-1], steps_back=0)
        else:
            if not ids and self.phase is TraversalPhase.FORWARD:
                self._stall = attrs.evolve(stall, empty_after=self.marker)
            elif ids and self.marker == stall.live_marker:
                self._contradictions += 1
            self._step_back()

    def _step_back(self) -> None:
        """Set the marker to an earlier item: to the one before, then a page back, then four times as far each time."""
        if self.marker == self._start:
            # The walk knows no item before the marker that the caller started from.
            self._finish(ListEnd.INCOMPLETE)
            return
        stall = self._stall
        if self.phase is TraversalPhase.FORWARD:
            stall = attrs.evolve(stall, dead_end=self.marker, steps_back=1)
        else:
            stall = attrs.evolve(stall, steps_back=max(self._longest, stall.steps_back * 4))
        self.phase, self._stall = TraversalPhase.PROBING_BACK, stall
        earlier = self.seen.before(stall.dead_end, stall.steps_back)
        self.marker = self._start if earlier is None else earlier
