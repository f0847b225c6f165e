"""The state file: the data that has to outlive a process.

Each user has one file, with mode 0600, which any number of threads and processes may share. Its rentals, host keys and
passwords belong to an account of a service, so that accounts never mix; `state_accounts` finds the account. The file holds
one secret for each account: the password for logging in to its rentals.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.concurrency.running_loop import running_loop
from netmind_rentgpu.concurrency.threads import run_in_thread, start_thread
from netmind_rentgpu.errors import ClientStateError, StateFileError, StateFolderError
from netmind_rentgpu.fingerprint import Fingerprint
from netmind_rentgpu.sqlite_file import (
    Connection,
    DatabaseError,
    Identity,
    add_rows,
    check_version,
    copy_in_memory,
    fork_gate,
    identity_of,
    is_place_unusable,
    open_file,
    open_for_reading,
    rows_of,
)
from netmind_rentgpu.state_accounts import account_of, are_tidy, drop_rows_of_past_rentals, tidy_names
from netmind_rentgpu.state_path import STATE_VARIABLE

__all__ = ["LONGEST_LOCK", "Connection", "State"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

Result = TypeVar("Result")
_Act: TypeAlias = Callable[[Connection], Any]

LONGEST_LOCK: Final = 30.0
"""The seconds for which another process or thread may lock the file before that is an error.

