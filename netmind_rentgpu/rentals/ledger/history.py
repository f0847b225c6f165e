"""The table of past rentals: rows that move there as they are closed, and queries of what they have cost.

Each function is called within a transaction, and with the name of an account.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from netmind_rentgpu.errors import StateFileError
from netmind_rentgpu.rentals.ledger.budget_rows import LONGEST_PERIOD, fold
from netmind_rentgpu.rentals.ledger.past_rentals import Grouping, PastRental, Period, Share, shares_of
from netmind_rentgpu.rentals.ledger.rows import (
    PAST_COLUMNS,
    decoded,
    insertion,
    moment_text,
    past_rental_of,
    row_of,
)
from netmind_rentgpu.sqlite_file import Connection

__all__ = ["add", "list_past", "prune", "remove", "shares_of_past"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_GROUPS = {"label": "label", "gpu": "gpu_name", "day": "substr(ended_at, 1, 10)"}


def add(connection: Connection, account: str, past: PastRental) -> None:
    """Add a rental, in place of what is known of it already."""
    row = row_of(past)
    statement = insertion("past_rentals", row).replace("INSERT", "INSERT OR REPLACE", 1)
    connection.execute(statement, {**row, "account": account})


def remove(connection: Connection, account: str, name: str) -> None:
    """Remove a rental, because its container has turned up again."""
    connection.execute("DELETE FROM past_rentals WHERE account = ? AND name = ?", (account, name))


def prune(connection: Connection, origin: str, account: str, past: PastRental, keep: timedelta) -> None:
    """Remove the rentals that ended longer before a rental that has just ended than they are kept.

    Nothing is removed if no other rental ended in that time, because then the clock may have been set far ahead. Rentals of
    a shared budget stay until its period is over.
    """
    values = {
        "account": account,
        "name": past.name,
        "from": moment_text(past.ended_at - keep),
        "to": moment_text(past.ended_at),
        "period": moment_text(past.ended_at - max(keep, LONGEST_PERIOD)),
    }
    recent = "SELECT 1 FROM past_rentals WHERE account = :account AND name != :name AND ended_at BETWEEN :from AND :to"
    old = "account = :account AND ended_at < :from AND (shared_budget IS NULL OR ended_at < :period)"
    if connection.execute(recent, values).fetchone() is not None:
        fold(connection, origin, old, values)
        connection.execute(f"DELETE FROM past_rentals WHERE {old}", values)  # noqa: S608  # SQL of ours


def list_past(connection: Connection, account: str, period: Period, label: str | None) -> Iterator[PastRental]:
    """Yield the rentals that ran in a period, in the order of their ends; log an error for each unreadable one.

    Args:
        label: the label that they must have; None for any.
    """
    # Otherwise, one text that is not UTF-8 would fail the whole query.
    connection.text_factory = decoded
    rows = connection.execute(
        f"SELECT {PAST_COLUMNS} FROM past_rentals"  # noqa: S608  # inserts constants only
        " WHERE account = :account AND (ended_at > :since OR intended_at >= :since) AND intended_at < :until"
        " AND (:label IS NULL OR label = :label) ORDER BY ended_at, name",
        {**_ends(period), "account": account, "label": label},
    )
    for row in rows:
        try:
            yield past_rental_of(row)
        except StateFileError as error:
            logger.error("%s", error)  # noqa: TRY400  # the message says it all


def shares_of_past(connection: Connection, account: str, period: Period, by: Grouping) -> Iterator[Share]:
    """Yield what past rentals have cost in a period, as sums of all that lie wholly in one line of the report."""
    connection.text_factory = decoded
    values: dict[str, Any] = {**_ends(period), "account": account}
    whole = "intended_at >= :since AND ended_at <= :until"
    if by == "day":
        whole += " AND substr(intended_at, 1, 10) = substr(ended_at, 1, 10)"
    ran = "FROM past_rentals WHERE account = :account AND ended_at >= :since AND intended_at < :until"
    group = _GROUPS[by]
    sums = "coalesce(sum(spent), 0), count(*), count(*) - count(spent)"
    for row in connection.execute(f"SELECT {group}, currency, {sums} {ran} AND {whole} GROUP BY 1, 2", values):
        yield Share(*row)
    if period == Period() and by != "day":
        return  # each lies wholly in it
    others = f"SELECT {group}, currency, intended_at, ended_at, spent {ran} AND NOT ({whole})"
    for label, currency, began, ended, spent in connection.execute(others, values):
        try:
            yield from shares_of(
                group=label,
                currency=currency,
                began=datetime.fromisoformat(began),
                ended=datetime.fromisoformat(ended),
                spent=spent,
                period=period,
                by_day=by == "day",
            )
        except (ValueError, TypeError) as error:
            logger.error("could not read a past rental from %s to %s: %s", began, ended, error)  # noqa: TRY400  # as above


def _ends(period: Period) -> dict[str, str]:
    """Return the parameters of a query; without an end, texts that are sorted before and after all others."""
    return {
        "since": "" if period.since is None else moment_text(period.since),
        "until": "~" if period.until is None else moment_text(period.until),
    }
