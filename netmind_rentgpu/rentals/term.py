"""The one timer of a rental: when it is to end, and when to look for what may have turned up."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import datetime, timedelta

from netmind_rentgpu.rentals.block import Alarm
from netmind_rentgpu.rentals.desk import now
from netmind_rentgpu.rentals.hold import Hold

__all__ = ["Term"]

_PAUSE = timedelta(seconds=10)


class Term:
    """How long a rental may be had."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._expire: Callable[[], object] | None = None
        self._process: int | None = None
        self._alarm = Alarm()
        self._expires_at: datetime | None = None
        self._over = False
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = now() - _PAUSE

    def begin(self, expires_at: datetime | None, expire: Callable[[], object]) -> None:
        """Go on until then, when `expire` is called; for ever where it is None."""
        self._process, self._expires_at, self._expire = os.getpid(), expires_at, expire
        self._arm()

    def end(self) -> None:
        """Do not go on, and give up a look that is under way: whoever leaves looks once more."""
        self._over = True
        # It leads to who has this one.
        self._expire = None
        self._alarm.stop()
        if self._looking is not None:
            self._looking.cancel()

    async def let_look_end(self) -> None:
        """Wait until nothing goes on any more."""
        if self._looking is not None:
            await asyncio.wait({self._looking})

    def _arm(self) -> None:
        certain_at = self._hold.certain_at
        if certain_at is not None:
            # If a look at it has failed, the next is made after a while.
            certain_at = max(certain_at, (now() if self._looks else self._looked_at) + _PAUSE)
        if not self._over:
            self._alarm.set([moment for moment in (self._expires_at, certain_at) if moment is not None], self._ring)

    @property
    def _looks(self) -> bool:
        return self._looking is not None and not self._looking.done()

    def _ring(self) -> None:
        """Look at the time, which may have come."""
        if self._over or self._process != os.getpid() or self._expire is None:
            return
        moment, certain_at = now(), self._hold.certain_at
        if self._expires_at is not None and moment >= self._expires_at:
            self._expire()
            return
        if certain_at is not None and moment >= certain_at and not self._looks:
            self._looked_at = moment
            self._looking = asyncio.get_running_loop().create_task(self._hold.look_again())
        self._arm()