They are enough, because a process locks the file for milliseconds, and a hundred that start at once lock it for seconds.
"""
# The least seconds from the start of one transaction to the start of the next, while writes keep coming.
_LEAST_BETWEEN_TRANSACTIONS = 0.02

# Connections that must never be closed: closing an inherited one would release the parent's locks, and closing one to a file
# that was moved or deleted would release the locks on the file that replaces it.
_never_closed: list[Connection] = []


class State:
    """One client's access to the file, which is created when first needed.

    Attributes:
        path: the path of the file.
        fingerprint: the fingerprint of the client's token.
        restores: returns True for the name and owner of a record that this client restores if the file is lost; None to
            restore all records.
        was_opened: True once the file was opened.
        longest_lock: the seconds for which another process or thread may lock the file before that is an error.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint) -> None:
        """Set up the access; it opens the file when it is first needed.

        Args:
            fingerprint: the fingerprint of the client's token.
        """
        self.restores: Callable[[str, str | None], bool] | None = None
        self.longest_lock: float = LONGEST_LOCK
        self.was_opened: bool = False
        self.path: Path = path
        self.fingerprint: Fingerprint = fingerprint
        self._names_are_tidy = False
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        # The identity of the open file, because the path may lead to another file by now, or to none.
        self._identity: Identity | None = None
        self._process = 0
        self._is_closing = False
        self._waiting: list[_Entry] = []
        self._writing = False
        self._began_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        fork_gate.register(self)
        # The containers whose host keys count as unknown, although the write that drops them may not be done yet.
        self._forgotten: set[int] = set()

    def account(self, connection: Connection) -> str:
        """Return the name that the client's account has in the file, as the current transaction sees it."""
        return account_of(connection, str(self.fingerprint))

    async def host_key(self, container_id: int) -> str | None:
        """Return the host key that a container had at its first login; None if there was no login.

        Raises:
            StateFileError: the file cannot be used.
        """

        def find(connection: Connection) -> str | None:
            return self._pinned(connection, container_id)

        return None if container_id in self._forgotten else await self.read(find)

    def _pinned(self, connection: Connection, container_id: int) -> str | None:
        query = "SELECT public_key FROM host_keys WHERE account = ? AND container_id = ?"
        row = connection.execute(query, (self.account(connection), container_id)).fetchone()
        return None if row is None else str(row[0])

    async def pin_host_key(self, container_id: int, public_key: str, *, replace: bool = False) -> str:
        """Keep a container's host key, unless the file has one for the container; return the key that the file has then.

        Args:
            replace: True to replace a key that the file has.

        Raises:
            StateFileError: the file cannot be used.
        """
        conflict = "UPDATE SET public_key = excluded.public_key" if replace else "NOTHING"

        def pin(connection: Connection) -> str:
            connection.execute(
                "INSERT INTO host_keys (account, container_id, public_key) VALUES (?, ?, ?)"  # noqa: S608  # SQL of ours
                f" ON CONFLICT (account, container_id) DO {conflict}",
                (self.account(connection), container_id, public_key),
            )
            return self._pinned(connection, container_id) or public_key

        kept = await self.write(pin)
        self._forgotten.discard(container_id)
        return kept

    def forget_host_key(self, container_id: int) -> asyncio.Future[None]:
        """Drop a container's host key, because a new container has the id. The key counts as unknown at once.

        Return the future of the write, which may raise a StateFileError as `write` does.
        """
        self._forgotten.add(container_id)
        return self.write_soon(lambda connection: self.forget_host_keys(connection, (container_id,)))

    def forget_host_keys(self, connection: Connection, container_ids: Iterable[int]) -> None:
        """Drop the host keys of containers, within a transaction."""
        account = self.account(connection)
        connection.executemany(
            "DELETE FROM host_keys WHERE account = ? AND container_id = ?",
            [(account, container_id) for container_id in container_ids],
        )

    def close(self) -> None:
        """Close the file, at once or after the last write. A later use opens it again."""
        self._is_closing = True
        self._close_if_asked()

    def _close_if_asked(self) -> None:
        # Not now if a write would open the file again, or if a thread has the lock: the thread calls this when it is done.
        while self._is_closing and not self._is_awaited() and self._lock.acquire(blocking=False):
            try:
                with fork_gate.using():
                    self._close_connection()
            finally:
                self._lock.release()

    def _is_awaited(self) -> bool:
        return self._writing and self._loop is not None and self._loop.is_running()

    def _close_connection(self) -> None:
        if self._connection is not None and self._process == os.getpid():
            self._connection.close()
        self._connection = None
        self._is_closing = False

    async def write(self, act: Callable[[Connection], Result]) -> Result:
        """Call a function with a connection to the file, in a transaction that is on the disk when this returns.

        Writes that begin at the same time share one transaction. A cancelled caller waits for the transaction, too, and is
        cancelled then.

        Raises:
            StateFileError: the file cannot be used; nothing was changed.
            ClientStateError: this client is just writing to the file in another event loop.
        """
        entry = self._enqueue(act)
        try:
            result: Result = await entry.done
        except asyncio.CancelledError:
            if not entry.over:
                entry.done = running_loop().create_future()
                with suppress(asyncio.CancelledError):
                    await wait_shielded(entry.done)
            if not entry.done.cancelled():
                entry.done.exception()  # read, because asyncio logs an error that no caller has read
            raise
        return result

    def write_soon(self, act: Callable[[Connection], Result]) -> asyncio.Future[Result]:
        """Call a function with a connection, after all earlier writes; return the future of its result without waiting.

        The future may raise a StateFileError as `write` does.
        """
        return self._enqueue(act).done

    async def read(self, look: Callable[[Connection], Result]) -> Result:
        """Call a function with a connection, in a thread, to look something up. A read does not wait for writers.

        Raises:
            StateFileError: the file cannot be used.
        """
        return await run_in_thread(lambda: self._read(look))

    def _enqueue(self, act: _Act) -> _Entry:
        loop = running_loop()
        if self._loop is not loop:
            if self._writing and self._loop is not None and self._loop.is_running():
                raise ClientStateError(
                    "this client writes to its state file in another event loop; make one client for each loop"
                )
            # Dropped, because the other loop was stopped, so that no caller there can get a result any more.
            self._loop, self._waiting, self._writing = loop, [], False
        entry = _Entry(act, loop.create_future())
        self._waiting.append(entry)
        if not self._writing:
            self._writing = True
            loop.call_soon(self._begin, loop)
        return entry

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start a thread that does the waiting writes."""
        batch, self._waiting = self._waiting, []
        self._began_at = loop.time()

        def act() -> None:
            outcomes = self._together([entry.act for entry in batch])
            # The loop may be closed by now.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._finish, loop, batch, outcomes)

        start_thread(act)

    def _finish(self, loop: asyncio.AbstractEventLoop, batch: Sequence[_Entry], outcomes: Sequence[Any]) -> None:
        for entry, outcome in zip(batch, outcomes, strict=True):
            entry.over = True
            if entry.done.done():  # the caller was cancelled meanwhile
                continue
            if isinstance(outcome, _Failed):
                entry.done.set_exception(outcome.error)
            else:
                entry.done.set_result(outcome)
        self._writing = bool(self._waiting)
        if self._writing:
            # Not at once, because many small transactions would keep the event loop busy.
            loop.call_at(self._began_at + _LEAST_BETWEEN_TRANSACTIONS, self._begin, loop)
        else:
            self._close_if_asked()

    def _read(self, look: Callable[[Connection], Result]) -> Result:
        if self._has_moved():
            with self._lock, fork_gate.using():
                self._restore_if_moved()
        try:
            with fork_gate.using(), closing(self._opened_for_reading()) as connection:
                self.was_opened = True
                # In a transaction, so that all queries see the same state of the file.
                connection.execute("BEGIN")
                return look(connection)
        except (DatabaseError, OSError) as error:
            raise self._unusable(error) from error

    def _opened_for_reading(self) -> Connection:
        connection = open_for_reading(self.path, self.longest_lock)
        try:
            if not self._names_are_tidy and not are_tidy(connection, self.fingerprint):
                connection = copy_in_memory(connection, self.path)
                tidy_names(connection, self.fingerprint, self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _unusable(self, error: Exception) -> StateFileError:
        if is_place_unusable(self.path, error):
            advice = f"choose a folder that can be written, with state=... or {STATE_VARIABLE}"
            return StateFolderError(f"cannot create or write the state file {self.path}: {error}; {advice}")
        return StateFileError(f"cannot use the state file {self.path}: {error}")

    def _together(self, acts: Sequence[_Act]) -> list[Any]:
        """Call functions, all in one transaction, or each in its own if one fails; return the result or failure of each.

        If one fails, the others are called twice, the first time without effect.
        """
        with self._lock, fork_gate.using():
            outcomes = self._in_one_transaction(acts)
        self._close_if_asked()
        if len(outcomes) == len(acts):
            return outcomes
        return [outcome for act in acts for outcome in self._together([act])]

    def _in_one_transaction(self, acts: Sequence[_Act]) -> list[Any]:
        try:
            self._restore_if_moved()
            connection = self._opened()
            connection.execute("BEGIN IMMEDIATE")
            # Again, because a newer version may have migrated the file while this process had it open.
            check_version(connection, self.path)
        except Exception as error:  # noqa: BLE001  # each caller gets an error of its own
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            return [_Failed(self._public_error(error)) for _ in acts]
        try:
            outcomes = [act(connection) for act in acts]
            connection.execute("COMMIT")
            self._restore_if_moved()
        except Exception as error:  # noqa: BLE001  # as above
            # The transaction may be over, because an error of the whole file, such as a full disk, ends it.
            with suppress(DatabaseError):
                connection.execute("ROLLBACK")
            return [_Failed(self._public_error(error))]
        return outcomes

    def _public_error(self, error: Exception) -> Exception:
        # sqlite3 raises OverflowError for a number that the file cannot hold.
        if not isinstance(error, (DatabaseError, OSError, OverflowError)):
            return error
        public = self._unusable(error)
        public.__cause__ = error
        return public

    def _opened(self) -> Connection:
        if self._connection is not None and self._process != os.getpid():
            _never_closed.append(self._connection)
            self._connection = None
        if self._connection is None:
            connection, identity = open_file(self.path, self.longest_lock)
            try:
                self._tidy_names(connection)
            except BaseException:
                connection.close()
                raise
            self._connection, self._identity, self._process = connection, identity, os.getpid()
            self.was_opened = True
        return self._connection

    def renew_after_fork(self) -> None:
        """Replace the lock, because the thread that held it is not in the child."""
        self._lock = threading.Lock()

    def close_before_fork(self) -> None:
        """Close the connection. Parent and child open it again when they need it."""
        if self._connection is not None and self._process == os.getpid():
            self._connection.close()
            self._connection = None

    def _tidy_names(self, connection: Connection) -> None:
        if not self._names_are_tidy:
            tidy_names(connection, self.fingerprint, self.path)
            self._names_are_tidy = True

    def _is_own(self, row: Mapping[str, Any]) -> bool:
        """Return False for a record of another process or client, which restores the record itself."""
        return self.restores is None or self.restores(row["name"], row["owner"])

    def _has_moved(self) -> bool:
        """Return True if the path does not lead to the open file any more."""
        is_open = self._connection is not None and self._process == os.getpid()
        return is_open and self._identity != identity_of(self.path)

    def _restore_if_moved(self) -> None:
        """Restore the rows of the open file to its path, if the path leads to another file or to none.

        Otherwise the rows would be lost with this process, because no other process can find the open file.

        Raises:
            StateFileError: the rows cannot be restored.
        """
        lost = self._connection
        if lost is None or not self._has_moved():
            return
        try:
            # Read before another file is opened, which may take over the shared memory of the old one.
            rows = rows_of(lost)
            connection, identity = open_file(self.path, self.longest_lock)
            try:
                own = [row for row in rows["rentals"] if self._is_own(row)]
                add_rows(connection, {**rows, "rentals": own}, self.path, then=drop_rows_of_past_rentals)
                tidy_names(connection, self.fingerprint, self.path)
            except BaseException:
                connection.close()
                raise
        except (DatabaseError, OSError) as error:
            raise StateFileError(
                f"the state file {self.path} was moved, deleted or replaced while it was in use, and could not be restored:"
                f" {error}"
            ) from error
        logger.error(
            "the state file %s was moved, deleted or replaced while it was in use; its rows were restored", self.path
        )
        self._connection, self._identity = connection, identity
        # Not closed, because that would release locks on shared memory that both files may use.
        _never_closed.append(lost)


class _Entry:
    """A function that writes to the file, and the future of its result.

    Attributes:
        over: True once the function has returned or failed.
    """

    __slots__ = ("act", "done", "over")

    def __init__(self, act: _Act, done: asyncio.Future[Any]) -> None:
        self.act = act
        self.done = done
        self.over = False


class _Failed:
    """The failure of one function."""

    def __init__(self, error: Exception) -> None:
        self.error = error
