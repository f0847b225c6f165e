"""The rows of the table of rentals: records to the values of a row, and back, with checks of what the file holds."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, get_args

import attrs

from netmind_rentgpu.errors import StateFileError
from netmind_rentgpu.rentals.ledger.process_identity import ProcessIdentity
from netmind_rentgpu.rentals.ledger.records import RentalRecord, Stage

__all__ = ["ALL_COLUMNS", "COLUMNS", "STAGES", "decoded", "owner_text", "read_owner", "record_of", "row_of"]

STAGES: tuple[Stage, ...] = get_args(Stage)
# Outside these years, a sum of times could be out of the range of a datetime.
_EARLIEST, _LATEST = 1970, 3000
# No system's process ids are as large.
_TOO_LARGE = 2**31

COLUMNS = (
    "name",
    "stage",
    "container_id",
    "shown_name",
    "node_name",
    "gpus",
    "hourly_price",
    "intended_at",
    "expires_at",
    "certain_at",
    "owner",
    "boot",
    "booted_at",
    "longest_create",
    "refused",
    "time_limit",
    "budget",
    "spent_before",
    "extendable_to",
    "label",
)
ALL_COLUMNS = ", ".join(COLUMNS)


def row_of(record: RentalRecord) -> tuple[Any, ...]:
    """Return the values of a record's row, in the order of `COLUMNS`."""
    return (
        record.name,
        record.stage,
        record.container_id,
        record.shown_name,
        record.node_name,
        record.gpus,
        None if record.hourly_price is None else str(record.hourly_price),
        _moment_text(record.intended_at),
        None if record.expires_at is None else _moment_text(record.expires_at),
        _moment_text(record.certain_at),
        None if record.owner is None else owner_text(record.owner),
        record.boot,
        None if record.booted_at is None else _moment_text(record.booted_at),
        None if record.longest_create is None else record.longest_create.total_seconds(),
        record.refused,
        None if record.time_limit is None else _moment_text(record.time_limit),
        None if record.budget is None else str(record.budget),
        str(record.spent_before),
        None if record.extendable_to is None else _moment_text(record.extendable_to),
        record.label,
    )


def record_of(row: tuple[Any, ...]) -> RentalRecord:
    """Return the record of a row, whose values are in the order of `COLUMNS`.

    Raises:
        StateFileError: a value cannot be read.
    """
    (
        name,
        stage,
        container_id,
        shown_name,
        node_name,
        gpus,
        price,
        intended_at,
        expires_at,
        certain_at,
        owner,
        *rest,
    ) = row
    boot, booted_at, longest_create, refused, time_limit, budget, spent_before, extendable_to, label = rest
    later_columns = {"time_limit": time_limit, "extendable_to": extendable_to}
    try:
        deadlines = {column: _read_moment(text) for column, text in later_columns.items() if text is not None}
        return RentalRecord(
            name=name,
            stage=_read_stage(stage),
            container_id=container_id,
            shown_name=shown_name,
            node_name=node_name,
            gpus=gpus,
            hourly_price=None if price is None else _read_price(price),
            intended_at=_read_moment(intended_at),
            expires_at=None if expires_at is None else _read_moment(expires_at),
            certain_at=_read_moment(certain_at),
            owner=None if owner is None else _read_owner(owner),
            boot=boot,
            booted_at=None if booted_at is None else _read_moment(booted_at),
            longest_create=None if longest_create is None else timedelta(seconds=longest_create),
            refused=bool(refused),
            budget=None if budget is None else _read_price(budget),
            spent_before=_read_price(spent_before),
            label=label,
            **deadlines,
        )
    except (ValueError, ArithmeticError, TypeError, RecursionError) as error:
        container = "its container" if container_id is None else f"container {container_id}"
        raise StateFileError(
            f"could not read the record of rental {name}: {error}; {container} may still run, so delete it first, and then"
            " this row of the table `rentals` in the state file"
        ) from error


def decoded(raw: bytes) -> str:
    """Return a text of the file, in which bytes that are not UTF-8 are escaped."""
    return raw.decode("utf-8", "backslashreplace")


def _read_stage(text: str) -> Stage:
    for stage in STAGES:
        if stage == text:
            return stage
    raise ValueError(f"{text!r} is no stage")


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


def _moment_text(moment: datetime) -> str:
    # Each text has the same number of digits, because texts then sort in the order of their times.
    return moment.isoformat(timespec="microseconds")


@lru_cache(maxsize=16)
def owner_text(owner: ProcessIdentity) -> str:
    """Return the text by which a row names its owner."""
    return json.dumps(attrs.asdict(owner))
