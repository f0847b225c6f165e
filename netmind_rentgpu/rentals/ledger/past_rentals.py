"""Past rentals, and reports of what they and the open ones have cost. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, TypeAlias

import attrs

from netmind_rentgpu.amounts import MILLIONTH, in_own_context, rounded
from netmind_rentgpu.conversion import plain_values
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.records import EndCause, RentalRecord
from netmind_rentgpu.tables import Table, html_table

__all__ = [
    "Grouping",
    "PastRental",
    "Period",
    "Share",
    "SpendingLine",
    "SpendingReport",
    "cost_of",
    "millionths",
    "report",
    "shares_of",
    "shares_of_open",
]

# Above that, a price is a mistake; and the state file could not sum such costs.
_HIGHEST_COST: Final = Decimal(10**9)
_DAY: Final = timedelta(days=1)

Grouping: TypeAlias = Literal["label", "gpu", "day"]


@attrs.frozen(kw_only=True)
class PastRental:
    """A rental that is over, and whose container existed.

    Attributes:
        name: the container's name.
        label: the user's own name for the rental; None if it had none.
        container_id: the container's id; None if the service had not shown it, or the record was kept after its deletion.
        gpu_name, gpus: the model of its GPUs, as the machine was listed, and their number.
        node_name, region: the machine, and its region as it was listed.
        image: the image that the rental was made with, as its user named it.
        hourly_price: the listed price of an hour; None if it could not be read.
        currency: the currency of the price and the cost, such as USD; None if it is not known.
        intended_at: the time just before the create.
        created_at: the time of the answer that showed the container; None if it was found otherwise.
        ready_at: the time from which on the first login had worked; None if none had.
        ended_at: the time from which on the container was known to be gone, or was left to the user; for a container that
            was found to be gone, the time of that, but not later than its ceiling.
        shared_budget: the name of the budget that it shared with others; None without one, or if that budget was removed.
        cause: the cause of the end: see `EndCause`; None for a cause that this version does not know.
        spent: the estimated cost, by listed price and time, without machines that did not start, which are past rentals
            themselves; None if the price is not known, and for a rental that was kept, which costs on.
    """

    name: str
    label: str | None = None
    container_id: int | None = None
    gpu_name: str | None = None
    gpus: int
    node_name: str
    region: str | None = None
    image: str | None = None
    hourly_price: Decimal | None
    currency: str | None = None
    intended_at: datetime
    created_at: datetime | None = None
    ready_at: datetime | None = None
    ended_at: datetime
    shared_budget: str | None = None
    cause: EndCause | None = None
    spent: Decimal | None = None

    @classmethod
    def of(cls, record: RentalRecord, *, ended_at: datetime, cause: EndCause) -> PastRental:
        """Return what is kept of a record that is closed."""
        return cls(
            name=record.name,
            label=record.label,
            container_id=record.container_id,
            gpu_name=record.gpu_name,
            gpus=record.gpus,
            node_name=record.node_name,
            region=record.region,
            image=record.image,
            hourly_price=record.hourly_price,
            currency=record.currency,
            intended_at=record.intended_at,
            created_at=record.created_at,
            ready_at=record.ready_at,
            ended_at=max(ended_at, record.intended_at),
            shared_budget=record.shared_budget,
            cause=cause,
            spent=None if cause == "kept" else cost_of(record, ended_at),
        )

    def to_dict(self, *, secrets: bool = False, json: bool = False) -> dict[str, Any]:
        """Return the fields as plain values, as for a row of a DataFrame.

        Args:
            secrets: without effect, because a past rental has none.
            json: True to return only what JSON can hold: prices become texts, and times become texts in ISO 8601.
        """
        del secrets
        return plain_values({name: getattr(self, name) for name in _FIELDS}, json=json)


_FIELDS: Final = tuple(field.name for field in attrs.fields(PastRental))


def cost_of(record: RentalRecord, moment: datetime) -> Decimal | None:
    """Return the cost of a record's container until a moment, in whole millionths; None if it is not known."""
    cost = record.cost_until(moment)
    return None if cost is None or cost > _HIGHEST_COST else rounded(cost)


@in_own_context
def millionths(amount: Decimal) -> int:
    """Return an amount as a whole number of millionths."""
    return int(amount / MILLIONTH)


@attrs.frozen(kw_only=True)
class SpendingLine:
    """The cost of the rentals of one group, in one currency.

    Attributes:
        group: the label, the name of the GPU, or the day in UTC as `2026-11-29`, by which the report groups; None for
            rentals without.
        currency: the currency, such as USD; None if it is not known.
        spent: the estimated cost, without rentals whose cost is not known.
        rentals: the number of rentals.
        unknown: how many of them have a cost that is not known: their price could not be read, or they were kept.
    """

    group: str | None
    currency: str | None
    spent: Decimal
    rentals: int
    unknown: int

    def to_dict(self, *, secrets: bool = False, json: bool = False) -> dict[str, Any]:
        """Return the fields as plain values, as for a row of a DataFrame.

        Args:
            secrets: without effect, because a line has none.
            json: True to return only what JSON can hold: the cost becomes a text.
        """
        del secrets
        return plain_values(attrs.asdict(self), json=json)


