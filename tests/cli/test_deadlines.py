"""Sentences about a rental's end and its cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import attrs
import pytest

from netmind_rentgpu.cli.deadlines import deadline_note, extension_of, machine_of, preview_of
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.lifecycle.events import RentalEvent

NOW = datetime(2027, 6, 9, 20, 0, tzinfo=UTC)
RECORD = RentalRecord(
    name="rg-55",
    stage="ready",
    node_name="node-fi-0003",
    gpu_name="RTX 5090",
    region="FI",
    gpus=2,
    hourly_price=Decimal("1.25"),
    currency="USD",
    intended_at=NOW - timedelta(hours=1),
    expires_at=NOW + timedelta(hours=3),
    certain_at=NOW,
    enforced_by="process 88",
    extendable_to=NOW + timedelta(hours=7, minutes=30, seconds=40),
)


@pytest.fixture(autouse=True)
def local_time_is_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def event_of(record: RentalRecord) -> RentalEvent:
    return RentalEvent.of("asking", record, at=NOW, spent=None)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (RECORD, "2 x RTX 5090 on node-fi-0003 (FI), 1.25 USD an hour"),
        (attrs.evolve(RECORD, region=None), "2 x RTX 5090 on node-fi-0003, 1.25 USD an hour"),
        (attrs.evolve(RECORD, gpu_name=None, gpus=1), "1 x an unnamed GPU on node-fi-0003 (FI), 1.25 USD an hour"),
        (attrs.evolve(RECORD, hourly_price=None), "2 x RTX 5090 on node-fi-0003 (FI), ? an hour"),
        (
            attrs.evolve(RECORD, hourly_price=Decimal("0.0625"), currency=None),
            "2 x RTX 5090 on node-fi-0003 (FI), 0.0625 an hour",
        ),
        (attrs.evolve(RECORD, hourly_price=Decimal(0)), "2 x RTX 5090 on node-fi-0003 (FI), 0.00 USD an hour"),
    ],
)
def test_machine_is_named_with_its_gpus_region_and_price(record: RentalRecord, expected: str) -> None:
    assert machine_of(record) == machine_of(event_of(record)) == expected


@pytest.mark.parametrize(
    ("record", "limits"),
    [
        # The price counts from the intent, an hour ago.
        (RECORD, "at most 5.00 USD until 23:00:00 (in 3 h)"),
        (
            attrs.evolve(RECORD, expires_at=NOW + timedelta(hours=28, minutes=20)),
            "at most 36.666667 USD until Fri 11 Jun 00:20 (in 1 d 4 h)",
        ),
        (attrs.evolve(RECORD, spent_before=Decimal("0.5")), "at most 5.50 USD until 23:00:00 (in 3 h)"),
        (attrs.evolve(RECORD, currency=None), "at most 5.00 until 23:00:00 (in 3 h)"),
        (attrs.evolve(RECORD, hourly_price=None), "at most an amount that is not known until 23:00:00 (in 3 h)"),
        (
            attrs.evolve(RECORD, expires_at=NOW - timedelta(minutes=30)),
            "at most 0.625 USD until 19:30:00 (in 0 s)",
        ),
    ],
)
def test_end_of_a_rental_is_given_with_its_cost_until_then(record: RentalRecord, limits: str) -> None:
    assert preview_of(event_of(record), NOW) == f"{machine_of(record)}: {limits}"
    assert deadline_note(record, NOW) == (f"rg-55: {limits}\nenforced by process 88; {extension_of(record, NOW)}")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "for longer: rentgpu rentals extend rg-55 --until 03:30"),
        (
            {"extendable_to": NOW + timedelta(days=2, minutes=5)},
            "for longer: rentgpu rentals extend rg-55 --until '2027-06-11 20:05'",
        ),
        # The ttl alone counts for the ceiling, and the budget for the end.
        (
            {
                "budget": Decimal("1.5"),
                "expires_at": NOW + timedelta(minutes=12),
                "time_limit": NOW + timedelta(hours=3),
            },
            "for longer: rentgpu rentals extend rg-55 --budget 3.0",
        ),
        ({"extendable_to": NOW + timedelta(hours=3, seconds=30)}, "it cannot be extended"),
        ({"extendable_to": None}, "it cannot be extended"),
    ],
)
def test_extension_is_one_that_works(changes: dict[str, Any], expected: str) -> None:
    assert extension_of(attrs.evolve(RECORD, **changes), NOW) == expected


def test_end_that_no_process_enforces_names_the_reaper() -> None:
    assert deadline_note(attrs.evolve(RECORD, enforced_by=None), NOW) == (
        "rg-55: at most 5.00 USD until 23:00:00 (in 3 h)\n"
        "enforced by `rentgpu rentals reap` alone; for longer: rentgpu rentals extend rg-55 --until 03:30"
    )


@pytest.mark.parametrize("enforced_by", [None, "process 88"])
def test_rental_without_an_end_names_the_command_that_ends_it(enforced_by: str | None) -> None:
    record = attrs.evolve(RECORD, expires_at=None, time_limit=None, enforced_by=enforced_by)
    assert deadline_note(record, NOW) == "rg-55: it has no end; `rentgpu rentals release rg-55` ends it"
    assert preview_of(event_of(record), NOW).endswith("1.25 USD an hour: it has no end")
