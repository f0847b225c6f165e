"""A rental's deadline: the earlier of its time limit and the end of its budget, and how it may be moved. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

import attrs

from netmind_rentgpu import arguments
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.names import LATEST
from netmind_rentgpu.rentals.ledger.records import RentalRecord

__all__ = ["Extension", "ceiling_after", "checked_extension", "extended"]

_LEAST_ROOM: Final = timedelta(hours=1)
_JITTER: Final = timedelta(seconds=1)


@attrs.frozen(kw_only=True)
class Extension:
    """A user's wish for a later deadline, with checked arguments.

    Attributes:
        ttl: the time from now on; None if it is not given.
        until: a moment, in UTC; None if it is not given.
        budget: the rental's new total budget; None if it stays.
    """

    ttl: timedelta | None = None
    until: datetime | None = None
    budget: Decimal | None = None


def checked_extension(*, ttl: timedelta | None, until: datetime | None, budget: Decimal | float | None) -> Extension:
    """Check a user's arguments.

    Raises:
        InvalidArgumentError: none is given, both `ttl` and `until` are, or one cannot be used.
    """
    if ttl is None and until is None and budget is None:
        raise InvalidArgumentError("ttl", "is missing; give ttl=, until= or budget=")
    if ttl is not None and until is not None:
        raise InvalidArgumentError("until", "is another way to say ttl; give one of them")
    if ttl is not None and (not isinstance(ttl, timedelta) or ttl <= timedelta(0)):
        raise InvalidArgumentError("ttl", f"must be a timedelta above 0, not {arguments.shown_value(ttl)}")
    total = None if budget is None else arguments.bound("budget", budget)
    if total is not None and total <= 0:
        raise InvalidArgumentError("budget", f"must be above 0: {arguments.shown_value(budget)}")
    moment = None if until is None else arguments.moment("until", until)
    return Extension(ttl=ttl, until=moment, budget=total)


def ceiling_after(ttl: timedelta) -> timedelta:
    """Return how long a rental may last, unless its user says otherwise: twice its ttl, and an hour more at least."""
    return ttl + max(ttl, _LEAST_ROOM)


def extended(record: RentalRecord, wanted: Extension, clocks: ClockReading) -> RentalRecord:
    """Return a record with a later deadline.

    Args:
        clocks: the present time.

    Raises:
        InvalidArgumentError: the deadline would be earlier than before, or later than the ceiling in the container's name;
            or the rental has no deadline, or no price by which a budget could be enforced.
    """
    if record.expires_at is None or record.time_limit is None:
        raise InvalidArgumentError("rental", f"{record.name} has no deadline; nothing deletes it anyway")
    argument, time_limit, budget = "budget", record.time_limit, record.budget
    # A record's times are wall times by the clock as it was set when the record was made.
    present = record.present(clocks)
    if wanted.ttl is not None:
        argument, time_limit = "ttl", min(LATEST, present + min(wanted.ttl, LATEST - present))
    if wanted.until is not None:
        shift = present - clocks.wall
        # The two clocks are not read at the same moment.
        argument = "until"
        time_limit = min(wanted.until, LATEST) + (shift if abs(shift) > _JITTER else timedelta(0))
    if wanted.budget is not None:
        budget = wanted.budget
        if record.hourly_price is None:
            raise InvalidArgumentError("budget", f"cannot be enforced: the price of {record.name} is not known")
    moved = attrs.evolve(record, time_limit=max(time_limit, record.time_limit), budget=budget)
    moved = attrs.evolve(moved, expires_at=moved.earlier_limit)
    shorter = "extending never shortens; rentals.release() ends it now"
    if budget is not None and record.budget is not None and budget < record.budget:
        raise InvalidArgumentError("budget", f"{budget} is less than the {record.budget} of {record.name}; {shorter}")
    is_shorter = argument != "budget" and time_limit < record.expires_at
    if is_shorter or (moved.expires_at is not None and moved.expires_at < record.expires_at):
        raise InvalidArgumentError(
            argument, f"would end {record.name} before {record.expires_at:%Y-%m-%d %H:%M:%S} UTC; {shorter}"
        )
    if record.extendable_to is not None and time_limit > record.extendable_to:
        raise InvalidArgumentError(
            argument,
            f"would end after {record.extendable_to:%Y-%m-%d %H:%M:%S} UTC, the ceiling in the name of {record.name};"
            " rent with a later extendable_to",
        )
    return moved
