"""The state file: what has to outlive a process. The only file that knows SQLite.

One file for a user, mode 0600, which any number of threads and processes may share. What is in it belongs to an account (a
service's origin and a fingerprint of the token), so that two never mix. It holds no secret.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, TypeVar

from netmind_rentgpu.errors import LedgerError

__all__ = ["State"]

Result = TypeVar("Result")

# Each brings the file from its place in this list to the next version.
_MIGRATIONS: Final = (
    """
    CREATE TABLE host_keys (
        account TEXT NOT NULL,
        container_id INTEGER NOT NULL,
        public_key TEXT NOT NULL,
        pinned_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
        PRIMARY KEY (account, container_id)
    ) STRICT
    """,
)
# Another process holds the file for milliseconds, unless something is wrong with it.
_LONGEST_LOCK = 10.0

# What a fork brought along is never closed: that would release the parent's locks.
_inherited: list[sqlite3.Connection] = []


class State:
    """One client's way to the file, which is made when it is first needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._leaving = False

    async def host_key(self, account: str, container_id: int) -> str | None:
        """Return a container's host key, as it was when it was first logged into; None if it never was.

        Raises:
            LedgerError: the file cannot be used.
        """

        def find(connection: sqlite3.Connection) -> str | None:
            query = "SELECT public_key FROM host_keys WHERE account = ? AND container_id = ?"
            row = connection.execute(query, (account, container_id)).fetchone()
            return None if row is None else str(row[0])

        return await asyncio.to_thread(self._read, find)

    async def pin_host_key(self, account: str, container_id: int, public_key: str, *, replace: bool = False) -> str:
        """Keep a container's host key, unless there is one; return the one that is kept then.

        Raises:
            LedgerError: the file cannot be used.
        """
        conflict = "UPDATE SET public_key = excluded.public_key" if replace else "NOTHING"

        def pin(connection: sqlite3.Connection) -> str:
            connection.execute(
                "INSERT INTO host_keys (account, container_id, public_key) VALUES (?, ?, ?)"  # noqa: S608  # our own words
                f" ON CONFLICT (account, container_id) DO {conflict}",
                (account, container_id, public_key),
            )
            query = "SELECT public_key FROM host_keys WHERE account = ? AND container_id = ?"
            return str(connection.execute(query, (account, container_id)).fetchone()[0])

        return await self._run(pin)

    def close(self) -> None:
        """Close the file, by and by where it is in use. It is opened again where it is needed again."""
        self._leaving = True
        if self._lock.acquire(blocking=False):
            try:
                self._leave()
            finally:
                self._lock.release()

    def _leave(self) -> None:
        if self._connection is not None and self._process == os.getpid():
            self._connection.close()
        self._connection = None
        self._leaving = False

    async def _run(self, act: Callable[[sqlite3.Connection], Result]) -> Result:
        """Act on the file in a thread, in a transaction that is on the disk when this returns."""
        return await asyncio.to_thread(self._at_once, act)

    def _read(self, look: Callable[[sqlite3.Connection], Result]) -> Result:
        """Look something up, over a connection of its own: it waits for nobody who writes."""
        try:
            with closing(_open(self._path)) as connection:
                return look(connection)
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> LedgerError:
        return LedgerError(f"the state file {self._path} cannot be used: {error}")

    def _at_once(self, act: Callable[[sqlite3.Connection], Result]) -> Result:
        with self._lock:
            try:
                connection = self._opened()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    result = act(connection)
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                raise self._unusable(error) from error
            finally:
                if self._leaving:
                    self._leave()
            return result

    def _opened(self) -> sqlite3.Connection:
        if self._connection is not None and self._process != os.getpid():
            _inherited.append(self._connection)
            self._connection = None
        if self._connection is None:
            self._connection = _open(self._path)
            self._process = os.getpid()
        return self._connection


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite would make it readable for others.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=_LONGEST_LOCK, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    def version() -> int:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])

    if version() == len(_MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    # Another process may have been first.
    if version() > len(_MIGRATIONS):
        connection.execute("ROLLBACK")
        raise LedgerError(f"the state file {path} was written by a newer version of this package")
    for number in range(version(), len(_MIGRATIONS)):
        connection.execute(_MIGRATIONS[number])
        connection.execute(f"PRAGMA user_version = {number + 1}")
    connection.execute("COMMIT")
