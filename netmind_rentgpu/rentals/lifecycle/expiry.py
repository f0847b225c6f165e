"""The timer of a rental's expiry, and the task that it cancels. No cancel scope is open while the block runs.

The timer goes by the record's time: the clock of this boot, which goes on while the machine sleeps, and is never set.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from netmind_rentgpu.errors import ClientStateError, StateFileError
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.lifecycle.deletion import log_write_error
from netmind_rentgpu.rentals.lifecycle.events import RentalEvents
from netmind_rentgpu.rentals.lifecycle.provisioner import Provisioner

__all__ = ["ExpiryTimer", "OwnerTask", "RecordTimer"]

# Seconds between two readings of the boot clock, because the event loop's clock stands still while the machine sleeps.
_LONGEST_SLEEP = 30.0
# A longer notice could lie before all times that a datetime can hold.
_LONGEST_NOTICE = timedelta(days=36_500)


class ExpiryTimer:
    """Ends a rental at its expiry, and walks over the list for what of its attempts may turn up late.

    The deadline that counts is the one in the state file, which is read again, and claimed, when the timer rings.
    """

    def __init__(self, provisioner: Provisioner, context: RentalContext, events: RentalEvents) -> None:
        self._provisioner = provisioner
        self._context = context
        self._events = events
        # The expiry that an event has told already.
        self._noticed: datetime | None = None
        self._noticing: asyncio.Task[None] | None = None
        self._expire: Callable[[], object] | None = None
        self._moved: Callable[[RentalRecord], object] | None = None
        self._process: int | None = None
        self._timer = RecordTimer()
        self._record: RentalRecord | None = None
        self._has_ended = False
        self._looking: asyncio.Task[None] | None = None
        self._claiming: asyncio.Task[None] | None = None
        self._looked_at: datetime | None = None

    def begin(
        self, record: RentalRecord, expire: Callable[[], object], moved: Callable[[RentalRecord], object]
    ) -> None:
        """Call `expire` at a record's expiry, if it has one.

        Args:
            moved: is called with the record if the state file has a later deadline by then.
        """
        if not self._has_ended:
            self._process, self._record, self._expire, self._moved = os.getpid(), record, expire, moved
            self._arm()

    def move(self, record: RentalRecord) -> None:
        """Use another deadline of the same rental from now on."""
        if self._record is not None:
            self._record = record
            self._arm()

    def suspend(self) -> None:
        """Stop the timer until `begin` is called for another record."""
        self._record = None
        self._timer.stop()

    def end(self) -> None:
        """Stop the timer and cancel a running search, because leaving the rental searches once more."""
        self._has_ended = True
        # Break the reference cycle through the rental.
        self._expire = self._moved = None
        self.suspend()
        for task in (self._looking, self._noticing):
            if task is not None:
                task.cancel()

    async def let_tasks_end(self) -> None:
        """Wait until the walk, the claim and the look-up that are under way have ended."""
        tasks = {task for task in (self._looking, self._claiming, self._noticing) if task is not None}
        if tasks:
            await asyncio.wait(tasks)

    async def _claim(self, record: RentalRecord) -> None:
        """Claim the rental in the state file, and end it, unless the file has a later deadline.

        The rental ends then, or the timer runs again, also after an error, because nothing else would end it.
        """
        claiming = asyncio.get_running_loop().create_task(self._provisioner.claim_expired(record.name))
        current: RentalRecord | None = None
        try:
            # Not cancelled by the time limit: a file that stays locked must not keep the container.
            await asyncio.wait({claiming}, timeout=self._context.limits.claim)
            if claiming.done() and not claiming.cancelled():
                if (error := claiming.exception()) is None:
                    current = claiming.result()
                else:
                    log_write_error(error)
        finally:
            self._go_on(record, current)

    def _go_on(self, record: RentalRecord, current: RentalRecord | None) -> None:
        """End the rental by its record on file, or run the timer again.

        Args:
            record: the record by which the timer rang.
            current: the record on file; None to go by `record`.
        """
        if self._expire is None or self._moved is None:
            return  # the rental was left meanwhile
        if self._record is not record:  # it was extended meanwhile
            self._arm()
        elif current is None:
            self._expire()
        elif current.stage == "abandoned":
            self._moved(current)
            self._expire()
        elif current.owner == record.owner:
            self._follow(current)
        # Otherwise it was detached, and its process is about to end this timer.

    def _follow(self, current: RentalRecord) -> None:
        """Use the deadline that another process has given the rental."""
        if self._moved is not None:
            self._moved(current)
        self._events.emit("extended", current)
        self.move(current)

    async def _tell(self, record: RentalRecord) -> None:
        """Send an event that says when the rental expires, unless the state file has a later deadline."""
        current: RentalRecord | None = record
        with suppress(StateFileError, ClientStateError):
            current = await self._context.ledger.find(record.name)
        self._noticing = None
        if self._record is not record:  # it was extended, or has ended
            return
        if current is not None and current.owner == record.owner and current.expires_at != record.expires_at:
            self._provisioner.move_deadline(current)
            self._follow(current)
            return
        self._noticed = record.expires_at
        # Otherwise another process has ended the rental.
        if current is not None and current.owner == record.owner:
            self._events.emit("expiring", record)
        self._arm()

    @property
    def _notice_at(self) -> datetime | None:
        """The time at which an event has to say that the rental expires; None if it has said so, or never does."""
        expires_at = None if self._record is None else self._record.expires_at
        notice = self._events.options.notice
        if expires_at is None or notice is None or expires_at == self._noticed:
            return None
        return expires_at - min(notice, _LONGEST_NOTICE)

    def _arm(self) -> None:
        if self._record is None:
            return
        present, certain_at = self._record.present(self._context.clock()), self._provisioner.certain_at
        looked_at = present if self._looks else self._looked_at
        if certain_at is not None and looked_at is not None:
            # Not at once, because the walk may have failed.
            certain_at = max(certain_at, looked_at + timedelta(seconds=self._context.limits.between_walks))
        notice_at = None if self._tells else self._notice_at
        moments = [moment for moment in (self._record.expires_at, certain_at, notice_at) if moment is not None]
        if moments:
            self._timer.set((min(moments) - present).total_seconds(), self._ring)

    @property
    def _looks(self) -> bool:
        return self._looking is not None and not self._looking.done()

    @property
    def _tells(self) -> bool:
        return self._noticing is not None and not self._noticing.done()

    def _ring(self) -> None:
        """End the rental if its time is up, and walk over the list if the last walk was too early."""
        if self._process != os.getpid() or self._expire is None or self._record is None:
            return
        clocks, certain_at = self._context.clock(), self._provisioner.certain_at
        if self._record.has_expired(clocks):
            if self._claiming is None or self._claiming.done():
                self._claiming = asyncio.get_running_loop().create_task(self._claim(self._record))
            return
        present = self._record.present(clocks)
        notice_at = self._notice_at
        if notice_at is not None and present >= notice_at and not self._tells:
            self._noticing = asyncio.get_running_loop().create_task(self._tell(self._record))
        if certain_at is not None and present >= certain_at and not self._looks:
            self._looked_at = present
            self._looking = asyncio.get_running_loop().create_task(self._provisioner.look_again())
        self._arm()


class OwnerTask:
    """The task that entered a block, which is cancelled and uncancelled as by `asyncio.timeout`.

    Attributes:
        is_cut_short: True if `cut_short` has cancelled the task, and the block was not left since.
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
        """Drop the task, to break the reference cycle through its exception."""
        self._task = None

    async def let_cancellation_come(self) -> None:
        """Raise the cancellation now if the block was cut short, and ended before it came."""
        if self.is_cut_short:
            await asyncio.sleep(0)

    def was_cut_short(self) -> bool:
        """Return True, and uncancel the task that leaves, if `cut_short` alone has cancelled it."""
        if not self.is_cut_short or self._task is None or self._task is not asyncio.current_task():
            return False
        self.is_cut_short = False
        return self._task.uncancel() <= self._cancellations


class RecordTimer:
    """A timer that may call back early; its callback reads the clock again."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float, ring: Callable[[], object]) -> None:
        """Call back after so many seconds, or earlier."""
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(min(max(0.0, seconds), _LONGEST_SLEEP), ring)

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
