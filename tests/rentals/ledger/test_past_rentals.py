"""Past rentals in the state file, and the reports of what rentals have cost: exact sums, by label, GPU and day."""

from __future__ import annotations

import random
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from state_files import state_at

from netmind_rentgpu import PastRental, RentalRecord
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.past_rentals import (
    MILLIONTH,
    Grouping,
    Period,
    Share,
    cost_of,
    report,
    shares_of,
    shares_of_open,
)
from netmind_rentgpu.rentals.ledger.process_identity import this_process
from netmind_rentgpu.rentals.ledger.store import Ledger
from netmind_rentgpu.state_file import State

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
EVER = Period()
RECORD = RentalRecord(
    name="rg-1",
    label="sweep",
    stage="ready",
    container_id=7,
    node_name="node",
    gpu_name="RTX 4090",
    gpus=2,
    region="US",
    image="PyTorch 2.4",
    hourly_price=Decimal("0.50"),
    currency="USD",
    intended_at=NOON,
    created_at=NOON + timedelta(seconds=2),
    ready_at=NOON + timedelta(seconds=40),
    expires_at=NOON + 9 * HOUR,
    certain_at=NOON,
    owner=this_process(),
)
PAST = PastRental.of(RECORD, ended_at=NOON + 2 * HOUR, cause="released")


@pytest.fixture
def state_file(tmp_path: Path) -> Iterator[State]:
    state_file = state_at(tmp_path / "state.sqlite3")
    yield state_file
    state_file.close()


@pytest.fixture
def ledger(state_file: State) -> Ledger:
    return Ledger(state_file)


async def keep(ledger: Ledger, *rentals: PastRental) -> None:
    for past in rentals:
        await ledger.insert(attrs.evolve(RECORD, name=past.name))
        await ledger.close(past.name, past)


# One past rental.


def test_past_rental_costs_its_price_for_its_time() -> None:
    assert (PAST.spent, PAST.cause, PAST.ended_at) == (Decimal("1.000000"), "released", NOON + 2 * HOUR)
    assert (
        attrs.asdict(PAST).items()
        >= {
            "name": "rg-1",
            "label": "sweep",
            "container_id": 7,
            "gpu_name": "RTX 4090",
            "gpus": 2,
            "node_name": "node",
            "region": "US",
            "image": "PyTorch 2.4",
            "currency": "USD",
            "ready_at": NOON + timedelta(seconds=40),
        }.items()
    )
    assert PAST.to_dict(json=True)["spent"] == "1.000000"
    assert PAST.to_dict()["created_at"] == NOON + timedelta(seconds=2)


@pytest.mark.parametrize("price", [None, Decimal("1e17"), Decimal("1e30")])
def test_cost_without_a_credible_price_is_not_known(price: Decimal | None) -> None:
    record = attrs.evolve(RECORD, hourly_price=price)
    assert cost_of(record, NOON + HOUR) is None
    assert PastRental.of(record, ended_at=NOON + HOUR, cause="expired").spent is None


def test_cost_of_a_kept_rental_is_not_known_because_it_costs_on() -> None:
    assert PastRental.of(RECORD, ended_at=NOON + HOUR, cause="kept").spent is None


def test_rental_that_ended_before_its_intent_by_a_clock_that_was_set_costs_nothing() -> None:
    past = PastRental.of(RECORD, ended_at=NOON - HOUR, cause="released")
    assert (past.ended_at, past.spent) == (NOON, 0)


# Shares.

moments = st.timedeltas(timedelta(0), timedelta(days=20)).map(lambda passed: NOON + passed)


