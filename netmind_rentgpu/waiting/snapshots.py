"""The last state of each container that has subscribers, and the news for each subscriber. Pure.

The cost of a poll depends on the changes: an unchanged page is not parsed, an unchanged container is not built again, and
news of a container goes only to its subscribers.
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
    """A subscription of one wait or watch to some containers, or to all.

    Attributes:
        ids: the ids that are subscribed to at present; None for all containers.
        news: the news that the subscriber has not read, by id, in the order of arrival: the newest state of the container,
            None if it is gone.
        base: for a subscription to all containers, their first states; None until a walk has seen all of them, and for a
            subscription to some containers.
        wake: a function that is called when there is news; None if the subscriber does not sleep.
    """

    ids: set[int] | None
    news: dict[int, Container | None] = attrs.field(factory=dict[int, Container | None])
    base: dict[int, Container] | None = None
    wake: Callable[[], object] | None = None

    def tell(self, container_id: int, container: Container | None) -> None:
        """Add the state of a container to the news, and wake the subscriber."""
        self.news[container_id] = container
        if self.wake is not None:
            self.wake()

    def taken(self) -> dict[int, Container | None]:
        """Return the news, and clear them."""
        news, self.news = self.news, {}
        return news


@attrs.define(eq=False)
class KnownPage:
    """A page of the list, as it was last seen.

    Attributes:
        body: the body of the answer. The body of the next answer is compared with this.
        ids: the ids of the items that could be read, in order.
        count: the number of all items.
        asked: the time of the last request that was answered with this body.
    """

    body: bytes
    ids: tuple[int, ...]
    count: int
    asked: float


@attrs.define(eq=False)
class _Entry:
    """The state of a container, by the answer to a request that was sent at `asked`."""

    raw: Any
    container: Container
    asked: float


class Snapshots:
    """The last state of each container that has subscribers.

    All times are seconds on one clock that does not go back. If two answers differ, the answer to the later request counts.

    Attributes:
        changed: True if a container has changed since the poller last set this to False.
    """

    def __init__(self, read: Callable[[Any], Container], *, lag: float) -> None:
        """Set up, without containers.

        Args:
            read: builds a container from its JSON value.
            lag: the seconds for which the list may still show a container that is gone.
        """
        self.read = read
        self._lag = lag
        self._entries: dict[int, _Entry] = {}
        # The inner dicts serve as sets that keep their order.
        self._askers: dict[int, dict[Subscription, None]] = {}
        self._watchers: dict[Subscription, None] = {}
        # The new subscribers of a container. They get the next state of the container, even if it has not changed.
        self._owed: dict[int, dict[Subscription, None]] = {}
        # The page that showed the last state of a container. If a page arrives unchanged, and is this page for all of its
        # items, it holds no news.
        self._shown: dict[int, KnownPage] = {}
        # The times at which calls of this client changed containers. Answers to earlier requests do not count.
        self._touched: dict[int, float] = {}
        # The times at which this client deleted containers, or found that they do not exist. A list that still shows such a
        # container within the lag is outdated.
        self._gone: dict[int, float] = {}
        self.changed: bool = False

    @property
    def wanted(self) -> set[int]:
        """The ids that have subscribers of their own."""
        return set(self._askers)

    @property
    def known(self) -> set[int]:
        """The ids that a walk to the end of the list has to account for: wanted ids, and ids of known containers."""
        return self._askers.keys() | self._entries.keys()

    @property
    def all_wanted(self) -> bool:
        """True if there is a subscription to all containers."""
        return bool(self._watchers)

    @property
    def base_wanted(self) -> bool:
        """True if there is a subscription to all containers that has no `base` yet."""
        return any(subscription.base is None for subscription in self._watchers)

    @property
    def nobody(self) -> bool:
        """True if there is no subscription."""
        return not self._askers and not self._watchers

    def subscribe(self, subscription: Subscription, *, since: float) -> set[int]:
        """Add a subscription; return its ids whose containers have to be polled.

        Args:
            since: the time from which on the answer to a request is recent enough for a new subscriber.
        """
        if subscription.ids is None:
            if not self._watchers:
                # Read all pages again, because the states of containers without subscribers were not kept.
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
        """End a subscription, or its part for some ids; drop and return the ids that have no subscriber any more."""
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
        forgotten = [container_id for container_id in candidates if container_id not in self._askers]
        for container_id in forgotten:
            self._entries.pop(container_id, None)
            self._touched.pop(container_id, None)
        return forgotten

    def touch(self, container_id: int, now: float, *, deleted: bool = False) -> None:
        """Record that a call of this client has just changed a container, or may have.

        Args:
            deleted: True if the call has deleted the container, so that a list that still shows the container is outdated.
        """
        if deleted:
            self._record_gone(container_id, now)
        if container_id in self._askers or container_id in self._entries:
            self._touched[container_id] = now
            self._shown.pop(container_id, None)

    def created(self, container_id: int) -> None:
        """Record that a call of this client has created a container, perhaps with the id of an earlier container."""
        self._gone.pop(container_id, None)

    def is_deleted(self, container_id: int, now: float) -> bool:
        """Return True if this client has deleted a container, or found it to be gone, no longer ago than the lag."""
        return now - self._gone.get(container_id, -math.inf) <= self._lag

    def holds(self, page: KnownPage) -> bool:
        """Return True if an unchanged page holds no news, because it showed the last state of each of its items."""
        return all(map(is_, map(self._shown.get, page.ids), repeat(page)))

    def forget_page(self, page: KnownPage) -> None:
        """Forget a page that the poller does not keep any more."""
        for container_id in page.ids:
            if self._shown.get(container_id) is page:
                del self._shown[container_id]

    def take(self, container_id: int, raw: Any, asked: float, *, page: KnownPage | None) -> bool:
        """Record the state of a container; return True if the answer counts.

        Args:
            raw: the JSON value of the container.
            asked: the time at which the request was sent.
            page: the page that shows the container, and may lag behind; None for the answer to a GET.
        """
        if not self._counts(container_id, asked, listed=page is not None):
            return False
        entry = self._entries.get(container_id)
        if entry is not None and asked < self._as_of(container_id, entry):
            # The answer to a later request came first.
            self._notify_new_subscribers(container_id, entry)
            return True
        if entry is not None and entry.raw == raw:
            entry.asked = asked
            if self._owed:
                self._notify_new_subscribers(container_id, entry)
        else:
            self._shown.pop(container_id, None)
            if container_id in self._askers or self._watchers:
                self._replace_entry(container_id, raw, asked, new=entry is None)
        if page is not None:
            self._shown[container_id] = page
        return True

    def take_gone(self, container_id: int, asked: float) -> bool:
        """Record that a container does not exist; return True if the answer counts."""
        if not self._counts(container_id, asked, listed=False):
            return False
        entry = self._entries.get(container_id)
        if entry is not None and asked < self._as_of(container_id, entry):
            self._notify_new_subscribers(container_id, entry)
            return True
        self.changed = True
        self._record_gone(container_id, asked)
        self._entries.pop(container_id, None)
        self._owed.pop(container_id, None)
        self._shown.pop(container_id, None)
        self._notify(self._askers.pop(container_id, ()), container_id, None)
        return True

    def take_end(self) -> None:
        """Record that all containers have been seen: set the `base` of new subscriptions to all containers."""
        for subscription in self._watchers:
            if subscription.base is None:
                subscription.base = self._all()

    def _all(self) -> dict[int, Container]:
        return {container_id: entry.container for container_id, entry in self._entries.items()}

    def _as_of(self, container_id: int, entry: _Entry) -> float:
        """Return the time of the last request whose answer showed this state."""
        page = self._shown.get(container_id)
        return entry.asked if page is None else max(entry.asked, page.asked)

    def _replace_entry(self, container_id: int, raw: Any, asked: float, *, new: bool) -> None:
        # A container that is seen for the first time has not changed, unless all containers had been seen before.
        self.changed = self.changed or not new or any(subscription.base is not None for subscription in self._watchers)
        self._entries[container_id] = entry = _Entry(raw, self.read(raw), asked)
        self._owed.pop(container_id, None)
        self._notify(self._askers.get(container_id, ()), container_id, entry.container)

    def _notify_new_subscribers(self, container_id: int, entry: _Entry) -> None:
        for subscription in self._owed.pop(container_id, ()):
            subscription.tell(container_id, entry.container)

    def _record_gone(self, container_id: int, now: float) -> None:
        self._gone.pop(container_id, None)
        self._gone[container_id] = now
        while now - self._gone[oldest := next(iter(self._gone))] > self._lag:
            del self._gone[oldest]

    def _counts(self, container_id: int, asked: float, *, listed: bool) -> bool:
        """Return True if an answer is not outdated by a call of this client, or by a deletion that the list lags behind."""
        if self._touched and asked < self._touched.get(container_id, -math.inf):
            return False
        if self._gone and container_id in self._gone:
            if listed and asked - self._gone[container_id] <= self._lag:
                return False
            del self._gone[container_id]
        self._touched.pop(container_id, None)
        return True

    def _notify(self, subscribers: Iterable[Subscription], container_id: int, container: Container | None) -> None:
        for subscription in subscribers:
            subscription.tell(container_id, container)
        for subscription in self._watchers:
            if subscription.base is not None:
                subscription.tell(container_id, container)


def _remove(subscriptions: dict[int, dict[Subscription, None]], container_id: int, subscription: Subscription) -> None:
    subscribers = subscriptions.get(container_id, {})
    if subscription in subscribers:
        del subscribers[subscription]
        if not subscribers:
            del subscriptions[container_id]
