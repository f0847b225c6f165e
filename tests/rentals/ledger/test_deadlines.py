"""Deadlines: the earlier of a time limit and a budget, and extensions, which never shorten them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.deadlines import Extension, ceiling_after, checked_extension, extended
from netmind_rentgpu.rentals.ledger.names import LATEST, expiry_in, new_name
from netmind_rentgpu.rentals.ledger.records import RentalRecord

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def record(**changes: Any) -> RentalRecord:
    """Return the record of a rental of 2 hours at 0.5 an hour, with a ceiling of 6 hours."""
    fields: dict[str, Any] = {
        "name": new_name(BEGIN + 6 * HOUR),
        "stage": "ready",
        "container_id": 7,
        "node_name": "node",
        "gpus": 1,
        "hourly_price": Decimal("0.5"),
        "intended_at": BEGIN,
        "expires_at": None,
        "certain_at": BEGIN,
        "time_limit": BEGIN + 2 * HOUR,
        "extendable_to": BEGIN + 6 * HOUR,
        **changes,
    }
    made = RentalRecord(**fields)
    return attrs.evolve(made, expires_at=made.earlier_limit)


NOW = ClockReading(BEGIN + HOUR)


@pytest.mark.parametrize(
    ("changes", "hours", "by_budget", "most"),
    [
        ({}, 2, False, "1"),
        ({"budget": Decimal(5)}, 2, False, "1"),
        ({"budget": Decimal("0.75")}, 1.5, True, "0.75"),
        ({"budget": Decimal("0.75"), "spent_before": Decimal("0.25")}, 1, True, "0.75"),
        ({"budget": Decimal("0.75"), "hourly_price": Decimal(0)}, 2, False, "0"),
        ({"hourly_price": None}, 2, False, None),
        ({"budget": Decimal("1e15")}, 2, False, "1"),
    ],
)
def test_expiry_is_the_earlier_of_time_limit_and_budget(
    changes: dict[str, Any], hours: float, by_budget: bool, most: str | None
) -> None:
    made = record(**changes)
    assert made.expires_at == BEGIN + hours * HOUR
    assert made.ends_by_budget is by_budget
    assert made.max_cost == (None if most is None else Decimal(most))


def test_kept_rental_has_no_deadline() -> None:
    kept = record(time_limit=None, extendable_to=None, name=new_name(None))
    assert (kept.expires_at, kept.max_cost, kept.max_cost_at_ceiling, kept.ends_by_budget) == (None, None, None, False)
    with pytest.raises(InvalidArgumentError, match="has no deadline"):
        extended(kept, Extension(ttl=HOUR), NOW)


def test_record_of_an_earlier_version_has_its_deadline_as_time_limit_and_its_name_as_ceiling() -> None:
    name = new_name(BEGIN + 6 * HOUR)
    old = RentalRecord(
        name=name,
        stage="detached",
        node_name="node",
        gpus=1,
        hourly_price=Decimal("0.5"),
        intended_at=BEGIN,
        expires_at=BEGIN + 2 * HOUR,
        certain_at=BEGIN,
    )
    assert (old.time_limit, old.extendable_to) == (BEGIN + 2 * HOUR, expiry_in(name))
    assert extended(old, Extension(ttl=4 * HOUR), NOW).expires_at == BEGIN + 5 * HOUR


@pytest.mark.parametrize(
    ("wanted", "changes", "hours"),
    [
        (Extension(ttl=3 * HOUR), {}, 4),
        (Extension(ttl=HOUR), {}, 2),
        (Extension(until=BEGIN + 6 * HOUR), {}, 6),
        (Extension(until=(BEGIN + 3 * HOUR).astimezone()), {}, 3),
        (Extension(budget=Decimal(1)), {"budget": Decimal("0.75")}, 2),
        (Extension(budget=Decimal(2), ttl=4 * HOUR), {"budget": Decimal("0.75")}, 4),
        (Extension(ttl=4 * HOUR), {"budget": Decimal("1.5")}, 3),
        # A first budget, which ends the rental no earlier.
        (Extension(budget=Decimal(1)), {}, 2),
        (Extension(ttl=4 * HOUR, budget=Decimal(2)), {}, 4),
    ],
)
def test_extension_moves_the_deadline(wanted: Extension, changes: dict[str, Any], hours: float) -> None:
    before = record(**changes)
    after = extended(before, wanted, NOW)
    assert after.expires_at == BEGIN + hours * HOUR
    unchanged = {"expires_at": None, "time_limit": None, "budget": None}
    assert attrs.evolve(after, **unchanged) == attrs.evolve(before, **unchanged)


@pytest.mark.parametrize(
    ("wanted", "changes", "problem"),
    [
        (
            Extension(ttl=HOUR / 2),
            {},
            r"ttl: would end rg-\S+ before 2026-03-01 14:00:00 UTC; extending never shortens",
        ),
        (Extension(until=BEGIN), {}, "until: would end .*; extending never shortens; rentals.release"),
        (Extension(budget=Decimal("0.5")), {"budget": Decimal("0.75")}, "budget: 0.5 is less than the 0.75 of rg-"),
        (Extension(budget=Decimal("0.5")), {}, "budget: would end"),
        (Extension(ttl=6 * HOUR), {}, r"ttl: would end after 2026-03-01 18:00:00 UTC, the ceiling in the name of rg-"),
        (Extension(ttl=timedelta.max), {}, "the ceiling in the name"),
        (Extension(until=LATEST + HOUR), {}, "the ceiling in the name"),
        (Extension(budget=Decimal(5)), {"hourly_price": None}, "budget: cannot be enforced: the price"),
    ],
)
def test_extension_that_shortens_or_passes_the_ceiling_is_refused(
    wanted: Extension, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        extended(record(**changes), wanted, NOW)


@pytest.mark.parametrize(
    ("given_", "problem"),
    [
        ({}, "ttl: is missing"),
        ({"ttl": HOUR, "until": BEGIN}, "until: is another way to say ttl"),
        ({"ttl": 60}, "ttl: must be a timedelta above 0, not 60"),
        ({"ttl": timedelta(0)}, "ttl: must be a timedelta above 0"),
        ({"until": datetime(2026, 3, 1)}, "until: must be a datetime with a time zone"),  # noqa: DTZ001  # the mistake
        ({"until": "tomorrow"}, "until: must be a datetime"),
        ({"budget": 0}, "budget: must be above 0"),
        ({"budget": "1"}, "budget: must be a number"),
        ({"budget": float("nan")}, "budget: must be a finite number"),
    ],
)
def test_unusable_arguments_of_an_extension_are_refused(given_: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        checked_extension(**{"ttl": None, "until": None, "budget": None, **given_})


def test_extension_counts_by_the_clock_of_the_record() -> None:
    # The wall clock was set back by a day since the record was made; the clock of the boot goes on.
    made = record(boot="a boot", booted_at=BEGIN - HOUR)
    now = ClockReading(BEGIN + HOUR - timedelta(days=1), boot="a boot", since_boot=2 * 3600)
    assert extended(made, Extension(ttl=2 * HOUR), now).expires_at == BEGIN + 3 * HOUR
    until = extended(made, Extension(until=now.wall + 2 * HOUR), now)
    assert until.expires_at == BEGIN + 3 * HOUR


@pytest.mark.parametrize(("ttl", "ceiling"), [(HOUR / 60, HOUR + HOUR / 60), (HOUR, 2 * HOUR), (24 * HOUR, 48 * HOUR)])
def test_ceiling_is_twice_the_ttl_and_an_hour_more_at_least(ttl: timedelta, ceiling: timedelta) -> None:
    assert ceiling_after(ttl) == ceiling


@given(
    budget=st.none() | st.decimals("0.01", "100", places=2),
    spent=st.decimals("0", "0.01", places=4),
    price=st.decimals("0", "9", places=4),
    steps=st.lists(
        st.tuples(st.timedeltas(timedelta(seconds=1), 9 * HOUR), st.none() | st.decimals("0.01", "100", places=2)),
        max_size=6,
    ),
)
def test_no_row_of_extensions_shortens_or_passes_the_ceiling(
    budget: Decimal | None, spent: Decimal, price: Decimal, steps: list[tuple[timedelta, Decimal | None]]
) -> None:
    present = record(budget=budget, spent_before=spent, hourly_price=price)
    for ttl, more in steps:
        try:
            after = extended(present, Extension(ttl=ttl, budget=more), NOW)
        except InvalidArgumentError:
            continue
        assert after.expires_at is not None
        assert present.expires_at is not None
        assert after.expires_at >= present.expires_at
        assert after.time_limit is not None
        assert after.time_limit <= BEGIN + 6 * HOUR
        assert after.budget is None or present.budget is None or after.budget >= present.budget
        assert after.expires_at == after.earlier_limit
        present = after
