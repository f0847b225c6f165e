"""Whose the rows of the state file are: an account's, which may have had several tokens.

Rows bear an account's name, which is the fingerprint of one of its tokens; the table `fingerprints` leads from the others to
it. Every transaction looks the name up anew, because another process may just have found out that two accounts are one.
"""

from __future__ import annotations

from collections.abc import Iterable

from netmind_rentgpu.fingerprint import Fingerprint
from netmind_rentgpu.sqlite_file import Connection

__all__ = ["account_of", "join_accounts", "names_of_accounts", "tidy_names"]

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
    for name in others:
        # Another process may have joined it to a third meanwhile, which is the same then, too.
        other = account_of(connection, name)
        if other == account:
            continue
        _move_rows(connection, other, account)
        connection.execute("UPDATE fingerprints SET account = ? WHERE account = ?", (account, other))
        connection.execute("INSERT OR REPLACE INTO fingerprints (fingerprint, account) VALUES (?, ?)", (other, account))


def _move_rows(connection: Connection, name: str, account: str) -> None:
    # A password without an auth would lose what proves the account.
    connection.execute(
        "DELETE FROM passwords WHERE account = ? AND auth_id IS NULL"
        " AND EXISTS (SELECT 1 FROM passwords WHERE account = ? AND auth_id IS NOT NULL)",
        (account, name),
    )
    for table in _TABLES:
        moving = f"UPDATE OR IGNORE {table} SET account = ? WHERE account = ?"  # noqa: S608  # our own
        connection.execute(moving, (account, name))
        connection.execute(f"DELETE FROM {table} WHERE account = ?", (name,))  # noqa: S608  # our own


def tidy_names(connection: Connection, fingerprint: Fingerprint) -> None:
    """Bring rows under their accounts' names of today.

    An earlier version recorded them under another spelling of the same origin; and a file that was restored may hold rows of
    an account that was joined to another meanwhile.
    """
    names = names_of_accounts(connection)
    earlier = [name for name in names if fingerprint.is_earlier_spelling(name)]
    if not earlier and all(account_of(connection, name) == name for name in names):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for name in names:
            account = account_of(connection, name)
            if account != name:
                _move_rows(connection, name, account)
        join_accounts(connection, account_of(connection, str(fingerprint)), earlier)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
