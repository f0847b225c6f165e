"""Shared budgets: how open rentals count, and if there is room for another, in each period that it touches."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from state_files import state_at

from netmind_rentgpu import (
    InsufficientBudgetError,
    InvalidArgumentError,
    PastRental,
    RentalRecord,
    SharedBudget,
    StateFileError,
)
from netmind_rentgpu.fingerprint import Fingerprint
from netmind_rentgpu.rentals.ledger.budget_ledger import BudgetLedger
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.deadlines import Extension
from netmind_rentgpu.rentals.ledger.past_rentals import Period
from netmind_rentgpu.rentals.ledger.process_identity import this_process
from netmind_rentgpu.rentals.ledger.shared_budgets import check_room, held_by, period_at
from netmind_rentgpu.rentals.ledger.store import Ledger
from netmind_rentgpu.state_file import State

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
NOW = ClockReading(NOON)
TEAM = SharedBudget(name="team", limit=Decimal(10), currency="USD")
# It costs 1 USD an hour, for 4 hours.
RECORD = RentalRecord(
    name="rg-1",
    stage="ready",
    container_id=7,
    created_at=NOON,
    node_name="node",
    gpus=1,
    hourly_price=Decimal(1),
    currency="USD",
    shared_budget="team",
    intended_at=NOON,
    expires_at=NOON + 4 * HOUR,
    certain_at=NOON,
    owner=this_process(),
    extendable_to=NOON + 99 * HOUR,
)
INTENDED = attrs.evolve(RECORD, stage="intended", container_id=None, created_at=None, certain_at=NOON + 5 * HOUR)


def others(count: int, **fields: Any) -> list[RentalRecord]:
    return [attrs.evolve(RECORD, name=f"rg-other-{number}", **fields) for number in range(count)]


def has_room(budget: SharedBudget, wanted: RentalRecord, records: list[RentalRecord], *, spent: int = 0) -> bool:
    try:
        check_room(budget, wanted, spent=spent * 10**6, records=records, clocks=NOW)
    except InsufficientBudgetError:
        return False
    return True


@pytest.mark.parametrize(
    ("per", "since", "until"),
    [
        (None, None, None),
        ("day", datetime(2026, 3, 31, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)),
        ("month", datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)),
    ],
)
def test_periods_are_those_of_utc(per: Any, since: datetime | None, until: datetime | None) -> None:
    assert period_at(NOON, per) == Period(since=since, until=until)
    elsewhere = NOON.astimezone(tz=None)
    assert period_at(elsewhere, per) == Period(since=since, until=until)


@pytest.mark.parametrize(
    ("record", "passed", "hours"),
    [
        (RECORD, 0, 4),
        (RECORD, 3, 4),
        # It still runs after its end, because its deletion fails.
        (RECORD, 6, 6),
        (attrs.evolve(RECORD, stage="abandoned", owner=None), 6, 6),
        # Its container is gone, and only another of its create may turn up.
        (attrs.evolve(RECORD, stage="abandoned", container_id=None, ended_at=NOON + HOUR), 6, 1),
        # It is not known if it exists: it counts until a reaper has closed its record, but not beyond its ceiling.
        (INTENDED, 0, 4),
        (INTENDED, 6, 6),
        (attrs.evolve(INTENDED, extendable_to=NOON + 8 * HOUR), 6, 6),
        (attrs.evolve(INTENDED, extendable_to=NOON + 8 * HOUR), 99, 8),
        # A refused create costs nothing.
        (attrs.evolve(INTENDED, refused=True), 0, None),
        (attrs.evolve(RECORD, hourly_price=None), 0, None),
    ],
)
def test_open_rental_counts_until_its_expiry_or_as_long_as_it_runs(
    record: RentalRecord, passed: float, hours: float | None
) -> None:
    held = held_by(record, ClockReading(NOON + passed * HOUR))
    assert (None if held is None else (held.ended - held.began) / HOUR) == hours


def test_limit_of_all_time_counts_what_is_spent_and_what_is_reserved() -> None:
    assert has_room(TEAM, RECORD, others(1))
    assert not has_room(TEAM, RECORD, others(2))
    assert has_room(TEAM, RECORD, others(1), spent=2)
    assert not has_room(TEAM, RECORD, others(1), spent=3)
    assert has_room(TEAM, attrs.evolve(RECORD, expires_at=NOON + 2 * HOUR), others(2))


def test_error_says_what_holds_the_budget() -> None:
    with pytest.raises(InsufficientBudgetError) as raised:
        check_room(TEAM, RECORD, spent=3_000_000, records=others(7, hourly_price=Decimal("0.25")), clocks=NOW)
    error = raised.value
    assert (error.budget, error.limit, error.spent, error.reserved) == ("team", 10, 3, 7)
    assert error.holders == tuple(f"rg-other-{number}" for number in range(7))
    assert str(error) == (
        "budget 'team' has no room for rg-1, which may cost 4.000000 USD: of 10, 3.000000 are spent and 7.000000 reserved by"
        " rg-other-0, rg-other-1, rg-other-2, rg-other-3, rg-other-4 and 2 more; choose a shorter ttl, release some, or"
        " raise it with budgets.set"
    )


@pytest.mark.parametrize("per", ["day", "month"])
def test_each_period_that_a_rental_touches_must_have_room(per: Any) -> None:
    # 12 hours lie in this period, and 3 in the next.
    long = attrs.evolve(RECORD, expires_at=NOON + 15 * HOUR)
    budget = attrs.evolve(TEAM, limit=Decimal(12), per=per)
    assert has_room(budget, long, [])
    assert not has_room(budget, long, [], spent=1)
    # The next period is full already.
    next_day = attrs.evolve(RECORD, name="rg-2", intended_at=NOON + 13 * HOUR, expires_at=NOON + 23 * HOUR)
    assert not has_room(budget, long, [next_day])
    with pytest.raises(InsufficientBudgetError, match=" on 2026-04-01:" if per == "day" else " in 2026-04:"):
        check_room(budget, long, spent=0, records=[next_day], clocks=NOW)
    # Costs of the present period do not count in the next.
    assert has_room(budget, attrs.evolve(RECORD, intended_at=NOON, expires_at=NOON), [next_day], spent=12)


def test_hourly_limit_counts_what_runs_at_once() -> None:
    budget = attrs.evolve(TEAM, limit=None, hourly=Decimal("2.5"))
    assert has_room(budget, RECORD, others(1))
    assert not has_room(budget, RECORD, others(2))
    # A rental whose end has passed runs until it is deleted; one that is gone does not.
    late = {"intended_at": NOON - 9 * HOUR, "expires_at": NOON - HOUR}
    assert not has_room(budget, RECORD, others(2, **late))
    assert has_room(budget, RECORD, others(2, **late, ended_at=NOON - HOUR, container_id=None))
    with pytest.raises(InsufficientBudgetError, match=r"at 1 USD an hour: 2 of 2\.5 an hour run already by rg-other-0"):
        check_room(budget, RECORD, spent=0, records=others(2), clocks=NOW)


@given(
    prices=st.lists(st.integers(1, 9), max_size=6),
    hours=st.lists(st.integers(1, 60), min_size=6, max_size=6),
    limit=st.integers(1, 300),
    per=st.sampled_from([None, "day", "month"]),
)
def test_rentals_that_have_room_never_exceed_the_limit_in_any_period(
    prices: list[int], hours: list[int], limit: int, per: Any
) -> None:
    budget = attrs.evolve(TEAM, limit=Decimal(limit), per=per)
    accepted: list[RentalRecord] = []
    for number, (price, hour) in enumerate(zip(prices, hours, strict=False)):
        wanted = attrs.evolve(RECORD, name=f"rg-{number}", hourly_price=Decimal(price), expires_at=NOON + hour * HOUR)
        if has_room(budget, wanted, accepted):
            accepted.append(wanted)
    starts = [period_at(NOON + day * 24 * HOUR, per) for day in range(4)]
    for period in starts:
        cost = Decimal(0)
        for record in accepted:
            assert record.expires_at is not None
            assert record.hourly_price is not None
            began = max(record.intended_at, period.since or record.intended_at)
            ended = min(record.expires_at, period.until or record.expires_at)
            cost += record.hourly_price * max(0, (ended - began) // HOUR)
        assert cost <= limit


# In the state file.


@pytest.fixture
def state_file(tmp_path: Path) -> Iterator[State]:
    state_file = state_at(tmp_path / "state.sqlite3")
    yield state_file
    state_file.close()


@pytest.fixture
def ledger(state_file: State) -> Ledger:
    return Ledger(state_file, keep_history=timedelta(days=1))


@pytest.fixture
def budgets(state_file: State) -> BudgetLedger:
    return BudgetLedger(state_file)


async def test_budget_is_set_listed_changed_and_removed(budgets: BudgetLedger) -> None:
    await budgets.set(TEAM, NOW)
    await budgets.set(attrs.evolve(TEAM, name="other", limit=None, hourly=Decimal("0.5")), NOW)
    assert await budgets.list(NOW) == [
        attrs.evolve(TEAM, name="other", limit=None, hourly=Decimal("0.5")),
        TEAM,
    ]
    await budgets.set(attrs.evolve(TEAM, limit=Decimal(7), per="month"), NOW)
    assert (await budgets.list(NOW))[1] == attrs.evolve(TEAM, limit=Decimal(7), per="month")
    with pytest.raises(InvalidArgumentError, match="budget 'team' is in USD; remove it first"):
        await budgets.set(attrs.evolve(TEAM, currency="CNY"), NOW)
    await budgets.remove("other")
    with pytest.raises(InvalidArgumentError, match="there is no budget 'other'; there are 'team'"):
        await budgets.remove("other")


async def test_reservation_is_made_with_the_row_and_given_back_when_it_closes(
    ledger: Ledger, budgets: BudgetLedger
) -> None:
    await budgets.set(TEAM, NOW)
    for number in range(2):
        await ledger.insert(attrs.evolve(RECORD, name=f"rg-{number}"), NOW)
    third = attrs.evolve(RECORD, name="rg-third")
    with pytest.raises(InsufficientBudgetError, match=r"8\.000000 reserved by rg-0, rg-1"):
        await ledger.insert(third, NOW)
    assert [record.name for record in await ledger.list_open()] == ["rg-0", "rg-1"]
    (budget,) = await budgets.list(NOW)
    assert (budget.spent, budget.reserved, budget.hourly_now, budget.holders) == (0, 8, 2, ("rg-0", "rg-1"))
    # It has cost 1, and not 4.
    await ledger.close("rg-0", PastRental.of(attrs.evolve(RECORD, name="rg-0"), ended_at=NOON + HOUR, cause="released"))
    await ledger.insert(third, NOW)
    (budget,) = await budgets.list(NOW)
    assert (budget.spent, budget.reserved) == (1, 8)
    with pytest.raises(
        InvalidArgumentError, match="budget 'team' has open rentals: rg-1, rg-third; release them first"
    ):
        await budgets.remove("team")


async def test_refused_create_gives_its_reservation_back_and_one_in_doubt_keeps_it(
    ledger: Ledger, budgets: BudgetLedger
) -> None:
    await budgets.set(TEAM, NOW)
    doubtful, refused = (attrs.evolve(INTENDED, name=name) for name in ("rg-doubtful", "rg-refused"))
    for record in (doubtful, refused):
        await ledger.insert(record, NOW)
    assert (await budgets.list(NOW))[0].reserved == 8
    await ledger.update(attrs.evolve(refused, refused=True))
    assert (await budgets.list(NOW))[0].reserved == 4


async def test_extension_reserves_more_or_is_refused(ledger: Ledger, budgets: BudgetLedger) -> None:
    await budgets.set(TEAM, NOW)
    await ledger.insert(RECORD, NOW)
    assert (await ledger.extend(RECORD.name, Extension(ttl=10 * HOUR), NOW)).expires_at == NOON + 10 * HOUR
    with pytest.raises(InsufficientBudgetError, match=r"which may cost 11\.000000 USD: of 10, 0\.000000 are spent"):
        await ledger.extend(RECORD.name, Extension(ttl=11 * HOUR), NOW)
    (record,) = await ledger.list_open()
    assert record.expires_at == NOON + 10 * HOUR


async def test_budget_of_another_currency_or_none_is_refused(ledger: Ledger, budgets: BudgetLedger) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"there is no budget 'team'; there are none; budgets\.set makes one"
    ):
        await ledger.insert(RECORD, NOW)
    await budgets.set(TEAM, NOW)
    with pytest.raises(InvalidArgumentError, match="'team' is in USD, and the rental in CNY"):
        await ledger.insert(attrs.evolve(RECORD, currency="CNY"), NOW)
    assert await ledger.list_open() == []


async def test_budget_counts_the_rentals_of_all_tokens_of_its_service_alone(
    ledger: Ledger, budgets: BudgetLedger
) -> None:
    states = [
        state_at(ledger.path, "another-token"),
        State(ledger.path, Fingerprint("https://service.example.org", "a-token")),
    ]
    same, elsewhere = map(Ledger, states)
    await budgets.set(TEAM, NOW)
    await same.insert(RECORD, NOW)
    assert (await budgets.list(NOW))[0].reserved == 4
    budgets_elsewhere = BudgetLedger(states[1])
    assert await budgets_elsewhere.list(NOW) == []
    await budgets_elsewhere.set(TEAM, NOW)
    await elsewhere.insert(attrs.evolve(RECORD, name="rg-elsewhere"), NOW)
    assert (await budgets.list(NOW))[0].reserved == 4
    for state_file in states:
        state_file.close()


@pytest.mark.parametrize("per", [None, "month"])
async def test_costs_of_removed_history_stay_in_the_budget(ledger: Ledger, budgets: BudgetLedger, per: Any) -> None:
    await budgets.set(attrs.evolve(TEAM, per=per, limit=Decimal(99)), NOW)
    ends = [NOON - timedelta(days=days) for days in (40, 35, 20, 10, 0.5, 0)]
    for number, end in enumerate(ends):
        record = attrs.evolve(RECORD, name=f"rg-{number}", intended_at=end - HOUR)
        await ledger.insert(record)
        await ledger.close(record.name, PastRental.of(record, ended_at=end, cause="released"))
    (budget,) = await budgets.list(NOW)
    assert budget.spent == (6 if per is None else 4)
    # Only those of earlier periods were removed.
    kept = [past.ended_at for past in await ledger.list_past(Period(), None)]
    assert set(ends[2:]) <= set(kept)
    assert ends[0] not in kept
    # What is folded counts from then on, even if the period changes.
    await budgets.set(attrs.evolve(TEAM, per=None, limit=Decimal(99)), NOW)
    assert (await budgets.list(NOW))[0].spent == 6


async def test_rental_counts_in_the_present_period_though_the_clock_was_set(
    ledger: Ledger, budgets: BudgetLedger
) -> None:
    await budgets.set(attrs.evolve(TEAM, per="day", limit=Decimal(99)), NOW)
    # The clock was 40 days behind when the rental was made, two hours ago.
    long_ago = NOON - timedelta(days=40)
    booted = {"boot": "a boot", "booted_at": long_ago - HOUR}
    record = attrs.evolve(RECORD, intended_at=long_ago, expires_at=long_ago + 9 * HOUR, **booted)
    await ledger.insert(record)
    now = ClockReading(NOON, boot="a boot", since_boot=3 * 3600)
    assert (await budgets.list(now))[0].reserved == 9


async def test_row_that_is_not_utf_8_counts(state_file: State, ledger: Ledger, budgets: BudgetLedger) -> None:
    await budgets.set(TEAM, NOW)
    await ledger.insert(RECORD, NOW)
    with closing(sqlite3.connect(state_file.path)) as connection, connection:
        connection.execute("UPDATE rentals SET node_name = CAST(x'6eff' AS TEXT)")
    assert (await budgets.list(NOW))[0].reserved == 4
    await ledger.insert(attrs.evolve(RECORD, name="rg-2"), NOW)


async def test_unreadable_open_rental_of_a_budget_refuses_another(
    state_file: State, ledger: Ledger, budgets: BudgetLedger
) -> None:
    await budgets.set(TEAM, NOW)
    await ledger.insert(RECORD, NOW)
    with closing(sqlite3.connect(state_file.path)) as connection, connection:
        connection.execute("UPDATE rentals SET hourly_price = 'dear'")
    with pytest.raises(StateFileError, match="could not read the record of rental rg-1"):
        await ledger.insert(attrs.evolve(RECORD, name="rg-2"), NOW)
