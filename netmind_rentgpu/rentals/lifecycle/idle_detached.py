"""Detached rentals whose machines are idle, which their guardian judges."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import timedelta

import attrs

from netmind_rentgpu.errors import RentGPUError, StateFileError
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.container_index import check_not_replaced
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.lifecycle.idle_clock import IdleClock, between_readings
from netmind_rentgpu.results import ActivityReading
from netmind_rentgpu.ssh.activity import read_activity

__all__ = ["end_idle_rentals"]

# Seconds for one reading, with the login.
_LONGEST_READING = 60.0


async def end_idle_rentals(
    context: RentalContext,
    records: Iterable[RentalRecord],
    *,
    pause: timedelta,
    end: Callable[[RentalRecord], Awaitable[None]],
) -> None:
    """Read whether the machines of detached rentals are in use, record since when they are idle, and end the idle ones.

    Args:
        pause: the longest time between two readings.
        end: ends a rental, unless its record is another by then. It is called right after the rental's own reading.
    """
    watched = [record for record in records if record.stage == "detached" and record.idle_timeout is not None]
    await asyncio.gather(*(_end_if_idle(context, record, pause, end) for record in watched))


async def _end_if_idle(
    context: RentalContext, record: RentalRecord, longest: timedelta, end: Callable[[RentalRecord], Awaitable[None]]
) -> None:
    if record.idle_timeout is None:
        return
    pause = between_readings(record.idle_timeout, longest)
    present = record.present(context.clock())
    read_at = record.idle_read_at or present
    if record.idle_read_at is not None and present < read_at + pause / 2:
        # The guardian looks for another reason.
        return
    reading = await _read(context, record)
    present = record.present(context.clock())
    clock = IdleClock(record.idle_since or present, read_at).after(
        is_idle=reading is not None and not reading.is_busy, at=present, pause=pause
    )
    noted = attrs.evolve(record, idle_since=clock.since, idle_read_at=clock.read_at)
    is_noted = False
    with suppress(StateFileError):
        is_noted = await context.ledger.record_idleness(record, noted)
    if is_noted and clock.idle >= record.idle_timeout:
        await end(noted)


async def _read(context: RentalContext, record: RentalRecord) -> ActivityReading | None:
    """Return what a login shows of a machine; None if none succeeds."""
    if record.container_id is None:
        return None
    try:
        async with asyncio.timeout(_LONGEST_READING):
            container = await context.containers.get(record.container_id)
            check_not_replaced(record, container)
            async with context.shell_on(container) as shell:
                connection = shell._connection  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a shell is a connection to its user
                return await read_activity(connection, operations=0)
    except (RentGPUError, TimeoutError):
        return None
