"""What was last seen of the containers that somebody asks about, and who is to be told. Pure: it is given what came in.

A tick costs what changed: a page that is as it was is not parsed, a container that is as it was is not built, and only who
asks about a container is told of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import repeat
from operator import is_
from typing import Any

import attrs

from netmind_rentgpu.models import Container

__all__ = ["KnownPage", "Snapshots", "Subscription"]


@attrs.define(eq=False)
class Subscription:
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


@attrs.define(eq=False)
class KnownPage:
    """A page of the list, as it was last seen.

    Attributes:
        body: the answer's, to compare the next one with.
        ids: of the items that could be read, in order.
        count: how many items there are.
        asked: when the request was sent that was last answered so.
    """

    body: bytes
    ids: tuple[int, ...]
    count: int
    asked: float


@attrs.define(eq=False)
class _Entry:
    """How a container was when a request that was sent at `asked` was answered."""

    raw: Any
    container: Container
    asked: float


class Snapshots:
    """The last state of each container that somebody asks about.

    Times are of any clock that does not go back. Of two answers, the one that was asked for later counts.

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
        # Dicts for sets that keep their order.
        self._askers: dict[int, dict[Subscription, None]] = {}
        self._watchers: dict[Subscription, None] = {}
        # First looks that are owed: whoever has just sat down is told how things are, even where nothing changes.
        self._owed: dict[int, dict[Subscription, None]] = {}
        # The page that says how a container is. Where it is the last word on all of its items, and comes again as it was,
        # nothing on it is new.
        self._shown: dict[int, KnownPage] = {}
        # When a call of our own changed a container: what was asked for before says nothing about it.
        self._touched: dict[int, float] = {}
        # When it was said that one does not exist, or we deleted it. An id is not given twice, so a list that shows it once
        # more may only lag.
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
    def base_wanted(self) -> bool:
        """Somebody asks about all containers who has not seen all yet."""
        return any(subscription.base is None for subscription in self._watchers)

    @property
    def nobody(self) -> bool:
        """Nobody asks about anything."""
        return not self._askers and not self._watchers

    def subscribe(self, subscription: Subscription, *, since: float) -> set[int]:
        """Let one ask; return the ids that have to be looked at for it.

        Args:
            since: what was asked for since then is new enough to be told.
        """
        if subscription.ids is None:
            if not self._watchers:
                # What nobody asked about was not read, and has to be.
                self._shown.clear()
            elif since < math.inf and not self.base_wanted:
                subscription.base = self._all()
            self._watchers[subscription] = None
            return set()
        owed: set[int] = set()
        for container_id in subscription.ids:
            self._askers.setdefault(container_id, {})[subscription] = None
            entry = self._entries.get(container_id)
            if entry is not None and container_id not in self._touched and self._as_of(container_id, entry) >= since:
                subscription.tell(container_id, entry.container)
            else:
                self._owed.setdefault(container_id, {})[subscription] = None
                self._shown.pop(container_id, None)
                owed.add(container_id)
        return owed

    def unsubscribe(self, subscription: Subscription, ids: Iterable[int] | None = None) -> list[int]:
        """Let one ask no more, or no more about some; return what nobody asks about now, which is forgotten."""
        if subscription.ids is None:
            self._watchers.pop(subscription, None)
            candidates: Iterable[int] = self._entries.keys() - self._askers.keys()
        else:
            candidates = tuple(subscription.ids if ids is None else ids)
            for container_id in candidates:
                subscription.ids.discard(container_id)
                subscription.news.pop(container_id, None)
                _remove(self._owed, container_id, subscription)
                _remove(self._askers, container_id, subscription)
        if self._watchers:
            return []
        forgotten = [one for one in candidates if one not in self._askers]
        for container_id in forgotten:
            self._entries.pop(container_id, None)
            self._touched.pop(container_id, None)
        return forgotten

    def touch(self, container_id: int, now: float, *, deleted: bool = False) -> None:
        """Take in that a call of our own has just changed a container, or may have.

        Args:
            deleted: it has deleted it, so that a list which shows it is not to be believed.
        """
        if deleted:
            self._doubt(container_id, now)
        if container_id in self._askers or container_id in self._entries:
            self._touched[container_id] = now
            self._shown.pop(container_id, None)

    def created(self, container_id: int) -> None:
        """Record that a call of ours has created a container, perhaps with the id of an earlier one."""
        self._gone.pop(container_id, None)

    def is_deleted(self, container_id: int, now: float) -> bool:
        """Return True if a container is known to be gone: a call of ours has deleted it a moment ago."""
        return now - self._gone.get(container_id, -math.inf) <= self._lag

    def holds(self, page: KnownPage) -> bool:
        """Tell whether a page is the last word on each of its items, for everybody who asks."""
        return all(map(is_, map(self._shown.get, page.ids), repeat(page)))

    def forget_page(self, page: KnownPage) -> None:
        """Take in that a page is not kept any more."""
        for one in page.ids:
            if self._shown.get(one) is page:
                del self._shown[one]

    def take(self, container_id: int, raw: Any, asked: float, *, page: KnownPage | None) -> bool:
        """Take in how a container is; return whether that counts.

        Args:
            raw: its JSON.
            asked: when the request was sent.
            page: the page of the list that it stands on, which may lag behind; None where it was got by itself.
        """
        if not self._counts(container_id, asked, listed=page is not None):
            return False
        entry = self._entries.get(container_id)
        if entry is not None and asked < self._as_of(container_id, entry):
            # A newer answer was quicker.
            self._settle(container_id, entry)
            return True
        if entry is not None and entry.raw == raw:
            entry.asked = asked
            if self._owed:
                self._settle(container_id, entry)
        else:
            self._shown.pop(container_id, None)
            if container_id in self._askers or self._watchers:
                self._renew(container_id, raw, asked, new=entry is None)
        if page is not None:
            self._shown[container_id] = page
        return True

    def take_gone(self, container_id: int, asked: float) -> bool:
        """Take in that a container does not exist; return whether that counts."""
        if not self._counts(container_id, asked, listed=False):
            return False
        entry = self._entries.get(container_id)
        if entry is not None and asked < self._as_of(container_id, entry):
            self._settle(container_id, entry)
            return True
        self.changed = True
        self._doubt(container_id, asked)
        self._entries.pop(container_id, None)
        self._owed.pop(container_id, None)
        self._shown.pop(container_id, None)
        self._tell(self._askers.pop(container_id, ()), container_id, None)
        return True

    def take_end(self) -> None:
        """Take in that all containers have been looked at."""
        for subscription in self._watchers:
            if subscription.base is None:
                subscription.base = self._all()

    def _all(self) -> dict[int, Container]:
        return {one: entry.container for one, entry in self._entries.items()}

    def _as_of(self, container_id: int, entry: _Entry) -> float:
        page = self._shown.get(container_id)
        return entry.asked if page is None else max(entry.asked, page.asked)

    def _renew(self, container_id: int, raw: Any, asked: float, *, new: bool) -> None:
        # What is seen for the first time is news, but no change, unless all there was had been seen before.
        self.changed = self.changed or not new or any(subscription.base is not None for subscription in self._watchers)
        self._entries[container_id] = entry = _Entry(raw, self.read(raw), asked)
        self._owed.pop(container_id, None)
        self._tell(self._askers.get(container_id, ()), container_id, entry.container)

    def _settle(self, container_id: int, entry: _Entry) -> None:
        for subscription in self._owed.pop(container_id, ()):
            subscription.tell(container_id, entry.container)

    def _doubt(self, container_id: int, now: float) -> None:
        self._gone.pop(container_id, None)
        self._gone[container_id] = now
        while now - self._gone[oldest := next(iter(self._gone))] > self._lag:
            del self._gone[oldest]

    def _counts(self, container_id: int, asked: float, *, listed: bool) -> bool:
        if self._touched and asked < self._touched.get(container_id, -math.inf):
            return False
        if self._gone and container_id in self._gone:
            if listed and asked - self._gone[container_id] <= self._lag:
                return False
            del self._gone[container_id]
        self._touched.pop(container_id, None)
        return True

    def _tell(self, askers: Iterable[Subscription], container_id: int, container: Container | None) -> None:
        for subscription in askers:
            subscription.tell(container_id, container)
        for subscription in self._watchers:
            if subscription.base is not None:
                subscription.tell(container_id, container)


def _remove(subscriptions: dict[int, dict[Subscription, None]], container_id: int, subscription: Subscription) -> None:
    those = subscriptions.get(container_id, {})
    if subscription in those:
        del those[subscription]
        if not those:
            del subscriptions[container_id]