@attrs.frozen(kw_only=True)
class SpendingReport:
    """The cost of this account's rentals, by listed price and time; no sum mixes currencies.

    A rental that goes on counts with its cost so far, and a rental that lasted beyond the period with its share of it.

    Attributes:
        by: what the lines group by.
        since, until: the period, in UTC; None if it has no such end.
        lines: by day in the order of the days, else the highest cost first; a notebook shows them as a table.
    """

    by: Grouping
    since: datetime | None
    until: datetime | None
    lines: list[SpendingLine]

    @property
    @in_own_context
    def total(self) -> dict[str | None, Decimal]:
        """The sum of all lines, by currency."""
        total: defaultdict[str | None, Decimal] = defaultdict(Decimal)
        for line in self.lines:
            total[line.currency] += line.spent
        return dict(total)

    def to_dict(self, *, secrets: bool = False, json: bool = False) -> dict[str, Any]:
        """Return the report as plain values: its period, its lines, and its total by currency.

        Args:
            secrets: without effect, because a report has none.
            json: True to return only what JSON can hold: costs become texts, and times become texts in ISO 8601.
        """
        lines = [line.to_dict(secrets=secrets, json=json) for line in self.lines]
        plain = plain_values({"by": self.by, "since": self.since, "until": self.until}, json=json)
        return plain | {
            "lines": lines,
            "total": plain_values({key or "": sum_ for key, sum_ in self.total.items()}, json=json),
        }

    def _repr_html_(self) -> str:
        return html_table(self.lines)


@attrs.frozen(kw_only=True)
class Period:
    """A period of which a user wants to know, in UTC; None for no such end."""

    since: datetime | None = None
    until: datetime | None = None


@attrs.frozen
class Share:
    """The part of one rental, or the sum of several, in one line of a report.

    Attributes:
        spent: the cost in millionths; 0 if it is not known.
        rentals: the number of rentals.
        unknown: how many of them have a cost that is not known.
    """

    group: str | None
    currency: str | None
    spent: int
    rentals: int
    unknown: int


def shares_of(
    *,
    group: str | None,
    currency: str | None,
    began: datetime,
    ended: datetime,
    spent: int | None,
    period: Period,
    by_day: bool,
) -> Iterable[Share]:
    """Yield the shares of one rental within a period, one for each day if the report is by day.

    The shares of adjacent periods add up to the whole cost, without a rounding error.

    Args:
        group: the line's group; ignored by day.
        began, ended: the time for which the rental cost, in UTC.
        spent: its cost in that time, in millionths; None if it is not known.
    """
    first = began if period.since is None else max(began, period.since)
    last = ended if period.until is None else min(ended, period.until)
    if first > last or (first == last and began != ended):
        return
    while True:
        midnight = first.replace(hour=0, minute=0, second=0, microsecond=0) + _DAY
        stop = min(last, midnight) if by_day else last
        part = (
            0 if spent is None else _spent_until(stop, began, ended, spent) - _spent_until(first, began, ended, spent)
        )
        if began == ended:
            part = spent or 0
        yield Share(f"{first:%Y-%m-%d}" if by_day else group, currency, part, 1, int(spent is None))
        if stop == last:
            return
        first = stop


def _spent_until(moment: datetime, began: datetime, ended: datetime, spent: int) -> int:
    whole = (ended - began) // timedelta(microseconds=1)
    passed = (moment - began) // timedelta(microseconds=1)
    return spent if moment >= ended else spent * passed // whole


def shares_of_open(record: RentalRecord, period: Period, by: Grouping, clocks: ClockReading) -> Iterable[Share]:
    """Yield the shares of an open rental within a period, by its cost until now; none as long as no container is known."""
    if not record.had_container:
        return
    ended = max(record.intended_at, record.ended_at or record.present(clocks))
    cost = cost_of(record, ended)
    yield from shares_of(
        group=record.label if by == "label" else record.gpu_name,
        currency=record.currency,
        began=record.intended_at,
        ended=ended,
        spent=None if cost is None else millionths(cost),
        period=period,
        by_day=by == "day",
    )


@in_own_context
def report(shares: Iterable[Share], by: Grouping, period: Period) -> SpendingReport:
    """Return a report of shares, with one line for each group and currency."""
    sums: defaultdict[tuple[str | None, str | None], list[int]] = defaultdict(lambda: [0, 0, 0])
    for share in shares:
        line = sums[share.group, share.currency]
        line[0] += share.spent
        line[1] += share.rentals
        line[2] += share.unknown
    lines = [
        SpendingLine(group=group, currency=currency, spent=spent * MILLIONTH, rentals=rentals, unknown=unknown)
        for (group, currency), (spent, rentals, unknown) in sums.items()
    ]
    lines.sort(key=lambda line: (line.group or "", line.currency or ""))
    if by != "day":
        lines.sort(key=lambda line: (line.currency or "", -line.spent))
    return SpendingReport(by=by, since=period.since, until=period.until, lines=Table(lines))