@given(ends=st.tuples(moments, moments), cuts=st.lists(moments), spent=st.integers(0, 10**12), by_day=st.booleans())
def test_shares_of_adjacent_periods_add_up_to_the_cost(
    ends: tuple[datetime, datetime], cuts: list[datetime], spent: int, by_day: bool
) -> None:
    began, ended = sorted(ends)
    borders: list[datetime | None] = [None, *sorted(cuts), None]
    shares = [
        share
        for since, until in pairwise(borders)
        for share in shares_of(
            group="label",
            currency="USD",
            began=began,
            ended=ended,
            spent=spent,
            period=Period(since=since, until=until),
            by_day=by_day,
        )
    ]
    if began == ended and began in cuts:
        return  # a rental without any time may be counted on both sides of a border
    assert sum(share.spent for share in shares) == spent
    assert all(share.spent >= 0 for share in shares)
    if by_day:
        days = {share.group for share in shares}
        assert days == {f"{began + timedelta(days=day):%Y-%m-%d}" for day in range(len(days))}


def test_days_of_a_report_are_those_of_utc() -> None:
    began = datetime(2026, 3, 1, 18, tzinfo=UTC)
    shares = shares_of(
        group=None,
        currency="USD",
        began=began,
        ended=began + 32 * HOUR,
        spent=3_200,
        period=EVER,
        by_day=True,
    )
    assert list(shares) == [
        Share("2026-03-01", "USD", 600, 1, 0),
        Share("2026-03-02", "USD", 2_400, 1, 0),
        Share("2026-03-03", "USD", 200, 1, 0),
    ]


def test_open_rental_counts_until_now() -> None:
    now = ClockReading(NOON + 4 * HOUR)
    assert list(shares_of_open(RECORD, EVER, "label", now)) == [Share("sweep", "USD", 2_000_000, 1, 0)]
    assert list(shares_of_open(RECORD, EVER, "gpu", now)) == [Share("RTX 4090", "USD", 2_000_000, 1, 0)]
    late = Period(since=NOON + 3 * HOUR)
    assert list(shares_of_open(RECORD, late, "day", now)) == [Share("2026-03-01", "USD", 500_000, 1, 0)]
    assert list(shares_of_open(RECORD, Period(until=NOON), "day", now)) == []
    unknown = attrs.evolve(RECORD, hourly_price=None)
    assert list(shares_of_open(unknown, EVER, "label", now)) == [Share("sweep", "USD", 0, 1, 1)]
    # Its container is gone, and only another of the same create may still turn up.
    gone = attrs.evolve(RECORD, stage="abandoned", owner=None, container_id=None, ended_at=NOON + HOUR)
    assert list(shares_of_open(gone, EVER, "label", now)) == [Share("sweep", "USD", 500_000, 1, 0)]
    intended = attrs.evolve(RECORD, stage="intended", container_id=None, created_at=None)
    assert list(shares_of_open(intended, EVER, "label", now)) == []


def test_report_mixes_no_currencies_and_counts_what_is_not_known() -> None:
    shares = [
        Share("a", "USD", 1_000_000, 1, 0),
        Share("b", "USD", 2_500_000, 3, 1),
        Share("a", "CNY", 7_000_000, 1, 0),
        Share("a", "USD", 1, 1, 0),
        Share(None, None, 0, 1, 1),
    ]
    found = report(shares, "label", EVER)
    assert [(line.group, line.currency, line.spent, line.rentals, line.unknown) for line in found.lines] == [
        (None, None, 0, 1, 1),
        ("a", "CNY", 7, 1, 0),
        ("b", "USD", Decimal("2.5"), 3, 1),
        ("a", "USD", Decimal("1.000001"), 2, 0),
    ]
    assert found.total == {None: 0, "CNY": 7, "USD": Decimal("3.500001")}
    plain = found.to_dict(json=True)
    assert plain["total"] == {"": "0.000000", "CNY": "7.000000", "USD": "3.500001"}
    assert plain["lines"][1] == {"group": "a", "currency": "CNY", "spent": "7.000000", "rentals": 1, "unknown": 0}
    assert "<td>3.500001</td>" not in found._repr_html_()
    assert "<td>2.500000</td>" in found._repr_html_()
    assert [line.group for line in report(shares[:3], "day", EVER).lines] == ["a", "a", "b"]


# The table.


async def test_cause_of_a_claim_stays_though_its_process_ends(ledger: Ledger) -> None:
    await ledger.insert(RECORD)
    claimed = await ledger.claim_for_reap(RECORD, is_due=lambda _: True, cause="released")
    assert claimed is not None
    again = await ledger.claim_for_reap(claimed, is_due=lambda _: True, cause="failed")
    assert again is not None
    assert (claimed.cause, again.cause) == ("released", "released")
    assert await ledger.list_open() == [claimed]


