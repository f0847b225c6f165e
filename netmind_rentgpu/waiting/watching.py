"""Watches of the changes of containers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

import attrs

from netmind_rentgpu.concurrency.running_loop import running_loop
from netmind_rentgpu.models import Container
from netmind_rentgpu.waiting.shared_poller import SharedPoller
from netmind_rentgpu.waiting.snapshots import Subscription

__all__ = ["Change", "watch"]

_LONGEST_FAILURE = 300.0
_BETWEEN_CHECKS = 30.0


@attrs.frozen
class Change:
    """A change of a container.

    Attributes:
        container_id: the container's id.
        before: the container as it was before; None if it has appeared.
        after: the container as it is now; None if it is gone.
    """

    container_id: int
    before: Container | None
    after: Container | None


class _View:
    """The containers as the reader of a watch knows them, and the changes that the reader has not read."""

    def __init__(self, subscription: Subscription, *, initial: bool) -> None:
        """Set up.

        Args:
            initial: True if the first state of each container is a change, too.
        """
        self._subscription = subscription
        self._initial = initial
        self._known: dict[int, Container] | None = None
        self._changed: dict[int, Container | None] = {}
        self._left = subscription.ids

    @property
    def over(self) -> bool:
        """True if no container is left to watch, and no change to read."""
        return self._left is not None and not self._left and not self._changed

    def look(self) -> bool:
        """Merge the news; return True if there is a change to read, or never will be one."""
        subscription = self._subscription
        if self._known is None:
            if subscription.ids is not None:
                self._known = {}
            elif subscription.base is not None:
                self._known = {} if self._initial else dict(subscription.base)
                self._changed.update(subscription.base if self._initial else {})
            else:
                return False
        for container_id, container in subscription.news.items():
            # The first state of a container that the caller named is no change. A container that appears in a watch of all
            # containers is one.
            is_first = self._left is not None and container_id not in self._known
            if is_first and container is not None and not self._initial:
                self._known[container_id] = container
            elif container != self._known.get(container_id):
                self._changed[container_id] = container
            else:
                # The container is again as the reader knows it.
                self._changed.pop(container_id, None)
        return bool(self._changed) or self.over

    def read(self) -> Change | None:
        """Return the change that came first; None if no change is left to read."""
        if not self._changed or self._known is None:
            return None
        container_id = next(iter(self._changed))
        after = self._changed.pop(container_id)
        before = self._known.pop(container_id, None)
        if after is not None:
            self._known[container_id] = after
        return Change(container_id, before, after)


async def watch(poller: SharedPoller, ids: Iterable[int] | None, *, initial: bool = False) -> AsyncGenerator[Change]:
    """Yield the changes of containers since a first poll.

    Args:
        ids: the ids of the containers; None for all containers.
        initial: True to yield the first state of each container, too.

    Raises:
        RentGPUError: all polls have failed for five minutes, with the error of the last; or the client was closed.
    """
    subscription = poller.subscribe(ids)
    view = _View(subscription, initial=initial)
    loop = running_loop()

    def satisfied() -> bool:
        found = view.look()
        gone = [container_id for container_id, container in subscription.news.items() if container is None]
        subscription.news.clear()
        if gone and subscription.ids is not None:
            poller.unsubscribe(subscription, gone)
        return found or view.over

    try:
        while True:
            # News that came while the reader was busy may alter the next change.
            satisfied()
            change = view.read()
            if change is not None:
                yield change
            elif view.over:
                return
            else:
                await poller.wait_until(subscription, satisfied, until=loop.time() + _BETWEEN_CHECKS)
                failing = poller.failing_since
                if poller.failure is not None and failing is not None and loop.time() > failing + _LONGEST_FAILURE:
                    raise poller.failure
    finally:
        poller.unsubscribe(subscription)
