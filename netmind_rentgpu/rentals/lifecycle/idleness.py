"""Idle machines of this process: the task that reads whether a machine is in use, and ends its rental if it is not."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TypeAlias

import attrs

from netmind_rentgpu import arguments
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.lifecycle.events import RentalEvents
from netmind_rentgpu.rentals.lifecycle.idle_clock import IdleClock, between_readings
from netmind_rentgpu.results import ActivityReading

__all__ = ["IdleOptions", "IdleWatch", "IdleWhen"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

IdleWhen: TypeAlias = Callable[[ActivityReading], bool]
"""A function that returns True if a reading shows an idle machine."""


def _check_timeout(_: object, __: object, timeout: timedelta | None) -> None:
    arguments.duration("idle_timeout", timeout)


def _check_judge(options: IdleOptions, _: object, judge: IdleWhen | None) -> None:
    if judge is not None and not callable(judge):
        raise InvalidArgumentError("idle_when", f"must be a function of a reading, not {type(judge).__name__}")
    if inspect.iscoroutinefunction(judge):
        raise InvalidArgumentError("idle_when", "must be a plain function, not a coroutine function")
    if judge is not None and options.timeout is None:
        raise InvalidArgumentError("idle_when", "has no effect without idle_timeout=")


@attrs.frozen(kw_only=True)
class IdleOptions:
    """A caller's wishes for idle machines, with checked arguments.

    Attributes:
        timeout: how long a machine may be idle; None for as long as it is rented.
        judge: returns True for a reading of an idle machine; None for the judgement of the reading itself.
    """

    timeout: timedelta | None = attrs.field(default=None, validator=_check_timeout)
    judge: IdleWhen | None = attrs.field(default=None, validator=_check_judge)


class IdleWatch:
    """Reads whether a rented machine is in use, and ends the rental if the machine is idle for too long.

    Attributes:
        options: the caller's wishes.
    """

    def __init__(self, context: RentalContext, options: IdleOptions, events: RentalEvents) -> None:
        self.options: IdleOptions = options
        self._context = context
        self._events = events
        self._task: asyncio.Task[None] | None = None
        self._clock: IdleClock | None = None
        self._has_complained = False
        self._has_ended = False

    def begin(
        self,
        record: RentalRecord,
        *,
        read: Callable[[], Awaitable[ActivityReading]],
        is_used: Callable[[], bool],
        expire: Callable[[], object],
    ) -> None:
        """Start to read, if the rental has an idle_timeout.

        Args:
            read: reads the machine's activity.
            is_used: returns True if this process has begun to use the machine since the last reading.
            expire: ends the rental.
        """
        if record.idle_timeout is not None and not self._has_ended:
            watching = self._watch(record, record.idle_timeout, read, is_used, expire)
            self._task = asyncio.get_running_loop().create_task(watching)

    @property
    def clock(self) -> IdleClock | None:
        """The time for which the machine has been idle; None if the rental has no idle_timeout."""
        return self._clock

    @property
    def is_judged_here(self) -> bool:
        """True if only a function of this process can judge whether the machine is idle."""
        return self.options.judge is not None

    def end(self) -> None:
        """Stop reading, or do not begin."""
        self._has_ended = True
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    async def let_end(self) -> None:
        """Wait until a reading that is under way has ended."""
        if self._task is not None and self._task is not asyncio.current_task():
            await asyncio.wait({self._task})

    async def _watch(
        self,
        record: RentalRecord,
        timeout: timedelta,
        read: Callable[[], Awaitable[ActivityReading]],
        is_used: Callable[[], bool],
        expire: Callable[[], object],
    ) -> None:
        pause = between_readings(timeout, timedelta(seconds=self._context.limits.between_readings))
        notice = self._events.options.notice
        started = record.present(self._context.clock())
        self._clock = clock = IdleClock(started, started)
        noticed: datetime | None = None
        while True:
            # The last reading comes when the time is up, and not a pause later.
            await asyncio.sleep(max(0.0, min(pause, timeout - clock.idle).total_seconds()))
            reading = await read()
            at = record.present(self._context.clock())
            self._clock = clock = clock.after(is_idle=self._is_idle(record, reading), at=at, pause=pause)
            is_over = clock.idle >= timeout
            is_near = clock.idle > timedelta(0) and timeout - clock.idle <= (notice or timedelta(0))
            if notice is not None and is_near and noticed != clock.since:
                noticed = clock.since
                self._events.emit("expiring", record, reason=_reason(record, clock, timeout))
                await self._events.let_begin()
            # Without an await in between, because this process may begin to use the machine at any time.
            if is_over and self.options.judge is None and is_used():
                self._clock = clock = IdleClock(at, at)
            elif is_over:
                expire()
                return

    def _is_idle(self, record: RentalRecord, reading: ActivityReading) -> bool:
        if self.options.judge is not None:
            try:
                judged = self.options.judge(reading)
                # An awaitable is no judgement.
                return bool(judged) and not inspect.isawaitable(judged)
            except Exception:
                logger.exception("%s: idle_when raised an error, so that its machine counts as busy", record.name)
                return False
        if reading.unknown and not _shows_use(reading) and not self._has_complained:
            self._has_complained = True
            logger.warning(
                "%s counts as busy, and idle_timeout does not end it: %s", record.name, "; ".join(reading.unknown)
            )
        return not reading.is_busy


def _shows_use(reading: ActivityReading) -> bool:
    """Return True if the known fields of a reading show that the machine is in use."""
    known = attrs.evolve(
        reading,
        processes=reading.processes or 0,
        connections=reading.connections or 0,
        gpu_use=reading.gpu_use or (0,),
    )
    return known.is_busy


def _reason(record: RentalRecord, clock: IdleClock, timeout: timedelta) -> str:
    return (
        f"idle since {clock.since:%Y-%m-%d %H:%M:%S} UTC; container {record.container_id} is deleted at"
        f" {clock.since + timeout:%Y-%m-%d %H:%M:%S} UTC, unless it is busy before"
    )