async def test_closed_record_is_a_past_rental_and_reads_back_unchanged(ledger: Ledger) -> None:
    bare = PastRental(
        name="rg-2", gpus=1, node_name="other", hourly_price=None, intended_at=NOON, ended_at=NOON, cause="gone"
    )
    await keep(ledger, PAST, bare)
    assert await ledger.list_open() == []
    assert await ledger.list_past(EVER, None) == [bare, PAST]
    assert await ledger.list_past(EVER, "sweep") == [PAST]
    assert await ledger.list_past(EVER, "swe") == []


async def test_record_is_closed_once_and_the_first_end_stays(ledger: Ledger) -> None:
    await keep(ledger, PAST)
    later = PastRental.of(RECORD, ended_at=NOON + 5 * HOUR, cause="reaped")
    await ledger.close(RECORD.name, later)
    assert await ledger.list_past(EVER, None) == [PAST]


async def test_cause_of_the_process_that_could_not_delete_a_rental_stays(ledger: Ledger) -> None:
    await ledger.insert(RECORD)
    await ledger.abandon(attrs.evolve(RECORD, stage="abandoned", owner=None, cause="expired"), RECORD.owner)
    (abandoned,) = await ledger.list_open()
    assert abandoned.cause == "expired"
    await ledger.close(RECORD.name, PAST)
    assert await ledger.list_past(EVER, None) == [attrs.evolve(PAST, cause="expired")]


async def test_container_that_turns_up_reopens_its_rental(ledger: Ledger) -> None:
    abandoned = attrs.evolve(RECORD, stage="abandoned", owner=None)
    await keep(ledger, PAST)
    await ledger.abandon(abandoned, RECORD.owner)
    assert (await ledger.list_open(), await ledger.list_past(EVER, None)) == ([abandoned], [])
    later = PastRental.of(RECORD, ended_at=NOON + 5 * HOUR, cause="reaped")
    await ledger.close(RECORD.name, later)
    assert (await ledger.list_open(), await ledger.list_past(EVER, None)) == ([], [later])
    await ledger.reopen(RECORD)
    assert (await ledger.list_open(), await ledger.list_past(EVER, None)) == ([RECORD], [])
    await ledger.reopen(RECORD)
    assert await ledger.list_open() == [RECORD]


async def test_record_without_a_container_leaves_nothing(ledger: Ledger) -> None:
    await ledger.insert(RECORD)
    await ledger.close(RECORD.name, None)
    assert (await ledger.list_open(), await ledger.list_past(EVER, None)) == ([], [])


@pytest.mark.parametrize(("keep_history", "left"), [(None, 4), (timedelta(days=365), 3), (timedelta(days=1), 2)])
async def test_past_rentals_are_kept_for_the_time_that_is_set(
    state_file: State, keep_history: timedelta | None, left: int
) -> None:
    ledger = Ledger(state_file, keep_history=keep_history)
    ends = [NOON - timedelta(days=366), NOON - timedelta(days=364), NOON - HOUR, NOON]
    rentals = [attrs.evolve(PAST, name=f"rg-{number}", ended_at=end) for number, end in enumerate(ends)]
    await keep(ledger, *rentals)
    assert await ledger.list_past(EVER, None) == rentals[4 - left :]


async def test_clock_that_was_set_far_ahead_removes_no_history(state_file: State) -> None:
    ledger = Ledger(state_file, keep_history=timedelta(days=365))
    rentals = [attrs.evolve(PAST, name=f"rg-{number}", ended_at=NOON + number * HOUR) for number in range(3)]
    late = attrs.evolve(PAST, name="rg-late", ended_at=NOON + timedelta(days=500))
    await keep(ledger, *rentals, late)
    assert await ledger.list_past(EVER, None) == [*rentals, late]


