"""The ids of an emulated service's things, each of which only one thing has, whichever account's."""

from __future__ import annotations

__all__ = ["Ids"]


class Ids:
    """Gives ids of one kind, in rising order."""

    def __init__(self, *, first: int = 1, reused: bool = False) -> None:
        """Prepare.

        Args:
            reused: an id that was freed is given again.
        """
        self._next = first
        self._in_use: set[int] = set()
        self._reusable: list[int] | None = [] if reused else None

    def new(self) -> int:
        """Give an id."""
        if self._reusable:
            given = self._reusable.pop()
        else:
            given, self._next = self._next, self._next + 1
        self._in_use.add(given)
        return given

    def free(self, given: int) -> None:
        """Record that nothing has an id any more."""
        self._in_use.discard(given)
        if self._reusable is not None:
            self._reusable.append(given)

    def __contains__(self, given: int) -> bool:
        return given in self._in_use
