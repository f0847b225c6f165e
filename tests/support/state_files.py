"""Ways to a state file for tests that need no service."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from netmind_rentgpu.fingerprint import Fingerprint
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.ledger.rows import insertion, row_of
from netmind_rentgpu.sqlite_file import open_file
from netmind_rentgpu.state_file import LONGEST_LOCK, State


def state_at(path: Path, token: str = "a-token") -> State:
    """Return a way to a file, for a token of a service that is nowhere."""
    return State(path, Fingerprint("https://service.example", token))


def write_records(path: Path, *records: RentalRecord, account: str = "https://service.example an-account") -> None:
    """Write records of rentals, without a client."""
    connection, _ = open_file(path, LONGEST_LOCK)
    with closing(connection):
        for record in records:
            row = row_of(record)
            connection.execute(insertion("rentals", row), {"account": account, **row})


def record(name: str, **fields: Any) -> RentalRecord:
    """Return the record of a detached rental."""
    return RentalRecord(
        **{
            "name": name,
            "stage": "detached",
            "node_name": "node",
            "gpus": 1,
            "hourly_price": None,
            "intended_at": datetime(2026, 1, 2, tzinfo=UTC),
            "expires_at": None,
            "certain_at": datetime(2026, 1, 2, tzinfo=UTC),
            **fields,
        }
    )
