"""The ledger: the records of one account's rentals in the state file.

A record is inserted before its create is sent. It is closed once its container is known to be gone, or is left to the user;
if it had a container, it moves to the table of past rentals then. Between, only its progress is updated, and only by the
process that the row names as its owner: a row that names another, or that is gone, was ended by another process. A claim,
which is one transaction, makes another process the owner, or none.

A full disk, like any other failure to write, has these results. A write before the create, of which the intent is the last,
raises StateFileError, and no create is sent (`provisioner._attempt`). If the first login cannot pin the host key
(`ssh/credentials.py`), or `keep` cannot close the record, entering raises StateFileError and deletes the container. If
`detach` cannot write, it raises, and leaving the block deletes the container. Later writes of a running rental are only
logged (`deletion.write_best_effort`), because the intent alone is enough to find and delete the container. The claims of
`attach`, `release` and `reap` raise.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import attrs

from netmind_rentgpu.errors import RentalEndedError, RentalExpiredError, StateFileError
from netmind_rentgpu.rentals.ledger import history
from netmind_rentgpu.rentals.ledger.budget_rows import check_budget
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.deadlines import Extension, extended
from netmind_rentgpu.rentals.ledger.past_rentals import Grouping, PastRental, Period, Share, shares_of_open
from netmind_rentgpu.rentals.ledger.process_identity import ProcessIdentity
from netmind_rentgpu.rentals.ledger.records import EndCause, RentalRecord
from netmind_rentgpu.rentals.ledger.rows import (
    COLUMNS,
    decoded,
    insertion,
    may_write,
    owner_text,
    record_of,
    row_of,
)
from netmind_rentgpu.state_accounts import join_accounts, names_of_accounts
from netmind_rentgpu.state_file import Connection, State

__all__ = ["Ledger", "OtherAccount"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_THIS_ONE: Final = "WHERE account = :account AND name = :name"
# Only `extend` writes these after the intent.
_DEADLINE: Final = ("expires_at", "time_limit", "budget")
# The columns that change while a rental goes on. The deadline is not among them, so that no owner writes it from memory.
_PROGRESS: Final = (
    *("stage", "container_id", "shown_name", "certain_at", "owner", "refused"),
    *("created_at", "ready_at", "cause", "ended_at", "release_job", "release_job_id"),
    *("idle_since", "idle_read_at"),
)


@attrs.frozen(kw_only=True)
class OtherAccount:
    """Another account of the same service in the state file, which may be this account under another token.

    Attributes:
        name: the account's name in the state file.
        records: the account's open records, without the unreadable ones.
        password: the account's own password; None if none is on record.
        auth_id: the id of that password's auth; None if it is not known.
    """

    name: str
    records: tuple[RentalRecord, ...]
    password: str | None = attrs.field(repr=False)
    auth_id: int | None


class Ledger:
    """The records of one account's rentals in the state file.

    Each method raises StateFileError if the file cannot be used. An awaited write is on the disk when its method returns.
    """

    def __init__(self, state: State, *, keep_history: timedelta | None = None) -> None:
        """Initialize.

        Args:
            keep_history: the time for which past rentals are kept; None to keep them all.
        """
        self._state = state
        self._keep_history = keep_history

    async def insert(self, record: RentalRecord, clocks: ClockReading | None = None) -> None:
        """Insert the record of an intent, which is the only time that its row is inserted.

        Args:
            clocks: the present time, at which the record's shared budget must have room for it; None for a record without.

        Raises:
            InvalidArgumentError, InsufficientBudgetError: as for `check_budget`.
        """

        def insert(connection: Connection) -> None:
            if clocks is not None:
                check_budget(connection, self._origin, record, clocks)
            self._insert(connection, record)

        await self._state.write(insert)

    async def check_budget(self, record: RentalRecord, clocks: ClockReading) -> None:
        """Check that the shared budget of a record that is to be inserted has room for it.

        Raises:
            InvalidArgumentError: there is no such budget, or it is in another currency.
            InsufficientBudgetError: it has no room.
        """
        await self._state.read(lambda connection: check_budget(connection, self._origin, record, clocks))

    @property
    def _origin(self) -> str:
        return self._state.fingerprint.origin

    async def update(self, record: RentalRecord) -> None:
        """Write the progress of a rental to its row, as the record's owner.

        Raises:
            RentalEndedError: the row does not exist any longer, names another owner, or is in a later stage: another process
                has ended the rental.
        """
        await self._state.write(self._updating(record, record.owner))

    def update_soon(self, record: RentalRecord) -> asyncio.Future[None]:
        """Start to write the progress of a rental, as `update` does; return the future of the write."""
        return self._state.write_soon(self._updating(record, record.owner))

    async def detach(self, record: RentalRecord) -> RentalRecord:
        """Write a record as detached, as its owner; return it as it is on file then.

        Raises:
            RentalEndedError: as for `update`.
        """
        update = self._updating(attrs.evolve(record, stage="detached", owner=None), record.owner)

        def detach(connection: Connection) -> RentalRecord:
            update(connection)
            return self._find(connection, record.name) or record

        return await self._state.write(detach)

    async def abandon(self, record: RentalRecord, owner: ProcessIdentity | None) -> None:
        """Write a record as abandoned, as its former owner; reopen its row if another process has closed it.

        Raises:
            RentalEndedError: another process owns it now.
        """
        update = self._updating(record, owner)

        def abandon(connection: Connection) -> None:
            # Reopened, because what another process believed to be gone is not.
            if self._is_open(connection, record.name):
                update(connection)
            else:
                self._reopen(connection, record)

        await self._state.write(abandon)

    async def reopen(self, record: RentalRecord) -> None:
        """Insert a record again whose row may have been closed although its container has to be deleted now."""

        def reopen(connection: Connection) -> None:
            if not self._is_open(connection, record.name):
                self._reopen(connection, record)

        await self._state.write(reopen)

    def _is_open(self, connection: Connection, name: str) -> bool:
        query = f"SELECT 1 FROM rentals {_THIS_ONE}"  # noqa: S608  # inserts constants only
        return connection.execute(query, self._key(connection, name)).fetchone() is not None

    def _insert(self, connection: Connection, record: RentalRecord) -> None:
        row = row_of(record)
        connection.execute(insertion("rentals", row), {**row, **self._key(connection, record.name)})

    def _reopen(self, connection: Connection, record: RentalRecord) -> None:
        history.remove(connection, self._state.account(connection), record.name)
        self._insert(connection, record)

    def _key(self, connection: Connection, name: str) -> dict[str, Any]:
        return {"account": self._state.account(connection), "name": name}

    def _write(self, connection: Connection, record: RentalRecord, columns: Iterable[str]) -> None:
        """Write some columns of a record to its row."""
        changes = ", ".join(f"{column} = :{column}" for column in columns)
        statement = f"UPDATE rentals SET {changes} {_THIS_ONE}"  # noqa: S608  # inserts names of ours
        connection.execute(statement, {**row_of(record), **self._key(connection, record.name)})

    def _updating(self, record: RentalRecord, owner: ProcessIdentity | None) -> Callable[[Connection], None]:
        def update(connection: Connection) -> None:
            # An unreadable text must not fail the query.
            query = f"SELECT CAST(stage AS BLOB), CAST(owner AS BLOB) FROM rentals {_THIS_ONE}"  # noqa: S608  # inserts constants only
            found = connection.execute(query, self._key(connection, record.name)).fetchone()
            if found is None or not may_write(found[0], found[1], record, owner):
                raise RentalEndedError(
                    f"could not record rental {record.name} as {record.stage}: another process has ended it",
                    name=record.name,
                    container_id=record.container_id,
                )
            self._write(connection, record, _PROGRESS)

        return update

    async def return_detached(self, name: str, owner: ProcessIdentity) -> None:
        """Make a claimed rental detached again, if its record still names this owner."""

        def return_detached(connection: Connection) -> None:
            connection.execute(
                f"UPDATE rentals SET stage = 'detached', owner = NULL {_THIS_ONE} AND owner = :owner",  # noqa: S608  # inserts constants only
                {**self._key(connection, name), "owner": owner_text(owner)},
            )

        await self._state.write(return_detached)

    async def claim_detached(
        self, name: str, owner: ProcessIdentity, clocks: ClockReading, *, guardian: ProcessIdentity | None = None
    ) -> RentalRecord | None:
        """Make a process the owner of a detached rental; return None if no detached rental has the name, or it has expired.

        From then on, the record's times are measured by the clock of this boot.

        Args:
            guardian: the guardian that it has from then on; None to change nothing.
        """

        def claim(connection: Connection) -> RentalRecord | None:
            record = self._find(connection, name)
            if record is None or record.stage != "detached" or record.has_expired(clocks):
                return None
            claimed = attrs.evolve(
                record.rebased(clocks), stage="ready", owner=owner, guardian=guardian or record.guardian
            )
            self._write(connection, claimed, ("stage", "owner", "guardian", "boot", "booted_at"))
            return claimed

        return await self._state.write(claim)

    async def change_guardian(self, former: Iterable[ProcessIdentity], guardian: ProcessIdentity) -> None:
        """Make a guardian that of all rentals that former ones have guarded."""
        texts = [{"former": owner_text(each), "guardian": owner_text(guardian)} for each in former]

        def change(connection: Connection) -> None:
            connection.executemany(
                "UPDATE rentals SET guardian = :guardian WHERE account = :account AND guardian = :former",
                [{**text, "account": self._state.account(connection)} for text in texts],
            )

        await self._state.write(change)

    async def find(self, name: str) -> RentalRecord | None:
        """Return a record as it is on file; None if there is none."""
        return await self._state.read(lambda connection: self._find(connection, name))

    async def hand_over(self, record: RentalRecord, clocks: ClockReading) -> None:
        """Move the record of a container that is left to the user to the past rentals, as its owner.

        Raises:
            RentalEndedError: another process has ended the rental.
        """
        update = self._updating(record, record.owner)

        def hand_over(connection: Connection) -> None:
            update(connection)
            self._close(connection, record.name, PastRental.of(record, ended_at=record.present(clocks), cause="kept"))

        await self._state.write(hand_over)

    async def extend(self, name: str, wanted: Extension, clocks: ClockReading) -> RentalRecord:
        """Move the deadline of a rental; return its record as it is on file then.

        Raises:
            InvalidArgumentError: as for `extended`.
            InsufficientBudgetError: its shared budget has no room for that.
            RentalExpiredError: its time is up.
            RentalEndedError: it is over.
        """

        def extend(connection: Connection) -> RentalRecord:
            current = self._find(connection, name)
            if current is None or current.stage == "abandoned":
                ended = None if current is None else current.container_id
                raise RentalEndedError(f"could not extend rental {name}: it is over", name=name, container_id=ended)
            if current.has_expired(clocks):
                text = f"could not extend rental {name}: its time is up"
                raise RentalExpiredError(text, name=name, container_id=current.container_id)
            moved = extended(current, wanted, clocks)
            if moved.expires_at != current.expires_at:
                check_budget(connection, self._origin, moved, clocks, is_new=False)
            self._write(connection, moved, _DEADLINE)
            return moved

        return await self._state.write(extend)

    async def record_idleness(self, before: RentalRecord, after: RentalRecord) -> bool:
        """Write since when a detached rental's machine is idle; return False if its record has changed since it was read.

        Args:
            before, after: the record as it was read, and with the values to write.
        """

        def write(connection: Connection) -> bool:
            current = self._find(connection, before.name)
            if current is None or current != before:
                return False
            self._write(connection, after, ("idle_since", "idle_read_at"))
            return True

        return await self._state.write(write)

    async def claim_for_reap(
        self, record: RentalRecord, *, is_due: Callable[[RentalRecord], bool], cause: EndCause | None = None
    ) -> RentalRecord | None:
        """Mark a record as abandoned, and return it as it is on file then.

        Return None if its stage or its owner has changed since the record was read.

        Args:
            is_due: returns False for the record as it is on file now, if it is not to be ended any longer.
            cause: the cause of its end, unless the record has one; None if a later reap finds it out, too.
        """

        def claim(connection: Connection) -> RentalRecord | None:
            # Compare values, because the file may hold another text for the same owner.
            current = self._find(connection, record.name)
            if current is None or (current.stage, current.owner) != (record.stage, record.owner) or not is_due(current):
                return None
            return self._abandon(connection, attrs.evolve(current, cause=current.cause or cause))

        return await self._state.write(claim)

    def _abandon(self, connection: Connection, current: RentalRecord) -> RentalRecord:
        abandoned = attrs.evolve(current, stage="abandoned", owner=None)
        self._write(connection, abandoned, ("stage", "owner", "cause"))
        return abandoned

    async def claim_expired(self, record: RentalRecord, clocks: ClockReading) -> RentalRecord | None:
        """Mark an owner's record as abandoned if its deadline on file has passed.

        Returns:
            The record as it is on file then: abandoned; with a later deadline; or with another owner, or none, if it was
            detached. None if it is not on file any longer.
        """

        def claim(connection: Connection) -> RentalRecord | None:
            current = self._find(connection, record.name)
            if current is None or current.owner != record.owner or not current.has_expired(clocks):
                return current
            return self._abandon(connection, current)

        return await self._state.write(claim)

    async def close(self, name: str, past: PastRental | None, *, containers: Iterable[int] = ()) -> None:
        """Close a record: move it to the past rentals, or delete it if nothing of it has existed.

        Nothing moves if another process has closed the record, because it is a past rental already.

        Args:
            past: the past rental; None if the record had no container. A cause on file comes before its cause.
            containers: the ids of the record's deleted containers, whose host keys are deleted, too.
        """
        deleted = tuple(containers)

        def close(connection: Connection) -> None:
            self._close(connection, name, past)
            self._state.forget_host_keys(connection, deleted)

        await self._state.write(close)

    def _close(self, connection: Connection, name: str, past: PastRental | None) -> None:
        key = self._key(connection, name)
        statement = f"DELETE FROM rentals {_THIS_ONE} RETURNING cause"  # noqa: S608  # inserts constants only
        closed = connection.execute(statement, key).fetchone()
        if closed is None or past is None:
            return
        account = self._state.account(connection)
        history.add(connection, account, attrs.evolve(past, cause=closed[0] or past.cause))
        if self._keep_history is not None:
            history.prune(connection, self._state.fingerprint.origin, account, past, self._keep_history)

    async def add_past(self, past: PastRental) -> None:
        """Add a past rental whose record stays, because its owner may live."""
        await self._state.write(lambda connection: history.add(connection, self._state.account(connection), past))

    async def list_past(self, period: Period, label: str | None) -> list[PastRental]:
        """Return the past rentals that ran in a period, in the order of their ends.

        Args:
            label: the label that they must have; None for any.
        """
        return await self._state.read(
            lambda connection: list(history.list_past(connection, self._state.account(connection), period, label))
        )

    async def shares(self, period: Period, by: Grouping, clocks: ClockReading) -> list[Share]:
        """Return what past and open rentals have cost in a period, open rentals until now."""

        def find(connection: Connection) -> list[Share]:
            account = self._state.account(connection)
            past = list(history.shares_of_past(connection, account, period, by))
            records, _ = _records_of(connection, account)
            return past + [share for record in records for share in shares_of_open(record, period, by, clocks)]

        return await self._state.read(find)

    def forget_host_key_soon(self, container_id: int) -> asyncio.Future[None]:
        """Delete the host key of an earlier container that had the same id; return the future of the write."""
        return self._state.forget_host_key(container_id)

    async def list_open(self) -> list[RentalRecord]:
        """Return all readable records, the oldest first; log an error for each unreadable record."""
        records, unreadable = await self.read_open()
        for error in unreadable.values():
            logger.error("%s", error)
        return records

    async def read_open(self) -> tuple[list[RentalRecord], dict[str, StateFileError]]:
        """Return all readable records, the oldest first, and the error of each unreadable record, by its name."""
        return await self._state.read(lambda connection: _records_of(connection, self._state.account(connection)))

    async def read_other_accounts(self) -> list[OtherAccount]:
        """Return the other accounts of the same service that may be this account under another token.

        These are all accounts with open records and, as long as this account has no password of its own, all accounts with a
        password.
        """

        def find(connection: Connection) -> list[OtherAccount]:
            # Otherwise, one text that is not UTF-8 would fail the whole query.
            connection.text_factory = decoded
            own = self._state.account(connection)
            query = "SELECT account, value, auth_id FROM passwords"
            passwords = {account: (value, auth_id) for account, value, auth_id in connection.execute(query).fetchall()}
            found: list[OtherAccount] = []
            for name in sorted(names_of_accounts(connection) - {own}):
                if not self._state.fingerprint.is_of_same_service(name):
                    continue
                records, unreadable = _records_of(connection, name)
                password, auth_id = passwords.get(name, (None, None))
                for error in unreadable.values():
                    logger.error("%s", error)
                if records or (password is not None and own not in passwords):
                    found.append(OtherAccount(name=name, records=tuple(records), password=password, auth_id=auth_id))
            return found

        return await self._state.read(find)

    async def join(self, others: Iterable[str]) -> None:
        """Join other accounts to this one, because they are the same account under other tokens."""
        names = tuple(others)
        await self._state.write(lambda connection: join_accounts(connection, self._state.account(connection), names))

    @property
    def was_used(self) -> bool:
        """True if this client has opened the state file."""
        return self._state.was_opened

    @property
    def fingerprint(self) -> str:
        """The fingerprint of this account's token."""
        return str(self._state.fingerprint)

    @property
    def path(self) -> Path:
        """The path of the state file."""
        return self._state.path

    def _find(self, connection: Connection, name: str) -> RentalRecord | None:
        query = f"SELECT {COLUMNS} FROM rentals {_THIS_ONE}"  # noqa: S608  # inserts constants only
        row = connection.execute(query, self._key(connection, name)).fetchone()
        return None if row is None else record_of(row)


def _records_of(connection: Connection, account: str) -> tuple[list[RentalRecord], dict[str, StateFileError]]:
    # Otherwise, one text that is not UTF-8 would fail the whole query.
    connection.text_factory = decoded
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM rentals WHERE account = ? ORDER BY intended_at, name",  # noqa: S608  # inserts constants only
        (account,),
    )
    records: list[RentalRecord] = []
    unreadable: dict[str, StateFileError] = {}
    for row in rows:
        try:
            records.append(record_of(row))
        except StateFileError as error:
            unreadable[row[0]] = error
    return records, unreadable
