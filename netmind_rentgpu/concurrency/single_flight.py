"""A search whose result all concurrent callers share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from copy import copy
from typing import Generic, TypeVar

from netmind_rentgpu.errors import RentGPUError

__all__ = ["SingleFlight", "copy_of_error"]

Found = TypeVar("Found")


class SingleFlight(Generic[Found]):
    """A search that runs once for all callers that asked before it began.

    These callers share its failure as well, because otherwise each of them would repeat the search, one after the other.
    """

    def __init__(self, *, fresh: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Set up.

        Args:
            fresh: the seconds for which later callers get the same result.
            clock: returns the time in seconds, and never goes back.
        """
        self._fresh = fresh
        self._clock = clock
        self._lock = asyncio.Lock()
        self._began: float | None = None
        self._forgotten = False
        self._found: Found | RentGPUError

    async def get(self, find: Callable[[], Awaitable[Found]]) -> Found:
        """Return the shared result, or search for it.

        Raises:
            RentGPUError: the search failed, with the errors of `find`.
        """
        asked = self._clock()
        if not self._is_recent(asked):
            async with self._lock:
                if not self._is_recent(asked):
                    began = self._clock()
                    self._forgotten = False
                    try:
                        found: Found | RentGPUError = await find()
                    except RentGPUError as error:
                        found = error
                    # Set only now, because a search that was cancelled has no result.
                    self._began, self._found = None if self._forgotten else began, found
        if isinstance(self._found, RentGPUError):
            # Each caller gets an error of its own, with a traceback and notes of its own.
            raise copy_of_error(self._found) from self._found.__cause__
        return self._found

    def _is_recent(self, asked: float) -> bool:
        """Return True if the result is recent enough for a caller that asked at this time."""
        if self._began is None:
            return False
        return self._began >= asked - (0 if isinstance(self._found, RentGPUError) else self._fresh)

    def forget(self) -> None:
        """Discard the result, and that of a search under way, so that the next caller searches again."""
        self._began = None
        self._forgotten = True


def copy_of_error(error: RentGPUError) -> RentGPUError:
    """Return a copy of an error that has no traceback yet."""
    other = copy(error)
    other.__dict__.pop("__notes__", None)
    for note in getattr(error, "__notes__", ()):
        other.add_note(note)
    return other
