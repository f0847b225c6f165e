"""The table of shared budgets, and queries of what is spent and reserved of one. Each is called within a transaction.

A budget belongs to one service, which its origin names, and counts the rentals of all accounts of that service.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from netmind_rentgpu.errors import InvalidArgumentError, StateFileError
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.past_rentals import shares_of
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.ledger.rows import COLUMNS, decoded, moment_text, record_of
from netmind_rentgpu.rentals.ledger.shared_budgets import SharedBudget, check_room, described, period_at
from netmind_rentgpu.sqlite_file import Connection

__all__ = ["LONGEST_PERIOD", "check_budget", "fold", "list_budgets", "remove_budget", "remove_expired", "set_budget"]

_COLUMNS: Final = 'name, "limit", per, hourly, currency, expires_at'
# The rows of a service's accounts, whose names begin with its origin.
_OF_SERVICE: Final = "shared_budget = :name AND substr(account, 1, length(:origin) + 1) = :origin || ' '"
# Past rentals of a budget are kept at least until the present period, a month at most, is over.
LONGEST_PERIOD: Final = timedelta(days=32)


def set_budget(connection: Connection, origin: str, budget: SharedBudget) -> None:
    """Add a budget, or change its limits.

    Raises:
        InvalidArgumentError: it exists in another currency.
    """
    existing = _find(connection, origin, budget.name)
    if existing is not None and existing.currency != budget.currency:
        raise InvalidArgumentError(
            "currency", f"budget {budget.name!r} is in {existing.currency}; remove it first, or choose another name"
        )
    connection.execute(
        'INSERT INTO budgets (origin, name, "limit", per, hourly, currency, expires_at)'
        " VALUES (:origin, :name, :limit, :per, :hourly, :currency, :expires_at) ON CONFLICT (origin, name) DO UPDATE"
        ' SET "limit" = excluded."limit", per = excluded.per, hourly = excluded.hourly',
        {
            "origin": origin,
            "name": budget.name,
            "limit": None if budget.limit is None else str(budget.limit),
            "per": budget.per,
            "hourly": None if budget.hourly is None else str(budget.hourly),
            "currency": budget.currency,
            "expires_at": None if budget.expires_at is None else moment_text(budget.expires_at),
        },
    )


def list_budgets(connection: Connection, origin: str, clocks: ClockReading) -> list[SharedBudget]:
    """Return the budgets of a service, with what is spent and reserved in the present period."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM budgets WHERE origin = ? ORDER BY name", (origin,)).fetchall()  # noqa: S608  # constants
    return [
        described(
            budget,
            spent=_spent(connection, origin, budget, clocks.wall),
            records=_open_rentals(connection, origin, budget.name),
            clocks=clocks,
        )
        for budget in map(_budget_of, rows)
    ]


def remove_expired(connection: Connection, origin: str, now: datetime) -> None:
    """Remove the budgets of fleets that have expired and have no rental, as of a process that was killed."""
    expired = connection.execute(
        "SELECT name FROM budgets WHERE origin = ? AND expires_at < ?", (origin, moment_text(now))
    ).fetchall()
    for (name,) in expired:
        with suppress(InvalidArgumentError, StateFileError):
            remove_budget(connection, origin, name)


def remove_budget(connection: Connection, origin: str, name: str) -> None:
    """Remove a budget; its past rentals stay, without it.

    Raises:
        InvalidArgumentError: there is none, or it has open rentals.
    """
    _get(connection, origin, name)
    records = [record for record in _open_rentals(connection, origin, name) if record.may_be_rented]
    if records:
        names = ", ".join(record.name for record in records[:5])
        raise InvalidArgumentError("name", f"budget {name!r} has open rentals: {names}; release them first")
    key = {"origin": origin, "name": name}
    connection.execute(f"UPDATE past_rentals SET shared_budget = NULL WHERE {_OF_SERVICE}", key)  # noqa: S608  # constants
    connection.execute("DELETE FROM budgets WHERE origin = :origin AND name = :name", key)


