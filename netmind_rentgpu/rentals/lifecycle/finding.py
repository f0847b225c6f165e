"""Look-ups of one rental on record, by what a user knows of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import attrs

from netmind_rentgpu import arguments
from netmind_rentgpu.errors import InvalidArgumentError, RentalInUseError, RentalNotFoundError
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.process_identity import Liveness, liveness_of, look_up_process, this_process
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.lifecycle.account_proof import join_proven_accounts

__all__ = ["Wanted", "check_wanted", "enforced", "find_record", "in_use_error", "matching_records"]

Wanted: TypeAlias = RentalRecord | str | int
"""A record, whose name counts; a name, an unambiguous part of one, a label, or the id of a container."""

_MOST_SHOWN = 10


def check_wanted(rental: Wanted) -> str | int:
    """Return what a user names a rental by: a name or a part of one, or the id of a container.

    Raises:
        InvalidArgumentError: it is none of them.
    """
    if isinstance(rental, RentalRecord):
        return rental.name
    if isinstance(rental, str):
        text = arguments.text("rental", rental)
        if not text:
            raise InvalidArgumentError("rental", "is an empty text; give a name, a part of one, or a container's id")
        return text
    if type(rental) is not int:
        raise InvalidArgumentError(
            "rental", f"must be a RentalRecord, a name or a container's id, not {type(rental).__name__}"
        )
    return arguments.identifier("rental", rental)


def matching_records(records: Iterable[RentalRecord], wanted: str | int) -> list[RentalRecord]:
    """Return the records that a user may mean: by name; else by label; else by id; else by a part of the name.

    Args:
        wanted: as `check_wanted` returns it. A text may also be a label, or the digits of a container's id.
    """
    candidates = [record for record in records if record.may_be_rented]
    if isinstance(wanted, int):
        return [record for record in candidates if record.container_id == wanted]
    levels: tuple[Callable[[RentalRecord], bool], ...] = (
        lambda record: record.name == wanted,
        lambda record: record.label == wanted,
        lambda record: record.container_id is not None and str(record.container_id) == wanted,
        lambda record: wanted in record.name,
    )
    for level in levels:
        if found := list(filter(level, candidates)):
            return found
    return []


async def find_record(context: RentalContext, rental: Wanted) -> RentalRecord:
    """Return the one record that a user means.

    Raises:
        RentalNotFoundError: no rental on record is meant.
        InvalidArgumentError: several rentals may be meant.
        StateFileError: the state file cannot be used.
        RentGPUError: the record is another token's, and the service could not be asked whether that is this account's, too.
    """
    wanted = check_wanted(rental)
    records = await context.ledger.list_open()
    found = matching_records(records, wanted)
    if not found:
        # The rental may be on record for another token of this account.
        others = await context.ledger.read_other_accounts()
        if any(matching_records(other.records, wanted) for other in others):
            await _join(context, wanted)
            records = await context.ledger.list_open()
            found = matching_records(records, wanted)
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidArgumentError("rental", f"{_shown(wanted)} may mean any of {_names(found)}; give more of the name")
    open_rentals = [record for record in records if record.may_be_rented]
    known = f"on record are {_names(open_rentals)}" if open_rentals else "none is"
    raise RentalNotFoundError(f"no rental {_shown(wanted)} is on record in {context.ledger.path}; {known}")


def in_use_error(record: RentalRecord, why: str) -> RentalInUseError:
    """Return the error for a rental that a process holds.

    Args:
        why: which process that is, and what the caller can do.
    """
    text = f"rental {record.name} is in use: {why}"
    return RentalInUseError(text, name=record.name, container_id=record.container_id)


async def _join(context: RentalContext, wanted: str | int) -> None:
    unproven = await join_proven_accounts(context, is_wanted=lambda record: bool(matching_records([record], wanted)))
    for account in unproven:
        if not account.wanted:
            continue
        if account.error is not None:
            raise account.error
        names = _names(account.wanted)
        raise RentalNotFoundError(
            f"rental {names} is on record for another token, which nothing proves to be this account's; use that token"
        )


def _shown(wanted: str | int) -> str:
    return f"with container {wanted}" if isinstance(wanted, int) else repr(wanted)


def _names(records: Sequence[RentalRecord]) -> str:
    names = [
        (record.name if record.label is None else f"{record.name}, {record.label}")
        + ("" if record.container_id is None else f" (container {record.container_id})")
        for record in records[:_MOST_SHOWN]
    ]
    more = len(records) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def enforced(record: RentalRecord) -> RentalRecord:
    """Return a record that says which processes delete the container at its expiry."""
    here = this_process()
    found: list[str] = []
    for word, process in (("process", record.owner), ("guardian", record.guardian)):
        liveness = Liveness.DEAD if process is None else liveness_of(process, here, look_up_process)
        if process is not None and liveness is not Liveness.DEAD:
            where = "" if process.boot == here.boot else " on another machine"
            found.append(f"{word} {process.process_id}{where}")
    return attrs.evolve(record, enforced_by=" and ".join(found) or None)
