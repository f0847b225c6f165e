"""Whose the rows of the state file are: an account's, which may have had several tokens.

Rows bear an account's name, which is the fingerprint of one of its tokens; the table `fingerprints` leads from the others to
it. Every transaction looks the name up anew, because another process may just have found out that two accounts are one.
"""

from __future__ import annotations

from collections.abc import Iterable

from netmind_rentgpu.fingerprint import Fingerprint
from netmind_rentgpu.sqlite_file import Connection

__all__ = ["account_of", "join_accounts", "names_of_accounts", "rename_earlier_spellings"]

_TABLES = ("host_keys", "passwords", "rentals")


def account_of(connection: Connection, fingerprint: str) -> str:
    """Return the name of the account that a fingerprint leads to: its own text, unless it was joined to another."""
    row = connection.execute("SELECT account FROM fingerprints WHERE fingerprint = ?", (fingerprint,)).fetchone()
    return fingerprint if row is None else str(row[0])


def names_of_accounts(connection: Connection) -> set[str]:
    """Return the names of all accounts that have rows."""
    names: set[str] = set()
    for table in _TABLES:
        query = f"SELECT DISTINCT CAST(account AS BLOB) FROM {table}"  # noqa: S608  # our own
        names |= {raw.decode(errors="replace") for (raw,) in connection.execute(query).fetchall()}
    return names


def join_accounts(connection: Connection, account: str, others: Iterable[str]) -> None:
    """Give one account all rows of others, and all their fingerprints, within a transaction.

    A row that both have, such as the password, stays as it is.
    """
    for other in others:
        if other == account:
            continue
        for table in _TABLES:
            moving = f"UPDATE OR IGNORE {table} SET account = ? WHERE account = ?"  # noqa: S608  # our own
            connection.execute(moving, (account, other))
            connection.execute(f"DELETE FROM {table} WHERE account = ?", (other,))  # noqa: S608  # our own
        connection.execute("UPDATE fingerprints SET account = ? WHERE account = ?", (account, other))
        connection.execute("INSERT OR REPLACE INTO fingerprints (fingerprint, account) VALUES (?, ?)", (other, account))


def rename_earlier_spellings(connection: Connection, fingerprint: Fingerprint) -> None:
    """Give a token's account what an earlier version recorded for it under another spelling of the same origin."""
    earlier = [name for name in names_of_accounts(connection) if fingerprint.is_earlier_spelling(name)]
    if earlier:
        connection.execute("BEGIN IMMEDIATE")
        join_accounts(connection, account_of(connection, str(fingerprint)), earlier)
        connection.execute("COMMIT")