def check_budget(
    connection: Connection, origin: str, wanted: RentalRecord, clocks: ClockReading, *, is_new: bool = True
) -> None:
    """Check that a rental's shared budget has room for it, as it is to be.

    Args:
        is_new: as for `check_room`.

    Raises:
        InvalidArgumentError: there is no such budget, or it is in another currency.
        InsufficientBudgetError: it has no room.
        StateFileError: an open rental of it cannot be read.
    """
    if wanted.shared_budget is None:
        return
    budget = _get(connection, origin, wanted.shared_budget)
    if budget.currency != wanted.currency:
        raise InvalidArgumentError(
            "shared_budget", f"{budget.name!r} is in {budget.currency}, and the rental in {wanted.currency}"
        )
    others = [record for record in _open_rentals(connection, origin, budget.name) if record.name != wanted.name]
    check_room(
        budget,
        wanted,
        spent=_spent(connection, origin, budget, clocks.wall),
        records=others,
        clocks=clocks,
        is_new=is_new,
    )


def fold(connection: Connection, origin: str, where: str, values: dict[str, Any]) -> None:
    """Add the costs of past rentals that are about to be removed to the totals of their budgets.

    Args:
        where: the condition that the rows meet.
    """
    query = f"SELECT shared_budget, sum(spent) FROM past_rentals WHERE {where} AND shared_budget IS NOT NULL GROUP BY 1"  # noqa: S608  # SQL of ours
    for name, spent in connection.execute(query, values).fetchall():
        connection.execute(
            "UPDATE budgets SET folded = folded + ? WHERE origin = ? AND name = ?", (spent or 0, origin, name)
        )


def _find(connection: Connection, origin: str, name: str) -> SharedBudget | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM budgets WHERE origin = ? AND name = ?", (origin, name)).fetchone()  # noqa: S608  # constants
    return None if row is None else _budget_of(row)


def _get(connection: Connection, origin: str, name: str) -> SharedBudget:
    budget = _find(connection, origin, name)
    if budget is None:
        rows = connection.execute("SELECT name FROM budgets WHERE origin = ? ORDER BY name", (origin,)).fetchall()
        known = ", ".join(repr(found) for (found,) in rows) or "none; budgets.set makes one"
        raise InvalidArgumentError("shared_budget", f"there is no budget {name!r}; there are {known}")
    return budget


def _budget_of(row: tuple[Any, ...]) -> SharedBudget:
    name, limit, per, hourly, currency, expires_at = row
    try:
        return SharedBudget(
            name=name,
            limit=None if limit is None else Decimal(limit),
            per=per,
            hourly=None if hourly is None else Decimal(hourly),
            currency=currency,
            expires_at=None if expires_at is None else datetime.fromisoformat(expires_at),
        )
    except (ArithmeticError, ValueError) as error:
        raise StateFileError(f"could not read budget {name!r}: {error}; set it again with budgets.set") from error


def _open_rentals(connection: Connection, origin: str, name: str) -> list[RentalRecord]:
    query = f"SELECT {COLUMNS} FROM rentals WHERE {_OF_SERVICE} ORDER BY intended_at"  # noqa: S608  # constants
    before, connection.text_factory = connection.text_factory, decoded
    try:
        rows = connection.execute(query, {"origin": origin, "name": name}).fetchall()
    finally:
        connection.text_factory = before
    return [record_of(row) for row in rows]


def _spent(connection: Connection, origin: str, budget: SharedBudget, now: datetime) -> int:
    """Return the cost of a budget's past rentals in the present period, in millionths."""
    period = period_at(now, budget.per)
    key: dict[str, Any] = {"origin": origin, "name": budget.name}
    if period.since is None:
        folded = connection.execute(
            "SELECT folded FROM budgets WHERE origin = :origin AND name = :name", key
        ).fetchone()
        total = connection.execute(f"SELECT sum(spent) FROM past_rentals WHERE {_OF_SERVICE}", key).fetchone()  # noqa: S608  # constants
        return int(folded[0]) + int(total[0] or 0)
    key["since"] = moment_text(period.since)
    query = f"SELECT sum(spent) FROM past_rentals WHERE {_OF_SERVICE} AND ended_at > :since AND intended_at >= :since"  # noqa: S608  # constants
    within = connection.execute(query, key).fetchone()
    # Only those that began in an earlier period are split.
    rows = connection.execute(
        f"SELECT intended_at, ended_at, spent FROM past_rentals WHERE {_OF_SERVICE} AND ended_at > :since"  # noqa: S608  # constants
        " AND intended_at < :since",
        key,
    ).fetchall()
    return int(within[0] or 0) + sum(
        share.spent
        for began, ended, spent in rows
        for share in shares_of(
            group=None,
            currency=budget.currency,
            began=datetime.fromisoformat(began),
            ended=datetime.fromisoformat(ended),
            spent=spent,
            period=period,
            by_day=False,
        )
    )