async def test_past_rental_is_listed_in_one_of_two_adjacent_periods(ledger: Ledger) -> None:
    instant = attrs.evolve(PAST, name="rg-instant", intended_at=PAST.ended_at)
    await keep(ledger, PAST, instant)
    assert await ledger.list_past(Period(until=PAST.ended_at), None) == [PAST]
    assert await ledger.list_past(Period(since=PAST.ended_at), None) == [instant]


async def test_past_rentals_of_another_account_are_neither_listed_nor_removed(tmp_path: Path) -> None:
    one, other = (state_at(tmp_path / "state.sqlite3", token) for token in ("one", "other"))
    old = attrs.evolve(PAST, ended_at=NOON - timedelta(days=900))
    await keep(Ledger(other), old)
    ledger = Ledger(one, keep_history=timedelta(days=1))
    await keep(ledger, PAST)
    assert await ledger.list_past(EVER, None) == [PAST]
    assert await Ledger(other).list_past(EVER, None) == [old]
    # They are one account's after all.
    await ledger.join([str(other.fingerprint)])
    assert await ledger.list_past(EVER, None) == [PAST]
    for state_file in (one, other):
        state_file.close()


@pytest.mark.parametrize("damage", ["hourly_price = 'dear'", "ended_at = '2026-99-99'", "intended_at = 'noon'"])
async def test_unreadable_past_rental_is_skipped_and_logged(
    state_file: State, ledger: Ledger, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    await keep(ledger, PAST, attrs.evolve(PAST, name="rg-2", label="other"))
    with closing(sqlite3.connect(state_file.path)) as connection, connection:
        connection.execute(f"UPDATE past_rentals SET {damage}, label = CAST(x'6eff' AS TEXT) WHERE name = 'rg-2'")
    assert await ledger.list_past(EVER, None) == [PAST]
    assert "could not read past rental rg-2" in caplog.text
    shares = await ledger.shares(EVER, "day", ClockReading(NOON))
    assert Share("2026-03-01", "USD", 1_000_000, 1, 0) in shares or "price" in damage


@pytest.mark.parametrize("by", ["label", "gpu", "day"])
@pytest.mark.parametrize("seed", range(10))
async def test_sums_of_the_state_file_are_those_of_each_rental(ledger: Ledger, by: Grouping, seed: int) -> None:
    choose = random.Random(seed)

    def some_rental(number: int) -> PastRental:
        began = NOON + choose.uniform(-99, 99) * HOUR
        spent = choose.choice([None, Decimal(choose.randrange(10**8)) * MILLIONTH])
        return PastRental(
            name=f"rg-{number}",
            label=choose.choice([None, "one", "two"]),
            gpu_name=choose.choice([None, "H100"]),
            gpus=1,
            node_name="node",
            hourly_price=Decimal(1),
            currency=choose.choice(["USD", "CNY"]),
            intended_at=began,
            ended_at=began + choose.choice([0, choose.random(), 30, 70]) * HOUR,
            cause="released",
            spent=spent,
        )

    rentals = [some_rental(number) for number in range(60)]
    await keep(ledger, *rentals)
    for _ in range(5):
        ends: list[Any] = sorted(NOON + choose.uniform(-150, 150) * HOUR for _ in range(2))
        period = Period(since=choose.choice([None, ends[0]]), until=choose.choice([None, ends[1]]))
        sums: defaultdict[tuple[str | None, str | None], list[int]] = defaultdict(lambda: [0, 0, 0])
        for past in rentals:
            for share in shares_of(
                group=past.label if by == "label" else past.gpu_name,
                currency=past.currency,
                began=past.intended_at,
                ended=past.ended_at,
                spent=None if past.spent is None else int(past.spent / MILLIONTH),
                period=period,
                by_day=by == "day",
            ):
                line = sums[share.group, share.currency]
                for place, value in enumerate((share.spent, share.rentals, share.unknown)):
                    line[place] += value
        found = report(await ledger.shares(period, by, ClockReading(NOON)), by, period)
        assert {
            (line.group, line.currency): [int(line.spent / MILLIONTH), line.rentals, line.unknown]
            for line in found.lines
        } == dict(sums)
