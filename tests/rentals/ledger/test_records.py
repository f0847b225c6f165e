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
from netmind_rentgpu.rentals.ledger.records import (
    ReapAction,
    ReapReport,
    RentalRecord,
    Stage,
    action_after_walk,
    action_for,
    may_turn_up,
)

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
LEAVE, DELETE, LOOK = ReapAction.LEAVE, ReapAction.DELETE, ReapAction.LOOK


@pytest.mark.parametrize(
    ("record", "lives", "is_gone", "expired"),
    [
        # The verdicts: while the owner lives, when the owner is gone, when the expiry has passed.
        (INTENDED, LEAVE, LOOK, LOOK),
        (CREATED, LEAVE, DELETE, DELETE),
        (READY, LEAVE, DELETE, DELETE),
        (attrs.evolve(INTENDED, container_id=5), LEAVE, DELETE, DELETE),
        (attrs.evolve(READY, container_id=None), LEAVE, LOOK, LOOK),
        (DETACHED, LEAVE, LEAVE, DELETE),
        # The owner of a detached rental does not matter.
        (attrs.evolve(DETACHED, owner=OWNER), LEAVE, LEAVE, DELETE),
        (ABANDONED, DELETE, DELETE, DELETE),
        (ABANDONED_INTENT, LOOK, LOOK, LOOK),
        # A create attempt without a known owner may belong to a living process.
        (attrs.evolve(CREATED, owner=None), LEAVE, LEAVE, DELETE),
    ],
)
def test_verdict_follows_stage_owner_and_expiry(
    record: RentalRecord, lives: ReapAction, is_gone: ReapAction, expired: ReapAction
) -> None:
    assert action_for(record, now=at(NOW), owner_is_gone=False) is lives
    assert action_for(record, now=at(NOW), owner_is_gone=True) is is_gone
    for owner_is_gone in (False, True):
        late = attrs.evolve(record, expires_at=NOW - SECOND)
        assert action_for(late, now=at(NOW), owner_is_gone=owner_is_gone) is expired


@pytest.mark.parametrize("record", [CREATED, READY, DETACHED])
def test_record_is_deleted_from_the_very_moment_of_its_expiry(record: RentalRecord) -> None:
    moment = NOW + timedelta(hours=1)
    assert action_for(record, now=at(moment - timedelta(microseconds=1)), owner_is_gone=False) is LEAVE
    assert action_for(record, now=at(moment), owner_is_gone=False) is DELETE


def test_kept_rental_never_expires_but_is_deleted_if_its_owner_is_gone() -> None:
    kept = attrs.evolve(CREATED, expires_at=None)
    century = NOW + timedelta(days=36_525)
    assert action_for(kept, now=at(century), owner_is_gone=False) is LEAVE
    assert action_for(kept, now=at(NOW), owner_is_gone=True) is DELETE
    assert action_for(attrs.evolve(kept, container_id=None), now=at(NOW), owner_is_gone=True) is LOOK


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
    found = action_for(record, now=at(now), owner_is_gone=owner_is_gone)
    expired = record.expires_at is not None and record.expires_at <= now
    if expired or record.stage == "abandoned":
        assert found is not LEAVE
    elif not owner_is_gone or record.owner is None:
        assert found is LEAVE
    # A record is never closed without a search, and a record with a container id needs no search.
    assert found in (LEAVE, LOOK if record.container_id is None else DELETE)


@given(record=records, now=moments, later=moments, owner_is_gone=st.booleans())
def test_verdict_to_delete_stays_at_any_later_time(
    record: RentalRecord, now: datetime, later: datetime, owner_is_gone: bool
) -> None:
    first, last = sorted((now, later))
    found = action_for(record, now=at(first), owner_is_gone=owner_is_gone)
    assert found is LEAVE or action_for(record, now=at(last), owner_is_gone=owner_is_gone) is found


@pytest.mark.parametrize(
    ("found", "after", "expected"),
    [
        # Looks before, at and after the moment from which the service certainly lists the container.
        (True, timedelta(0), ReapAction.DELETE),
        (True, -SECOND, ReapAction.DELETE),
        (True, SECOND, ReapAction.DELETE),
        (False, -timedelta(microseconds=1), ReapAction.DOUBT),
        (False, timedelta(0), ReapAction.CLOSE),
        (False, SECOND, ReapAction.CLOSE),
    ],
)
def test_verdict_after_a_look_deletes_a_found_container_and_closes_only_late_enough(
    found: bool, after: timedelta, expected: ReapAction
) -> None:
    assert action_after_walk(INTENDED, found=found, looked_at=at(INTENDED.certain_at + after)) is expected


@given(record=records, looked_at=moments)
def test_record_is_closed_only_by_a_look_that_is_late_enough(record: RentalRecord, looked_at: datetime) -> None:
    assert action_after_walk(record, found=True, looked_at=at(looked_at)) is ReapAction.DELETE
    found = action_after_walk(record, found=False, looked_at=at(looked_at))
    assert found is (ReapAction.DOUBT if looked_at < record.certain_at else ReapAction.CLOSE)


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
    ("wall", "since_boot", "turns_up"),
    [
        (NOW, SINCE_BOOT, True),
        (NOW + timedelta(minutes=5), SINCE_BOOT + 300, False),
        # One clock says that it is certain, the other that it is not.
        (NOW + HOUR, SINCE_BOOT + 299, True),
        (NOW - HOUR, SINCE_BOOT + 300, True),
    ],
)
def test_record_is_in_doubt_until_both_clocks_say_that_it_is_not(
    wall: datetime, since_boot: float, turns_up: bool
) -> None:
    assert may_turn_up(BOOTED, looked_at=clocks(wall, since_boot)) is turns_up
    expected = ReapAction.DOUBT if turns_up else ReapAction.CLOSE
    assert action_after_walk(BOOTED, found=False, looked_at=clocks(wall, since_boot)) is expected


def test_nothing_turns_up_after_the_longest_time_of_its_own_create() -> None:
    record = attrs.evolve(BOOTED, longest_create=timedelta(minutes=20))
    early = clocks(NOW - HOUR)
    assert may_turn_up(record, looked_at=early, waited=timedelta(minutes=19))
    assert not may_turn_up(record, looked_at=early, waited=timedelta(minutes=20))
    assert may_turn_up(BOOTED, looked_at=early, waited=timedelta(days=20))


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
