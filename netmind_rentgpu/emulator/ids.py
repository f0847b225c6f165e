"""The ids of auths, images and containers. All accounts share them, so that no two resources of a kind have the same id."""

from __future__ import annotations

__all__ = ["Ids"]


class Ids:
    """A source of ids for one kind of resource, in rising order."""

    def __init__(self, *, first: int = 1, reused: bool = False) -> None:
        """Prepare a source.

        Args:
            first: the first id.
            reused: True to return freed ids again.
        """
        self._next = first
        self._in_use: set[int] = set()
        self._reusable: list[int] | None = [] if reused else None

    def new(self) -> int:
        """Return an id that no resource has."""
        if self._reusable:
            new_id = self._reusable.pop()
        else:
            new_id, self._next = self._next, self._next + 1
        self._in_use.add(new_id)
        return new_id

    def free(self, freed: int) -> None:
        """Record that no resource has an id any more."""
        self._in_use.discard(freed)
        if self._reusable is not None:
            self._reusable.append(freed)

    def __contains__(self, wanted: int) -> bool:
        return wanted in self._in_use
