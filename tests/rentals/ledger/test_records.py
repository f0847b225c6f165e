"""The reaper's verdict on a record: a table, and properties of every record."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.errors import APITimeoutError
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.process_identity import ProcessIdentity
from netmind_rentgpu.rentals.ledger.records import ReapReport, RentalRecord, Stage, is_legal_change, is_to_be_reaped

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
OWNER = ProcessIdentity("machine", "boot", "namespace", 7, "100")


def at(moment: datetime) -> ClockReading:
    """Return clocks of which only the time of day is known."""
    return ClockReading(moment)


INTENDED = RentalRecord(
    name="rg-0000000000-0000000000",
    stage="intended",
    node_name="node",
    gpus=1,
    hourly_price=Decimal("0.45"),
    intended_at=NOW - SECOND,
    expires_at=NOW + timedelta(hours=1),
    certain_at=NOW + timedelta(minutes=5),
    owner=OWNER,
)
CREATED = attrs.evolve(INTENDED, stage="created", container_id=5)
READY = attrs.evolve(CREATED, stage="ready")
DETACHED = attrs.evolve(CREATED, stage="detached", owner=None)
ABANDONED = attrs.evolve(CREATED, stage="abandoned", owner=None)
ABANDONED_INTENT = attrs.evolve(INTENDED, stage="abandoned", owner=None)


@pytest.mark.parametrize(
    ("record", "lives", "is_gone", "expired"),
    [
        # True if the record is reaped: while the owner lives, when the owner is gone, when the expiry has passed.
        (INTENDED, False, True, True),
        (CREATED, False, True, True),
        (READY, False, True, True),
        (DETACHED, False, False, True),
        # The owner of a detached rental does not matter.
        (attrs.evolve(DETACHED, owner=OWNER), False, False, True),
        (ABANDONED, True, True, True),
        (ABANDONED_INTENT, True, True, True),
        # A create attempt without a known owner may belong to a living process.
        (attrs.evolve(CREATED, owner=None), False, False, True),
    ],
)
def test_verdict_follows_stage_owner_and_expiry(
    record: RentalRecord, lives: bool, is_gone: bool, expired: bool
) -> None:
    assert is_to_be_reaped(record, now=at(NOW), owner_is_gone=False) is lives
    assert is_to_be_reaped(record, now=at(NOW), owner_is_gone=True) is is_gone
    for owner_is_gone in (False, True):
        late = attrs.evolve(record, expires_at=NOW - SECOND)
        assert is_to_be_reaped(late, now=at(NOW), owner_is_gone=owner_is_gone) is expired


@pytest.mark.parametrize("record", [CREATED, READY, DETACHED])
def test_record_is_reaped_from_the_very_moment_of_its_expiry(record: RentalRecord) -> None:
    moment = NOW + timedelta(hours=1)
    assert not is_to_be_reaped(record, now=at(moment - timedelta(microseconds=1)), owner_is_gone=False)
    assert is_to_be_reaped(record, now=at(moment), owner_is_gone=False)


def test_kept_rental_never_expires_but_is_reaped_if_its_owner_is_gone() -> None:
    kept = attrs.evolve(CREATED, expires_at=None)
    century = NOW + timedelta(days=36_525)
    assert not is_to_be_reaped(kept, now=at(century), owner_is_gone=False)
    assert is_to_be_reaped(kept, now=at(NOW), owner_is_gone=True)


moments = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  # the strategy sets the time zone
stages: st.SearchStrategy[Stage] = st.sampled_from(get_args(Stage))
records = st.builds(
    RentalRecord,
    name=st.just(INTENDED.name),
    stage=stages,
    container_id=st.none() | st.integers(1),
    node_name=st.just("node"),
    gpus=st.just(1),
    hourly_price=st.none(),
    intended_at=moments,
    expires_at=st.none() | moments,
    certain_at=moments,
    owner=st.none() | st.just(OWNER),
)


@given(record=records, now=moments, owner_is_gone=st.booleans())
def test_record_of_a_possible_owner_is_left_and_an_expired_record_is_not(
    record: RentalRecord, now: datetime, owner_is_gone: bool
) -> None:
    is_reaped = is_to_be_reaped(record, now=at(now), owner_is_gone=owner_is_gone)
    expired = record.expires_at is not None and record.expires_at <= now
    if expired or record.stage == "abandoned":
        assert is_reaped
    elif not owner_is_gone or record.owner is None:
        assert not is_reaped


@given(record=records, now=moments, later=moments, owner_is_gone=st.booleans())
def test_verdict_to_reap_stays_at_any_later_time(
    record: RentalRecord, now: datetime, later: datetime, owner_is_gone: bool
) -> None:
    first, last = sorted((now, later))
    if is_to_be_reaped(record, now=at(first), owner_is_gone=owner_is_gone):
        assert is_to_be_reaped(record, now=at(last), owner_is_gone=owner_is_gone)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "intended created ready detached abandoned"),
        ("intended", "intended created ready detached abandoned"),
        ("created", "created ready detached abandoned"),
        ("ready", "ready detached abandoned"),
        ("detached", "ready detached abandoned"),
        ("abandoned", "abandoned"),
    ],
)
def test_stage_follows_only_an_earlier_one_but_for_an_attach(before: Stage | None, after: str) -> None:
    assert {stage for stage in get_args(Stage) if is_legal_change(before, stage)} == set(after.split())


@pytest.mark.parametrize(
    ("report", "clean"),
    [
        (ReapReport(), True),
        (ReapReport(deleted=("a",), gone=("b",)), True),
        (ReapReport(doubtful=(INTENDED,)), False),
        (ReapReport(deleted=("a",), failed=(("b", APITimeoutError("", maybe_processed=True)),)), False),
    ],
)
def test_report_is_clean_if_nothing_is_doubtful_or_failed(report: ReapReport, clean: bool) -> None:
    assert report.clean is clean


def test_repr_of_a_record_does_not_show_its_owner() -> None:
    assert "namespace" not in repr(READY)


# The two clocks.

BOOTED = attrs.evolve(INTENDED, boot="this boot", booted_at=NOW - timedelta(hours=3))
SINCE_BOOT = 3 * 3600.0
HOUR = timedelta(hours=1)


def clocks(wall: datetime, since_boot: float = SINCE_BOOT, boot: str = "this boot") -> ClockReading:
    return ClockReading(wall, boot, since_boot)


@pytest.mark.parametrize("set_by", [timedelta(0), -HOUR, HOUR, timedelta(days=-400), timedelta(days=400)])
def test_expiry_goes_by_the_clock_of_the_same_boot_alone(set_by: timedelta) -> None:
    assert BOOTED.present(clocks(NOW + set_by)) == NOW
    assert not BOOTED.has_expired(clocks(NOW + set_by, SINCE_BOOT + 3599))
    assert BOOTED.has_expired(clocks(NOW + set_by, SINCE_BOOT + 3600))


@pytest.mark.parametrize("boot", ["another boot", ""])
def test_expiry_goes_by_the_time_of_day_in_another_boot(boot: str) -> None:
    assert not BOOTED.has_expired(clocks(NOW, SINCE_BOOT + 10**6, boot))
    assert BOOTED.has_expired(clocks(NOW + HOUR, 0, boot))
    # A record without a boot is of an earlier version, or of a system that does not tell.
    for unknown in (attrs.evolve(BOOTED, boot=""), attrs.evolve(BOOTED, booted_at=None)):
        assert not unknown.has_expired(clocks(NOW, SINCE_BOOT + 10**6))
        assert unknown.has_expired(clocks(NOW + HOUR, 0))


@pytest.mark.parametrize(
    ("wall", "since_boot", "left"),
    [
        (NOW, SINCE_BOOT, 300),
        (NOW + timedelta(minutes=5), SINCE_BOOT + 300, 0),
        (NOW + timedelta(minutes=50), SINCE_BOOT + 3000, 0),
        # One clock says that it is certain, the other that it is not.
        (NOW + HOUR, SINCE_BOOT + 299, 1),
        (NOW - HOUR, SINCE_BOOT + 300, 3900),
    ],
)
def test_record_is_certain_once_both_clocks_say_so(wall: datetime, since_boot: float, left: int) -> None:
    assert BOOTED.time_to_certainty(clocks(wall, since_boot)) == timedelta(seconds=left)


@given(record=records, now=moments)
def test_record_is_certain_from_its_moment_on_where_one_clock_is_known(record: RentalRecord, now: datetime) -> None:
    assert record.time_to_certainty(at(now)) == max(timedelta(0), record.certain_at - now)


def test_nothing_turns_up_after_the_longest_time_of_its_own_create() -> None:
    record = attrs.evolve(BOOTED, longest_create=timedelta(minutes=20))
    early = clocks(NOW - HOUR)
    assert record.time_to_certainty(early) == timedelta(minutes=20)
    assert BOOTED.time_to_certainty(early) == timedelta(minutes=65)


@given(record=records, wall=moments, since_boot=st.floats(0, 10**8), passed=st.floats(0, 10**6))
def test_rebased_record_has_the_same_times_left_by_the_clock_of_this_boot(
    record: RentalRecord, wall: datetime, since_boot: float, passed: float
) -> None:
    now = clocks(wall, since_boot)
    rebased = record.rebased(now)
    assert rebased.has_expired(now) is record.has_expired(now)
    later = clocks(wall, since_boot + passed)
    assert abs(rebased.present(later) - (wall + timedelta(seconds=passed))) < timedelta(milliseconds=1)
    if record.expires_at is not None and rebased.expires_at is not None:
        assert rebased.expires_at - rebased.intended_at == record.expires_at - record.intended_at
    assert rebased.rebased(later) == rebased
