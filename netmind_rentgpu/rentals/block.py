"""The block that a rental is used in: who runs it, how it is cut short, and when. No scope is open while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

from netmind_rentgpu.rentals.desk import now

__all__ = ["Alarm", "Block"]

# Between two looks at the time of day, which may be set, and goes on while the machine sleeps.
_LONGEST_SLEEP = 30.0


class Block:
    """The task that entered a block, as `asyncio.timeout` has it.

    Attributes:
        is_cut_short: we have cancelled it, and that was not taken in yet.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._cancellations = 0 if self._task is None else self._task.cancelling()
        self.is_cut_short: bool = False

    def cut_short(self, why: str) -> None:
        """Cancel the task, if it still runs."""
        if self._task is not None and not self._task.done() and not self.is_cut_short:
            self.is_cut_short = True
            self._task.cancel(why)

    def end(self) -> None:
        """Let go of the task: it leads to its exception, whose traceback leads to whoever had the block."""
        self._task = None

    async def let_cancellation_come(self) -> None:
        """Be cancelled now if the block was cut short and ended before it was told."""
        if self.is_cut_short:
            await asyncio.sleep(0)

    def was_cut_short(self) -> bool:
        """Tell whether it was we who cancelled the task that leaves, and nobody else; it is not cancelled then."""
        if not self.is_cut_short or self._task is None or self._task is not asyncio.current_task():
            return False
        self.is_cut_short = False
        return self._task.uncancel() <= self._cancellations


class Alarm:
    """A timer that goes by the time of day."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def set(self, moments: list[datetime], ring: Callable[[], object]) -> None:
        """Ring at the first of some moments, or a while before, to look at the time again; never where there is none."""
        if moments:
            seconds = max(0.0, (min(moments) - now()).total_seconds())
            self._timer = asyncio.get_running_loop().call_later(min(seconds, _LONGEST_SLEEP), ring)

    def stop(self) -> None:
        """Do not ring any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
