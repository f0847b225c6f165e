"""The accounts that the rows of the state file belong to. One account may have had several tokens.

An account's name in the rows is the fingerprint of one of its tokens; the table `fingerprints` maps its other fingerprints
to this name. Every transaction looks the name up again, because another process may have joined two accounts meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from netmind_rentgpu.fingerprint import Fingerprint
from netmind_rentgpu.sqlite_file import Connection, transaction

__all__ = [
    "account_of",
    "are_tidy",
    "drop_rows_of_past_rentals",
    "join_accounts",
    "names_of_accounts",
    "tidy_names",
]

_TABLES = ("host_keys", "passwords", "rentals", "past_rentals")


def drop_rows_of_past_rentals(connection: Connection) -> None:
    """Delete each row of an open rental that another file had as past, and each past one of a rental that has to be deleted.

    A rental is over in one file and open in another if processes have restored a lost file, one after the other.
    """
    past = "SELECT 1 FROM past_rentals AS past WHERE (past.account, past.name) = (rentals.account, rentals.name)"
    connection.execute(f"DELETE FROM rentals WHERE stage != 'abandoned' AND EXISTS ({past})")  # noqa: S608  # SQL of ours
    connection.execute("DELETE FROM past_rentals WHERE (account, name) IN (SELECT account, name FROM rentals)")


def account_of(connection: Connection, fingerprint: str) -> str:
    """Return the name of a fingerprint's account: the fingerprint itself, unless it was joined to another account."""
    row = connection.execute("SELECT account FROM fingerprints WHERE fingerprint = ?", (fingerprint,)).fetchone()
    return fingerprint if row is None else str(row[0])


def names_of_accounts(connection: Connection) -> set[str]:
    """Return the names of all accounts that have rows."""
    names: set[str] = set()
    for table in _TABLES:
        # One step through the index for each account, because the past rentals are many.
        query = (
            f"WITH RECURSIVE names (name) AS (SELECT min(account) FROM {table} UNION ALL"  # noqa: S608  # a table of ours
            f" SELECT (SELECT min(account) FROM {table} WHERE account > name) FROM names WHERE name IS NOT NULL)"
            " SELECT CAST(name AS BLOB) FROM names WHERE name IS NOT NULL"
        )
        names |= {raw.decode(errors="replace") for (raw,) in connection.execute(query).fetchall()}
    return names


def join_accounts(connection: Connection, account: str, others: Iterable[str]) -> None:
    """Move all rows and all fingerprints of other accounts to one account, within a transaction.

    Where both accounts have a row, such as the password, the one account keeps its own.
    """
    for name in others:
        # Looked up, because another process may have joined this account to a third, which then is the same account, too.
        other = account_of(connection, name)
        if other == account:
            continue
        _move_rows(connection, other, account)
        connection.execute("UPDATE fingerprints SET account = ? WHERE account = ?", (account, other))
        connection.execute("INSERT OR REPLACE INTO fingerprints (fingerprint, account) VALUES (?, ?)", (other, account))


def _move_rows(connection: Connection, name: str, account: str) -> None:
    # A password with an auth is kept over one without, because the auth proves which account it is.
    connection.execute(
        "DELETE FROM passwords WHERE account = ? AND auth_id IS NULL"
        " AND EXISTS (SELECT 1 FROM passwords WHERE account = ? AND auth_id IS NOT NULL)",
        (account, name),
    )
    for table in _TABLES:
        update = f"UPDATE OR IGNORE {table} SET account = ? WHERE account = ?"  # noqa: S608  # a table of ours
        connection.execute(update, (account, name))
        connection.execute(f"DELETE FROM {table} WHERE account = ?", (name,))  # noqa: S608  # a table of ours


def are_tidy(connection: Connection, fingerprint: Fingerprint) -> bool:
    """Return True if no row has an outdated account name."""
    names = names_of_accounts(connection)
    return not any(fingerprint.is_earlier_spelling(name) or account_of(connection, name) != name for name in names)


def tidy_names(connection: Connection, fingerprint: Fingerprint, path: Path) -> None:
    """Move rows with an outdated account name to the account's present name.

    An earlier version spelled the origin in another way; and a restored file may hold rows of an account that was joined to
    another one meanwhile.
    """
    if are_tidy(connection, fingerprint):
        return
    names = names_of_accounts(connection)
    earlier = [name for name in names if fingerprint.is_earlier_spelling(name)]
    with transaction(connection, path):
        for name in names:
            account = account_of(connection, name)
            if account != name:
                _move_rows(connection, name, account)
        join_accounts(connection, account_of(connection, str(fingerprint)), earlier)
