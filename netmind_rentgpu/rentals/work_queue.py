"""The items of a fleet's `map`: which waits, which is lost with its machine, and which is done. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Generic, TypeVar, cast

__all__ = ["WorkQueue"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkQueue(Generic[Item, Result]):
    """The items, by their numbers, and their results so far."""

    def __init__(self, items: Iterable[Item], *, retries: int) -> None:
        """Set up.

        Args:
            retries: how often an item that was lost with its machine is given to a machine again.
        """
        self._items: list[Item] = list(items)
        self._retries = retries
        self._waiting: deque[int] = deque(range(len(self._items)))
        self._losses: Counter[int] = Counter()
        self._results: dict[int, Result | Exception] = {}

    @property
    def is_over(self) -> bool:
        """True if each item has a result."""
        return len(self._results) == len(self._items)

    @property
    def has_waiting(self) -> bool:
        """True if an item waits for a machine."""
        return bool(self._waiting)

    def take(self) -> tuple[int, Item]:
        """Return the number and the value of the item that waits for longest, and which a machine works on from now on."""
        number = self._waiting.popleft()
        return number, self._items[number]

    def finish(self, number: int, result: Result | Exception) -> None:
        """Record the result of an item; the first result counts."""
        self._results.setdefault(number, result)

    def finish_all(self, error: Exception) -> None:
        """Record an error as the result of each item that has none."""
        for number in range(len(self._items)):
            self.finish(number, error)

    def lose(self, number: int) -> bool:
        """Record that an item was lost with its machine; return True if it waits again, before all others."""
        self._losses[number] += 1
        if self._losses[number] > self._retries:
            return False
        self._waiting.appendleft(number)
        return True

    @property
    def results(self) -> list[Result]:
        """The results in the order of the items, once each has one. Errors are among them if the caller asks for that."""
        return [cast("Result", self._results[number]) for number in range(len(self._items))]
