"""The rows of the tables of open and past rentals: values to what the file holds, and back, with checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, TypeAlias, get_args

import attrs

from netmind_rentgpu.amounts import MILLIONTH, in_own_context
from netmind_rentgpu.errors import StateFileError
from netmind_rentgpu.rentals.ledger.past_rentals import PastRental, millionths
from netmind_rentgpu.rentals.ledger.process_identity import ProcessIdentity
from netmind_rentgpu.rentals.ledger.records import EndCause, RentalRecord, Stage, is_legal_change

__all__ = [
    "COLUMNS",
    "PAST_COLUMNS",
    "STAGES",
    "decoded",
    "insertion",
    "may_write",
    "moment_text",
    "owner_text",
    "past_rental_of",
    "read_owner",
    "record_of",
    "row_of",
]

STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
_CAUSES: Final[tuple[EndCause, ...]] = get_args(EndCause)
# Outside these years, a sum of times could be out of the range of a datetime.
_EARLIEST, _LATEST = 1970, 3000
# No system's process ids are as large.
_TOO_LARGE = 2**31

_Conversion: TypeAlias = tuple[Callable[[Any], Any], Callable[[Any], Any]]


def decoded(raw: bytes) -> str:
    """Return a text of the file, in which bytes that are not UTF-8 are escaped."""
    return raw.decode("utf-8", "backslashreplace")


def _as_it_is(value: Any) -> Any:
    return value


def _read_stage(text: str) -> Stage:
    for stage in STAGES:
        if stage == text:
            return stage
    raise ValueError(f"{text!r} is no stage")


def _read_cause(text: str) -> EndCause | None:
    return next((cause for cause in _CAUSES if cause == text), None)


def _read_price(text: str) -> Decimal:
    price = Decimal(text)
    if not price.is_finite():
        raise ValueError(f"{text!r} is no price")
    return price


def _read_moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    if not _EARLIEST <= moment.year <= _LATEST:
        raise ValueError(f"{text!r} is out of range")
    return moment


def read_owner(text: str) -> ProcessIdentity | None:
    """Return the owner that a record's text describes; None if the text cannot be read."""
    try:
        return _read_owner(text)
    except (ValueError, TypeError, RecursionError):
        return None


def _read_owner(text: str) -> ProcessIdentity:
    owner = ProcessIdentity(**json.loads(text))
    marks = (owner.machine, owner.boot, owner.namespace, owner.started)
    if (
        type(owner.process_id) is not int
        or not 0 < owner.process_id < _TOO_LARGE
        or not all(type(mark) is str for mark in marks)
    ):
        raise ValueError(f"{text!r} is no process")
    return owner


def may_write(stage: bytes | None, owner: bytes | None, record: RentalRecord, writer: ProcessIdentity | None) -> bool:
    """Return True if a row may become a record, written by a process.

    Args:
        stage, owner: the texts of the row, which may be unreadable.
    """
    known_stage, named = (None if raw is None else decoded(raw) for raw in (stage, owner))
    # Compare values, because the file may hold another text for the same owner.
    is_writers = writer is None if named is None else writer is not None and read_owner(named) == writer
    # An abandoned record has no owner, and is ended by whichever process gets to it.
    is_over = named is None and known_stage == record.stage == "abandoned"
    is_legal = all(is_legal_change(known, record.stage) for known in STAGES if known == known_stage)
    return (is_writers or is_over) and is_legal


def moment_text(moment: datetime) -> str:
    """Return the text of a time in UTC."""
    # Each text has the same number of digits, because texts then sort in the order of their times.
    return moment.isoformat(timespec="microseconds")


@lru_cache(maxsize=16)
def owner_text(owner: ProcessIdentity) -> str:
    """Return the text by which a row names its owner."""
    return json.dumps(attrs.asdict(owner))


_PLAIN: Final[_Conversion] = (_as_it_is, _as_it_is)
_PRICE: Final[_Conversion] = (str, _read_price)
_MOMENT: Final[_Conversion] = (moment_text, _read_moment)
_CAUSE: Final[_Conversion] = (_as_it_is, _read_cause)
_SECONDS: Final[_Conversion] = (timedelta.total_seconds, lambda seconds: timedelta(seconds=seconds))
# Whole millionths, so that SQLite sums them without an error.
_AMOUNT: Final[_Conversion] = (millionths, in_own_context(lambda number: number * MILLIONTH))

