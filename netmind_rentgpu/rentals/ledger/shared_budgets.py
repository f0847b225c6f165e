"""Shared budgets: what several processes may spend together, and if there is room for one more rental. Pure.

An open rental counts with its price until its expiry, and until now if it may still run after that: so the row itself is
the reservation, and no process that is killed can leave one behind. A rental that is over counts with its cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, TypeAlias

import attrs

from netmind_rentgpu.amounts import MILLIONTH, in_own_context, rounded
from netmind_rentgpu.conversion import plain_values
from netmind_rentgpu.errors import InsufficientBudgetError
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.past_rentals import Period
from netmind_rentgpu.rentals.ledger.records import RentalRecord

__all__ = ["BudgetPeriod", "SharedBudget", "check_room", "described", "period_at"]

BudgetPeriod: TypeAlias = Literal["day", "month"]

_HOUR: Final = timedelta(hours=1)
_JITTER: Final = timedelta(seconds=1)
_MOST_SHOWN: Final = 5


@attrs.frozen(kw_only=True)
class SharedBudget:
    """A budget that the rentals of several processes share.

    Attributes:
        name: its name, by which `rent(shared_budget=...)` takes it.
        limit: the most that its rentals may cost together in a period; None without such a limit.
        per: the period: a `day` or a `month` of UTC; None for all time.
        hourly: the most that the rentals which run at once may cost in an hour, together; None without such a limit.
        currency: the currency of both limits.
        expires_at: the time after which the budget of a fleet is removed; None for a budget that `budgets.set` has made.
        spent: the cost of rentals that are over, in the present period.
        reserved: the cost that open rentals may come to in the present period, or have come to already.
        hourly_now: the price of an hour of all open rentals together.
        holders: the names of the open rentals.
    """

    name: str
    limit: Decimal | None = None
    per: BudgetPeriod | None = None
    hourly: Decimal | None = None
    currency: str
    expires_at: datetime | None = None
    spent: Decimal = Decimal(0)
    reserved: Decimal = Decimal(0)
    hourly_now: Decimal = Decimal(0)
    holders: tuple[str, ...] = ()

    def to_dict(self, *, secrets: bool = False, json: bool = False) -> dict[str, Any]:
        """Return the fields as plain values, as for a row of a DataFrame.

        Args:
            secrets: without effect, because a budget has none.
            json: True to return only what JSON can hold: amounts become texts.
        """
        del secrets
        return plain_values(attrs.asdict(self), json=json)


@attrs.frozen
class Held:
    """The time for which an open rental counts, and its price.

    Attributes:
        runs: True if it counts among those that run at once.
    """

    name: str
    began: datetime
    ended: datetime
    hourly_price: Decimal
    runs: bool


def period_at(moment: datetime, per: BudgetPeriod | None) -> Period:
    """Return the period of a budget in which a moment lies; for all time, a period without ends."""
    if per is None:
        return Period()
    midnight = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if per == "day":
        return Period(since=midnight, until=midnight + timedelta(days=1))
    first = midnight.replace(day=1)
    return Period(since=first, until=(first + timedelta(days=32)).replace(day=1))


def held_by(record: RentalRecord, clocks: ClockReading) -> Held | None:
    """Return how an open rental counts; None if it does not, because its create was refused, or its price is not known."""
    present = record.present(clocks)
    if record.hourly_price is None or not record.may_be_rented:
        return None
    ended, runs = max(record.expires_at or present, present), True
    if record.ended_at is not None:
        ended, runs = record.ended_at, False
    elif not record.had_container and record.extendable_to is not None and present > record.extendable_to:
        # As long as no process has searched for it, it may run; its ceiling is the latest that this package allows.
        ended, runs = max(record.extendable_to, record.expires_at or present), False
    # The record's times are by the clock as it was set when it was made, and the periods by the clock as it is set now.
    shift = clocks.wall - present
    shift = shift if abs(shift) > _JITTER else timedelta(0)
    return Held(record.name, record.intended_at + shift, ended + shift, record.hourly_price, runs=runs)


@in_own_context
def _cost_within(held: Held, period: Period) -> Decimal:
    began = held.began if period.since is None else max(held.began, period.since)
    ended = held.ended if period.until is None else min(held.ended, period.until)
    if ended <= began:
        return Decimal(0)
    return held.hourly_price * Decimal(str((ended - began).total_seconds())) / Decimal(str(_HOUR.total_seconds()))


@in_own_context
def described(
    budget: SharedBudget, *, spent: int, records: Iterable[RentalRecord], clocks: ClockReading
) -> SharedBudget:
    """Return a budget with what is spent and reserved in the present period.

    Args:
        spent: the cost of its past rentals in that period, in millionths.
        records: its open rentals.
    """
    period = period_at(clocks.wall, budget.per)
    open_rentals = [held for record in records if (held := held_by(record, clocks)) is not None]
    return attrs.evolve(
        budget,
        spent=spent * MILLIONTH,
        reserved=rounded(sum((_cost_within(held, period) for held in open_rentals), Decimal(0))),
        hourly_now=sum((held.hourly_price for held in open_rentals if held.runs), Decimal(0)),
        holders=tuple(held.name for held in open_rentals),
    )


@in_own_context
def check_room(
    budget: SharedBudget,
    wanted: RentalRecord,
    *,
    spent: int,
    records: Sequence[RentalRecord],
    clocks: ClockReading,
    is_new: bool = True,
) -> None:
    """Check that a budget has room for a rental, in each period that the rental touches from now on.

    Args:
        wanted: the rental as it is to be; it is not among `records`.
        spent: the cost of past rentals in the present period, in millionths.
        records: the budget's other open rentals.
        is_new: False for a rental that runs already, and is to run longer.

    Raises:
        InsufficientBudgetError: it has none.
    """
    now = clocks.wall
    new = held_by(wanted, clocks)
    if new is None:
        return
    others = [held for record in records if (held := held_by(record, clocks)) is not None]
    if budget.limit is not None:
        for period in _periods(now, new.ended, budget.per):
            is_present = period.since is None or period.since <= now
            gone = spent * MILLIONTH if is_present else Decimal(0)
            reserved = sum((_cost_within(held, period) for held in others), Decimal(0))
            needed = _cost_within(new, period)
            if gone + reserved + needed > budget.limit:
                raise _no_room(budget, wanted, period, needed=needed, spent=gone, reserved=reserved, others=others)
    running = sum((held.hourly_price for held in others if held.runs), Decimal(0))
    if is_new and budget.hourly is not None and running + new.hourly_price > budget.hourly:
        names = _names(others)
        raise InsufficientBudgetError(
            f"budget {budget.name!r} has no room for {wanted.name} at {new.hourly_price:f} {budget.currency} an hour:"
            f" {running:f} of {budget.hourly:f} an hour run already{names}; release some, or raise it with budgets.set",
            budget=budget.name,
            limit=budget.hourly,
            spent=Decimal(0),
            reserved=running,
            holders=tuple(held.name for held in others),
        )


def _periods(now: datetime, until: datetime, per: BudgetPeriod | None) -> Iterator[Period]:
    period = period_at(now, per)
    yield period
    while period.until is not None and period.until < until:
        period = period_at(period.until, per)
        yield period


def _no_room(
    budget: SharedBudget,
    wanted: RentalRecord,
    period: Period,
    *,
    needed: Decimal,
    spent: Decimal,
    reserved: Decimal,
    others: Sequence[Held],
) -> InsufficientBudgetError:
    when = ""
    if period.since is not None:
        when = f" on {period.since:%Y-%m-%d}" if budget.per == "day" else f" in {period.since:%Y-%m}"
    limit = budget.limit or Decimal(0)
    return InsufficientBudgetError(
        f"budget {budget.name!r} has no room for {wanted.name}, which may cost {rounded(needed):f} {budget.currency}{when}:"
        f" of {limit:f}, {rounded(spent):f} are spent and {rounded(reserved):f} reserved{_names(others)}; choose a shorter"
        " ttl, release some, or raise it with budgets.set",
        budget=budget.name,
        limit=limit,
        spent=rounded(spent),
        reserved=rounded(reserved),
        holders=tuple(held.name for held in others),
    )


def _names(others: Sequence[Held]) -> str:
    if not others:
        return ""
    names = ", ".join(held.name for held in others[:_MOST_SHOWN])
    more = len(others) - _MOST_SHOWN
    return f" by {names}" + (f" and {more} more" if more > 0 else "")
