"""The state file: what has to outlive a process. The only file that knows SQLite.

One file for a user, mode 0600, which any number of threads and processes may share. What is in it belongs to an account (a
service's origin and a fingerprint of the token), so that two never mix. Of secrets it holds one for each account: the
password that rentals are logged into with.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.concurrency.threads import run_in_thread, start_thread
from netmind_rentgpu.errors import ClientStateError, StateFileError

__all__ = ["LONGEST_LOCK", "Connection", "State", "forget_host_keys"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

Result = TypeVar("Result")
Connection: TypeAlias = sqlite3.Connection
"""What an act on the file is given."""
_Act: TypeAlias = Callable[[Connection], Any]
_Identity: TypeAlias = tuple[int, int]

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
    """
    CREATE TABLE rentals (
        account TEXT NOT NULL,
        name TEXT NOT NULL,
        stage TEXT NOT NULL,
        container_id INTEGER,
        shown_name TEXT,
        node_name TEXT NOT NULL,
        gpus INTEGER NOT NULL,
        hourly_price TEXT,
        intended_at TEXT NOT NULL,
        expires_at TEXT,
        certain_at TEXT NOT NULL,
        owner TEXT,
        PRIMARY KEY (account, name)
    ) STRICT
    """,
    """
    CREATE TABLE passwords (
        account TEXT NOT NULL PRIMARY KEY,
        value TEXT NOT NULL,
        auth_id INTEGER,
        claimed_at REAL NOT NULL DEFAULT 0
    ) STRICT
    """,
)
# Another process holds the file for milliseconds, and a hundred that begin at once for seconds.
LONGEST_LOCK: Final = 30.0
"""For how many seconds the file may be in use elsewhere before that is an error."""
_PAUSE = 0.05
_MOST_OPENINGS = 5
# From the beginning of one transaction to that of the next, for as long as there is always one that is waited for.
_GATHERING = 0.02

# These are never closed: what a fork brought along, since that would release the parent's locks, and what was replaced.
_never_closed: list[Connection] = []


class State:
    """One client's way to the file, which is made when it is first needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        # Device and inode of the file that is open: the path may lead to another by now, or to none.
        self._identity: _Identity | None = None
        self._process = 0
        self._leaving = False
        self._waiting: list[_Entry] = []
        self._writing = False
        self._began_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        # Whose host keys count as unknown already, though the file may not have forgotten them yet.
        self._forgotten: set[tuple[str, int]] = set()

    async def host_key(self, account: str, container_id: int) -> str | None:
        """Return a container's host key, as it was when it was first logged into; None if it never was.

        Raises:
            StateFileError: the file cannot be used.
        """

        def find(connection: Connection) -> str | None:
            query = "SELECT public_key FROM host_keys WHERE account = ? AND container_id = ?"
            row = connection.execute(query, (account, container_id)).fetchone()
            return None if row is None else str(row[0])

        return None if (account, container_id) in self._forgotten else await self.read(find)

    async def pin_host_key(self, account: str, container_id: int, public_key: str, *, replace: bool = False) -> str:
        """Keep a container's host key, unless there is one; return the one that is kept then.

        Raises:
            StateFileError: the file cannot be used.
        """
        conflict = "UPDATE SET public_key = excluded.public_key" if replace else "NOTHING"

        def pin(connection: Connection) -> str:
            connection.execute(
                "INSERT INTO host_keys (account, container_id, public_key) VALUES (?, ?, ?)"  # noqa: S608  # our own words
                f" ON CONFLICT (account, container_id) DO {conflict}",
                (account, container_id, public_key),
            )
            query = "SELECT public_key FROM host_keys WHERE account = ? AND container_id = ?"
            return str(connection.execute(query, (account, container_id)).fetchone()[0])

        kept = await self.write(pin)
        self._forgotten.discard((account, container_id))
        return kept

    def forget_host_key(self, account: str, container_id: int) -> asyncio.Future[None]:
        """Drop a container's host key, because a new container has the id; it counts as unknown at once.

        Return the future of the write, which may be a StateFileError, as for `write`.
        """
        self._forgotten.add((account, container_id))
        return self.write_soon(lambda connection: forget_host_keys(connection, account, (container_id,)))

    def close(self) -> None:
        """Close the file, by and by where it is in use. It is opened again where it is needed again."""
        self._leaving = True
        self._leave_if_asked()

    def _leave_if_asked(self) -> None:
        # What is still to be written would open it again; and whoever has the lock does so when it is free again.
        while self._leaving and not self._is_awaited() and self._lock.acquire(blocking=False):
            try:
                self._leave()
            finally:
                self._lock.release()

    def _is_awaited(self) -> bool:
        return self._writing and self._loop is not None and self._loop.is_running()

    def _leave(self) -> None:
        if self._connection is not None and self._process == os.getpid():
            self._connection.close()
        self._connection = None
        self._leaving = False

    async def write(self, act: Callable[[Connection], Result]) -> Result:
        """Act on the file, in a transaction that is on the disk when this returns; acts that come at once share one.

        It comes to its end whoever cancels the waiting for it, and is cancelled then.

        Raises:
            StateFileError: the file cannot be used; nothing was changed.
            ClientStateError: it is just being written to in another event loop.
        """
        entry = self._enter(act)
        try:
            result: Result = await entry.done
        except asyncio.CancelledError:
            if not entry.over:
                entry.done = asyncio.get_running_loop().create_future()
                with suppress(asyncio.CancelledError):
                    await wait_shielded(entry.done)
            if not entry.done.cancelled():
                entry.done.exception()  # it is not for anybody any more
            raise
        return result

    def write_soon(self, act: Callable[[Connection], Result]) -> asyncio.Future[Result]:
        """Act on the file, after all that was to be written before, and wait for nothing; return what will come of it.

        That may be a StateFileError, as for `write`.
        """
        return self._enter(act).done

    async def read(self, look: Callable[[Connection], Result]) -> Result:
        """Look something up, in a thread; it waits for nobody who writes.

        Raises:
            StateFileError: the file cannot be used.
        """
        return await run_in_thread(lambda: self._read(look))

    def _enter(self, act: _Act) -> _Entry:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._writing and self._loop is not None and self._loop.is_running():
                raise ClientStateError(
                    "this client's state file is in use in another event loop; make one for each loop"
                )
            # What another loop waited for, which was stopped meanwhile, nobody tells it any more.
            self._loop, self._waiting, self._writing = loop, [], False
        entry = _Entry(act, loop.create_future())
        self._waiting.append(entry)
        if not self._writing:
            self._writing = True
            loop.call_soon(self._begin, loop)
        return entry

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have a thread do what waits."""
        batch, self._waiting = self._waiting, []
        self._began_at = loop.time()

        def act() -> None:
            outcomes = self._together([entry.act for entry in batch])
            # By now the loop may have been closed.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._finish, loop, batch, outcomes)

        start_thread(act)

    def _finish(self, loop: asyncio.AbstractEventLoop, batch: Sequence[_Entry], outcomes: Sequence[Any]) -> None:
        for entry, outcome in zip(batch, outcomes, strict=True):
            entry.over = True
            if entry.done.done():  # cancelled this very moment
                continue
            if isinstance(outcome, _Failed):
                entry.done.set_exception(outcome.error)
            else:
                entry.done.set_result(outcome)
        self._writing = bool(self._waiting)
        if self._writing:
            # Where many write, a transaction for each few of them would keep the event loop from its work.
            loop.call_at(self._began_at + _GATHERING, self._begin, loop)
        else:
            self._leave_if_asked()

    def _read(self, look: Callable[[Connection], Result]) -> Result:
        if self._has_moved():
            with self._lock:
                self._restore_if_moved()
        try:
            with closing(_open(self._path)[0]) as connection:
                return look(connection)
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> StateFileError:
        return StateFileError(f"the state file {self._path} cannot be used: {error}")

    def _together(self, acts: Sequence[_Act]) -> list[Any]:
        """Act, all in one transaction, or each in its own where one fails; return what each returns, or how it failed.

        So an act may be done twice, the first time in vain.
        """
        with self._lock:
            outcomes = self._in_one_transaction(acts)
        self._leave_if_asked()
        if len(outcomes) == len(acts):
            return outcomes
        return [outcome for act in acts for outcome in self._together([act])]

    def _in_one_transaction(self, acts: Sequence[_Act]) -> list[Any]:
        try:
            self._restore_if_moved()
            connection = self._opened()
            connection.execute("BEGIN IMMEDIATE")
        except Exception as error:  # noqa: BLE001  # those who wait are told, each by an error of its own
            return [_Failed(self._told(error)) for _ in acts]
        try:
            outcomes = [act(connection) for act in acts]
            connection.execute("COMMIT")
            self._restore_if_moved()
        except Exception as error:  # noqa: BLE001  # as above
            # What is about the file as a whole, as a full disk, has ended the transaction.
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            return [_Failed(self._told(error))]
        return outcomes

    def _told(self, error: Exception) -> Exception:
        # The last: a number that the file cannot hold.
        if not isinstance(error, (sqlite3.Error, OSError, OverflowError)):
            return error
        told = self._unusable(error)
        told.__cause__ = error
        return told

    def _opened(self) -> Connection:
        if self._connection is not None and self._process != os.getpid():
            _never_closed.append(self._connection)
            self._connection = None
        if self._connection is None:
            self._connection, self._identity = _open(self._path)
            self._process = os.getpid()
        return self._connection

    def _has_moved(self) -> bool:
        """Return True if the open file is not what its path leads to any more."""
        is_open = self._connection is not None and self._process == os.getpid()
        return is_open and self._identity != _identity_of(self._path)

    def _restore_if_moved(self) -> None:
        """Make the file anew where its path leads to another or to none, with all rows of the one that is open.

        What is written to a file that nobody can find would be off the record.

        Raises:
            StateFileError: that is not possible.
        """
        lost = self._connection
        if lost is None or not self._has_moved():
            return
        try:
            # Before another is opened, which may take over the old one's shared memory.
            rows = _rows_of(lost)
            connection, identity = _open(self._path)
            try:
                _add_rows(connection, rows)
            except BaseException:
                connection.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise StateFileError(
                f"the state file {self._path} was moved, deleted or replaced while it was in use, and could not be restored:"
                f" {error}"
            ) from error
        logger.error(
            "the state file %s was moved, deleted or replaced while it was in use; its rows were restored", self._path
        )
        self._connection, self._identity = connection, identity
        # Closing it would release the locks on shared memory that both may have.
        _never_closed.append(lost)


def _identity_of(path: Path) -> _Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _rows_of(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {table: connection.execute(f"SELECT * FROM {table}").fetchall() for (table,) in tables}  # noqa: S608  # our own


def _add_rows(connection: Connection, rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> None:
    """Add the rows of all tables that are not there yet."""
    connection.execute("BEGIN IMMEDIATE")
    for table, content in rows.items():
        if content:
            places = ", ".join("?" * len(content[0]))
            connection.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({places})", content)  # noqa: S608  # our own
    connection.execute("COMMIT")


def forget_host_keys(connection: Connection, account: str, container_ids: Iterable[int]) -> None:
    """Drop the host keys of containers, within a transaction."""
    connection.executemany(
        "DELETE FROM host_keys WHERE account = ? AND container_id = ?",
        [(account, container_id) for container_id in container_ids],
    )


class _Entry:
    """An act, and who waits for it.

    Attributes:
        over: it was done, or has failed.
    """

    __slots__ = ("act", "done", "over")

    def __init__(self, act: _Act, done: asyncio.Future[Any]) -> None:
        self.act = act
        self.done = done
        self.over = False


class _Failed:
    """How an act failed."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _open(path: Path) -> tuple[Connection, _Identity]:
    """Open the file, which is made where there is none; return its device and inode, too."""
    # Where a link leads to nothing yet, the file is made there.
    path = Path(os.path.realpath(path))
    for _ in range(_MOST_OPENINGS):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            with _alone_in(path.parent) as alone:
                if alone and not path.exists():
                    _remove_remains(path)
                _make(path)
        identity = _identity_of(path)
        connection = sqlite3.connect(path, timeout=LONGEST_LOCK, isolation_level=None, check_same_thread=False)
        try:
            _set_up(connection, path)
        except BaseException:
            connection.close()
            raise
        if identity is not None and _identity_of(path) == identity:
            return connection, identity
        connection.close()
    raise OSError("it is replaced again and again")


@contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """Keep other processes from making a file in a folder; give False where the system cannot do that."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # some file systems lock no folders
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _remove_remains(path: Path) -> None:
    """Remove what a deleted file has left, because SQLite would take it for the new one's."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _make(path: Path) -> None:
    """Make an empty file for its user alone; SQLite would make it readable for others.

    Under another name first: whoever closes a descriptor of a file lets go of all locks that the process has on it.
    """
    descriptor, new = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".new", dir=path.parent)
    os.close(descriptor)
    try:
        os.link(new, path)
    except FileExistsError:
        pass
    except OSError:  # some file systems have no links
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    finally:
        Path(new).unlink()


def _set_up(connection: Connection, path: Path) -> None:
    if _patiently(connection, "PRAGMA journal_mode = WAL") != "wal":
        raise StateFileError(f"the state file {path} cannot be used: processes cannot share it where it lies")
    connection.execute("PRAGMA synchronous = FULL")
    _migrate(connection, path)


def _patiently(connection: Connection, pragma: str) -> Any:
    """Ask until nobody else is just opening the file: for this SQLite does not wait by itself."""
    deadline = time.monotonic() + LONGEST_LOCK
    while True:
        try:
            return connection.execute(pragma).fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE)


def _migrate(connection: Connection, path: Path) -> None:
    def version() -> int:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])

    if version() == len(_MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    # Another process may have been first.
    if version() > len(_MIGRATIONS):
        connection.execute("ROLLBACK")
        raise StateFileError(f"the state file {path} was written by a newer version of this package")
    for number in range(version(), len(_MIGRATIONS)):
        connection.execute(_MIGRATIONS[number])
        connection.execute(f"PRAGMA user_version = {number + 1}")
    connection.execute("COMMIT")