# The columns of a table, which are the fields of its values; a value that is None stands in the file as NULL.
_OPEN: Final[Mapping[str, _Conversion]] = {
    "name": _PLAIN,
    "stage": (_as_it_is, _read_stage),
    "container_id": _PLAIN,
    "shown_name": _PLAIN,
    "node_name": _PLAIN,
    "gpus": _PLAIN,
    "hourly_price": _PRICE,
    "intended_at": _MOMENT,
    "expires_at": _MOMENT,
    "certain_at": _MOMENT,
    "owner": (owner_text, _read_owner),
    "boot": _PLAIN,
    "booted_at": _MOMENT,
    "longest_create": _SECONDS,
    "refused": (_as_it_is, bool),
    "time_limit": _MOMENT,
    "budget": _PRICE,
    "spent_before": _PRICE,
    "extendable_to": _MOMENT,
    "label": _PLAIN,
    "gpu_name": _PLAIN,
    "region": _PLAIN,
    "image": _PLAIN,
    "currency": _PLAIN,
    "created_at": _MOMENT,
    "ready_at": _MOMENT,
    "cause": _CAUSE,
    "ended_at": _MOMENT,
    "shared_budget": _PLAIN,
    "guardian": (owner_text, read_owner),
    "release_job": _PLAIN,
    "release_job_id": _PLAIN,
    "idle_timeout": _SECONDS,
    "idle_since": _MOMENT,
    "idle_read_at": _MOMENT,
}
_PAST: Final[Mapping[str, _Conversion]] = {
    "name": _PLAIN,
    "label": _PLAIN,
    "container_id": _PLAIN,
    "gpu_name": _PLAIN,
    "gpus": _PLAIN,
    "node_name": _PLAIN,
    "region": _PLAIN,
    "image": _PLAIN,
    "hourly_price": _PRICE,
    "currency": _PLAIN,
    "intended_at": _MOMENT,
    "created_at": _MOMENT,
    "ready_at": _MOMENT,
    "ended_at": _MOMENT,
    "cause": _CAUSE,
    "spent": _AMOUNT,
    "shared_budget": _PLAIN,
}
# The fields that have no default; None is left to the default of any other.
_REQUIRED: Final = ("hourly_price", "expires_at")
COLUMNS: Final = ", ".join(_OPEN)
PAST_COLUMNS: Final = ", ".join(_PAST)


def row_of(value: RentalRecord | PastRental) -> dict[str, Any]:
    """Return what the file holds of a record, or of a past rental, by its column."""
    columns = _OPEN if isinstance(value, RentalRecord) else _PAST
    fields = {column: getattr(value, column) for column in columns}
    return {column: None if fields[column] is None else columns[column][0](fields[column]) for column in columns}


def insertion(table: str, row: Mapping[str, Any]) -> str:
    """Return the statement that inserts a row of an account, by named parameters."""
    places = ", ".join(f":{column}" for column in row)
    return f"INSERT INTO {table} (account, {', '.join(row)}) VALUES (:account, {places})"  # noqa: S608  # names of ours


def record_of(row: tuple[Any, ...]) -> RentalRecord:
    """Return the record of a row, whose values are in the order of `COLUMNS`.

    Raises:
        StateFileError: a value cannot be read.
    """
    try:
        return RentalRecord(**_fields(_OPEN, row))
    except (ValueError, ArithmeticError, TypeError, RecursionError) as error:
        name, _, container_id, *_ = row
        container = "its container" if container_id is None else f"container {container_id}"
        raise StateFileError(
            f"could not read the record of rental {name}: {error}; {container} may still run, so delete it first, and then"
            " this row of the table `rentals` in the state file"
        ) from error


def past_rental_of(row: tuple[Any, ...]) -> PastRental:
    """Return the past rental of a row, whose values are in the order of `PAST_COLUMNS`.

    Raises:
        StateFileError: a value cannot be read.
    """
    try:
        return PastRental(**_fields(_PAST, row))
    except (ValueError, ArithmeticError, TypeError) as error:
        raise StateFileError(
            f"could not read past rental {row[0]}: {error}; delete its row of the table `past_rentals` in the state file"
        ) from error


def _fields(columns: Mapping[str, _Conversion], row: tuple[Any, ...]) -> dict[str, Any]:
    fields = {
        column: None if value is None else read(value)
        for (column, (_, read)), value in zip(columns.items(), row, strict=True)
    }
    return {column: value for column, value in fields.items() if value is not None or column in _REQUIRED}
