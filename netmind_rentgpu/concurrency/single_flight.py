"""What is asked for once for all who ask at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from copy import copy
from typing import Generic, TypeVar

from netmind_rentgpu.errors import RentGPUError

__all__ = ["SingleFlight"]

Thing = TypeVar("Thing")


class SingleFlight(Generic[Thing]):
    """Something that is asked for once for all who asked before that began; where it failed, that is shared as well.

    Else those who wait for one that fails would all ask, one after the other.
    """

    def __init__(self, *, fresh: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare.

        Args:
            fresh: for how many seconds what was found may be given to those who ask later.
        """
        self._fresh = fresh
        self._clock = clock
        self._lock = asyncio.Lock()
        self._began: float | None = None
        self._forgotten = False
        self._found: Thing | RentGPUError

    async def get(self, find: Callable[[], Awaitable[Thing]]) -> Thing:
        """Return what was found, or find it.

        Raises:
            RentGPUError: as `find`.
        """
        asked = self._clock()
        if not self._will_do(asked):
            async with self._lock:
                if not self._will_do(asked):
                    began = self._clock()
                    self._forgotten = False
                    try:
                        found: Thing | RentGPUError = await find()
                    except RentGPUError as error:
                        found = error
                    # Not before: whoever is cancelled has found nothing.
                    self._began, self._found = None if self._forgotten else began, found
        if isinstance(self._found, RentGPUError):
            # Each is given one of its own, with a traceback and notes of its own.
            raise _again(self._found) from self._found.__cause__
        return self._found

    def _will_do(self, asked: float) -> bool:
        """Tell whether what was found is new enough for somebody who asks then."""
        if self._began is None:
            return False
        return self._began >= asked - (0 if isinstance(self._found, RentGPUError) else self._fresh)

    def forget(self) -> None:
        """Find it again the next time, even where it is being found."""
        self._began = None
        self._forgotten = True


def _again(error: RentGPUError) -> RentGPUError:
    other = copy(error)
    other.__dict__.pop("__notes__", None)
    for note in getattr(error, "__notes__", ()):
        other.add_note(note)
    return other
