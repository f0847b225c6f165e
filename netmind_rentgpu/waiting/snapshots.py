"""What was last seen of the containers that somebody asks about, and who is to be told. Pure: it is given what came in.

A tick costs what changed: a page that is as it was is not parsed, a container that is as it was is not built, and only who
asks about a container is told of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs

from netmind_rentgpu.models import Container

__all__ = ["KnownPage", "Seat", "Snapshots"]


@attrs.define(eq=False)
class Seat:
    """One who asks about containers.

    Attributes:
        ids: which, as long as it asks about them; None for all there are.
        news: what it has not taken in yet, by id, in the order in which it came: the newest state, None for gone.
        base: for one who asks about all: how they were when it began. None until all have been seen.
        wake: called when there is news.
    """

    ids: set[int] | None
    news: dict[int, Container | None] = attrs.field(factory=dict[int, Container | None])
    base: dict[int, Container] | None = None
    wake: Callable[[], object] | None = None

    def tell(self, container_id: int, container: Container | None) -> None:
        """Let it know of a state."""
        self.news[container_id] = container
        if self.wake is not None:
            self.wake()

    def taken(self) -> dict[int, Container | None]:
        """Take the news in."""
        news, self.news = self.news, {}
        return news


@attrs.frozen
class KnownPage:
    """A page of the list, as it was last seen.

    Attributes:
        body: the answer's, to compare the next one with.
        ids: of the items that could be read, in order.
        count: how many items there are.
    """

    body: bytes
    ids: tuple[int, ...]
    count: int


@attrs.frozen
class _Entry:
    raw: Any
    container: Container


class Snapshots:
    """The last state of each container that somebody asks about.

    Times are of any clock that does not go back.

    Attributes:
        changed: something was new since this was last set to False.
    """

    def __init__(self, read: Callable[[Any], Container], *, lag: float) -> None:
        """Begin with nothing.

        Args:
            read: builds a container from its JSON.
            lag: for how many seconds a list may still show a container that is gone.
        """
        self.read = read
        self._lag = lag
        self._entries: dict[int, _Entry] = {}
        self._askers: dict[int, list[Seat]] = {}
        self._watchers: list[Seat] = []
        # First looks that are owed: whoever has just sat down is told how things are, even where nothing changes.
        self._owed: dict[int, list[Seat]] = {}
        # When a call of our own changed a container: what was asked for before says nothing about it.
        self._touched: dict[int, float] = {}
        # When it was said that one does not exist. An id is not given twice, so a list that shows it once more only lags.
        self._gone: dict[int, float] = {}
        self.changed: bool = False

    @property
    def wanted(self) -> set[int]:
        """The ids that somebody asks about by name."""
        return set(self._askers)

    @property
    def known(self) -> set[int]:
        """The ids to be accounted for: those asked about by name, and, where somebody asks about all, those seen."""
        return self._askers.keys() | self._entries.keys()

    @property
    def all_wanted(self) -> bool:
        """Somebody asks about all containers."""
        return bool(self._watchers)

    @property
    def nobody(self) -> bool:
        """Nobody asks about anything."""
        return not self._askers and not self._watchers

    def join(self, seat: Seat, *, fresh: bool) -> set[int]:
        """Let one ask; return the ids that have to be looked at for it.

        Args:
            fresh: what is known is new enough to be told.
        """
        if seat.ids is None:
            self._watchers.append(seat)
            return set()
        owed: set[int] = set()
        for container_id in seat.ids:
            self._askers.setdefault(container_id, []).append(seat)
            entry = self._entries.get(container_id)
            if entry is not None and fresh and container_id not in self._touched:
                seat.tell(container_id, entry.container)
            else:
                self._owed.setdefault(container_id, []).append(seat)
                owed.add(container_id)
        return owed

    def leave(self, seat: Seat, ids: Iterable[int] | None = None) -> list[int]:
        """Let one ask no more, or no more about some; return what nobody asks about now, which is forgotten."""
        if seat.ids is None:
            if seat in self._watchers:
                self._watchers.remove(seat)
            candidates: Iterable[int] = self._entries.keys() - self._askers.keys()
        else:
            candidates = tuple(seat.ids if ids is None else ids)
            for container_id in candidates:
                seat.ids.discard(container_id)
                seat.news.pop(container_id, None)
                _unseat(self._owed, container_id, seat)
                _unseat(self._askers, container_id, seat)
        if self._watchers:
            return []
        forgotten = [one for one in candidates if one not in self._askers]
        for container_id in forgotten:
            self._entries.pop(container_id, None)
            self._touched.pop(container_id, None)
        return forgotten

    def touch(self, container_id: int, now: float) -> None:
        """Take in that a call of our own has just changed a container, or may have."""
        if container_id in self._askers or container_id in self._entries:
            self._touched[container_id] = now

    def needs(self, ids: Iterable[int]) -> bool:
        """Tell whether a page with these ids has to be read even if it is as it was."""
        return bool(self._owed or self._touched) and not (self._owed.keys() | self._touched.keys()).isdisjoint(ids)

    def take(self, container_id: int, raw: Any, asked: float, *, listed: bool) -> bool:
        """Take in how a container is; return whether that counts.

        Args:
            raw: its JSON.
            asked: when the request was sent.
            listed: it stood in the list, which may lag behind.
        """
        entry = self._entries.get(container_id)
        if entry is not None and not self._touched and not self._owed and entry.raw == raw:
            return True
        if not self._counts(container_id, asked) or (listed and container_id in self._gone):
            return False
        askers = self._askers.get(container_id)
        if entry is not None and entry.raw == raw:
            for seat in self._owed.pop(container_id, ()):
                seat.tell(container_id, entry.container)
        elif askers is not None or self._watchers:
            # What is seen for the first time is news, but no change, unless all there was had been seen before.
            self.changed = self.changed or entry is not None or any(seat.base is not None for seat in self._watchers)
            entry = _Entry(raw, self.read(raw))
            self._entries[container_id] = entry
            self._owed.pop(container_id, None)
            self._tell(askers or (), container_id, entry.container)
        return True

    def take_gone(self, container_id: int, asked: float) -> bool:
        """Take in that a container does not exist; return whether that counts."""
        if not self._counts(container_id, asked):
            return False
        self.changed = True
        self._gone[container_id] = asked
        while asked - self._gone[oldest := next(iter(self._gone))] > self._lag:
            del self._gone[oldest]
        self._entries.pop(container_id, None)
        self._owed.pop(container_id, None)
        self._tell(self._askers.pop(container_id, ()), container_id, None)
        return True

    def take_end(self, began: Iterable[Seat]) -> None:
        """Take in that all containers have been looked at, for those who had begun to ask before that began."""
        for seat in began:
            if seat.base is None:
                seat.base = {one: entry.container for one, entry in self._entries.items()}

    def waiting_for_base(self) -> list[Seat]:
        """Return those who ask about all and have not seen all yet."""
        return [seat for seat in self._watchers if seat.base is None]

    def _counts(self, container_id: int, asked: float) -> bool:
        touched = self._touched.get(container_id)
        if touched is not None:
            if asked < touched:
                return False
            del self._touched[container_id]
        return True

    def _tell(self, askers: Iterable[Seat], container_id: int, container: Container | None) -> None:
        for seat in askers:
            seat.tell(container_id, container)
        for seat in self._watchers:
            if seat.base is not None:
                seat.tell(container_id, container)


def _unseat(seats: dict[int, list[Seat]], container_id: int, seat: Seat) -> None:
    those = seats.get(container_id, [])
    if seat in those:
        those.remove(seat)
        if not those:
            del seats[container_id]
