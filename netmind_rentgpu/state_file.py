"""The state file: what has to outlive a process.

One file for a user, mode 0600, which any number of threads and processes may share. What is in it belongs to an account of a
service, so that two never mix; `state_accounts` tells which. Of secrets it holds one for each account: the password that
rentals are logged into with.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.concurrency.running_loop import running_loop
from netmind_rentgpu.concurrency.threads import run_in_thread, start_thread
from netmind_rentgpu.errors import ClientStateError, StateFileError, StateFolderError
from netmind_rentgpu.fingerprint import Fingerprint
from netmind_rentgpu.settings import STATE_VARIABLE
from netmind_rentgpu.sqlite_file import (
    LONGEST_LOCK,
    Connection,
    DatabaseError,
    Identity,
    add_rows,
    fork_gate,
    identity_of,
    is_place_unusable,
    open_file,
    rows_of,
)
from netmind_rentgpu.state_accounts import account_of, tidy_names

__all__ = ["LONGEST_LOCK", "Connection", "State"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

Result = TypeVar("Result")
_Act: TypeAlias = Callable[[Connection], Any]

# From the beginning of one transaction to that of the next, for as long as there is always one that is waited for.
_GATHERING = 0.02

# Connections that are never closed, because that would release locks: inherited ones the parent's, lost ones the new file's.
_never_closed: list[Connection] = []


class State:
    """One client's way to the file, which is made when it is first needed.

    Attributes:
        path, fingerprint: of the file, and of the client's token.
        restores: takes a record's name and owner; returns True if this client puts it back where the file was lost. None for
            all records.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint) -> None:
        """Set up; the file is opened when it is first needed.

        Args:
            fingerprint: of the client's token.
        """
        self.restores: Callable[[str, str | None], bool] | None = None
        self.path: Path = path
        self.fingerprint: Fingerprint = fingerprint
        self._names_seen_to = False
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        # Device and inode of the file that is open: the path may lead to another by now, or to none.
        self._identity: Identity | None = None
        self._process = 0
        self._leaving = False
        self._waiting: list[_Entry] = []
        self._writing = False
        self._began_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        fork_gate.register(self)
        # Whose host keys count as unknown already, though the file may not have forgotten them yet.
        self._forgotten: set[int] = set()

    def account(self, connection: Connection) -> str:
        """Return the name that the client's account has in the file, for the transaction that asks."""
        return account_of(connection, str(self.fingerprint))

    async def host_key(self, container_id: int) -> str | None:
        """Return a container's host key, as it was when it was first logged into; None if it never was.

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
        """Keep a container's host key, unless there is one; return the one that is kept then.

        Raises:
            StateFileError: the file cannot be used.
        """
        conflict = "UPDATE SET public_key = excluded.public_key" if replace else "NOTHING"

        def pin(connection: Connection) -> str:
            connection.execute(
                "INSERT INTO host_keys (account, container_id, public_key) VALUES (?, ?, ?)"  # noqa: S608  # our own words
                f" ON CONFLICT (account, container_id) DO {conflict}",
                (self.account(connection), container_id, public_key),
            )
            return self._pinned(connection, container_id) or public_key

        kept = await self.write(pin)
        self._forgotten.discard(container_id)
        return kept

    def forget_host_key(self, container_id: int) -> asyncio.Future[None]:
        """Drop a container's host key, because a new container has the id; it counts as unknown at once.

        Return the future of the write, which may be a StateFileError, as for `write`.
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
        """Close the file, by and by where it is in use. It is opened again where it is needed again."""
        self._leaving = True
        self._leave_if_asked()

    def _leave_if_asked(self) -> None:
        # What is still to be written would open it again; and whoever has the lock does so when it is free again.
        while self._leaving and not self._is_awaited() and self._lock.acquire(blocking=False):
            try:
                with fork_gate.using():
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
                entry.done = running_loop().create_future()
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
        loop = running_loop()
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
            with self._lock, fork_gate.using():
                self._restore_if_moved()
        try:
            with fork_gate.using(), closing(open_file(self.path)[0]) as connection:
                self._see_to_names(connection)
                # One look, whoever writes meanwhile.
                connection.execute("BEGIN")
                return look(connection)
        except (DatabaseError, OSError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> StateFileError:
        if is_place_unusable(self.path, error):
            advice = f"choose a folder that can be written, by state=... or {STATE_VARIABLE}"
            return StateFolderError(f"cannot create or write the state file {self.path}: {error}; {advice}")
        return StateFileError(f"the state file {self.path} cannot be used: {error}")

    def _together(self, acts: Sequence[_Act]) -> list[Any]:
        """Act, all in one transaction, or each in its own where one fails; return what each returns, or how it failed.

        So an act may be done twice, the first time in vain.
        """
        with self._lock, fork_gate.using():
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
            with suppress(DatabaseError):
                connection.execute("ROLLBACK")
            return [_Failed(self._told(error))]
        return outcomes

    def _told(self, error: Exception) -> Exception:
        # The last: a number that the file cannot hold.
        if not isinstance(error, (DatabaseError, OSError, OverflowError)):
            return error
        told = self._unusable(error)
        told.__cause__ = error
        return told

    def _opened(self) -> Connection:
        if self._connection is not None and self._process != os.getpid():
            _never_closed.append(self._connection)
            self._connection = None
        if self._connection is None:
            connection, identity = open_file(self.path)
            try:
                self._see_to_names(connection)
            except BaseException:
                connection.close()
                raise
            self._connection, self._identity, self._process = connection, identity, os.getpid()
        return self._connection

    def renew_after_fork(self) -> None:
        """Replace the lock, because the thread that held it is not in the child."""
        self._lock = threading.Lock()

    def close_before_fork(self) -> None:
        """Close the connection, which parent and child open again when they need it."""
        if self._connection is not None and self._process == os.getpid():
            self._connection.close()
            self._connection = None

    def _see_to_names(self, connection: Connection) -> None:
        if not self._names_seen_to:
            tidy_names(connection, self.fingerprint)
            self._names_seen_to = True

    def _is_own(self, row: Mapping[str, Any]) -> bool:
        """Return False for a record that another process or client keeps, which restores it itself."""
        return self.restores is None or self.restores(row["name"], row["owner"])

    def _has_moved(self) -> bool:
        """Return True if the open file is not what its path leads to any more."""
        is_open = self._connection is not None and self._process == os.getpid()
        return is_open and self._identity != identity_of(self.path)

    def _restore_if_moved(self) -> None:
        """Make the file anew where its path leads to another or to none, with all rows of the one that is open.

        A record in a file without a path is lost with the process, because no other can find it.

        Raises:
            StateFileError: that is not possible.
        """
        lost = self._connection
        if lost is None or not self._has_moved():
            return
        try:
            # Before another is opened, which may take over the old one's shared memory.
            rows = rows_of(lost)
            connection, identity = open_file(self.path)
            try:
                add_rows(connection, {**rows, "rentals": [row for row in rows["rentals"] if self._is_own(row)]})
                tidy_names(connection, self.fingerprint)
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
        # Closing it would release the locks on shared memory that both may have.
        _never_closed.append(lost)


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
