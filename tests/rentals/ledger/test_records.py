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
from netmind_rentgpu.rentals.ledger.process_identity import ProcessIdentity
from netmind_rentgpu.rentals.ledger.records import (
    ReapAction,
    ReapReport,
    RentalRecord,
    Stage,
    action_after_walk,
    action_for,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
OWNER = ProcessIdentity("machine", "boot", "namespace", 7, "100")
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
    assert action_for(record, now=NOW, owner_is_gone=False) is lives
    assert action_for(record, now=NOW, owner_is_gone=True) is is_gone
    for owner_is_gone in (False, True):
        late = attrs.evolve(record, expires_at=NOW - SECOND)
        assert action_for(late, now=NOW, owner_is_gone=owner_is_gone) is expired


@pytest.mark.parametrize("record", [CREATED, READY, DETACHED])
def test_record_is_deleted_from_the_very_moment_of_its_expiry(record: RentalRecord) -> None:
    moment = NOW + timedelta(hours=1)
    assert action_for(record, now=moment - timedelta(microseconds=1), owner_is_gone=False) is LEAVE
    assert action_for(record, now=moment, owner_is_gone=False) is DELETE


def test_kept_rental_never_expires_but_is_deleted_if_its_owner_is_gone() -> None:
    kept = attrs.evolve(CREATED, expires_at=None)
    century = NOW + timedelta(days=36_525)
    assert action_for(kept, now=century, owner_is_gone=False) is LEAVE
    assert action_for(kept, now=NOW, owner_is_gone=True) is DELETE
    assert action_for(attrs.evolve(kept, container_id=None), now=NOW, owner_is_gone=True) is LOOK


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
    found = action_for(record, now=now, owner_is_gone=owner_is_gone)
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
    found = action_for(record, now=first, owner_is_gone=owner_is_gone)
    assert found is LEAVE or action_for(record, now=last, owner_is_gone=owner_is_gone) is found


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
    assert action_after_walk(INTENDED, found=found, looked_at=INTENDED.certain_at + after) is expected


@given(record=records, looked_at=moments)
def test_record_is_closed_only_by_a_look_that_is_late_enough(record: RentalRecord, looked_at: datetime) -> None:
    assert action_after_walk(record, found=True, looked_at=looked_at) is ReapAction.DELETE
    found = action_after_walk(record, found=False, looked_at=looked_at)
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
