"""The times of a poller's requests, without a poller: a table, and properties of every history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.errors import APIConnectionError
from netmind_rentgpu.waiting.schedule import PollSchedule
from netmind_rentgpu.waiting.strategy import AdaptiveInterval

BROKEN = APIConnectionError("reset", maybe_processed=True)


def schedule() -> PollSchedule:
    """Return a schedule whose first round was due at 100 s, and is due again at 100.25 s."""
    found = PollSchedule(AdaptiveInterval())
    found.reset(100.0)
    found.whole_round_finished(100.0, 0.0, changed=False, repeat=False)
    return found


@pytest.mark.parametrize(
    ("now", "in_round", "has_new", "due"),
    [
        (100.0, False, False, 100.25),
        (100.1, False, False, 100.25),
        (101.0, False, False, 100.25),
        # A round under way, and new containers, do not wait.
        (100.1, True, False, 100.1),
        (100.1, False, True, 100.1),
    ],
)
def test_next_request_is_due_with_the_next_round_or_at_once(
    now: float, in_round: bool, has_new: bool, due: float
) -> None:
    assert schedule().next_request(now, in_round=in_round, has_new=has_new) == due


def test_failure_postpones_every_request_until_a_round_has_ended() -> None:
    found = schedule()
    assert found.failed(100.1, 0.0, BROKEN) == 0.25
    assert found.failed(100.2, 0.0, BROKEN) == 0.5
    # An earlier failure with a longer pause still counts.
    assert found.next_request(100.2, in_round=True, has_new=True) == pytest.approx(100.7)
    found.round_finished()
    assert found.next_request(100.2, in_round=True, has_new=True) == 100.2


def test_due_round_waits_for_creates_once_and_for_a_moment() -> None:
    found = schedule()
    found.creates = 2
    # Not before the round is due, nor while one is under way.
    assert found.next_request(100.1, in_round=False, has_new=False) == 100.25
    assert found.next_request(100.1, in_round=True, has_new=False) == 100.1
    assert found.next_request(100.3, in_round=False, has_new=False) == pytest.approx(100.55)
    assert found.next_request(100.5, in_round=False, has_new=False) == pytest.approx(100.55)
    assert found.next_request(100.6, in_round=False, has_new=False) <= 100.6
    found.round_begun()
    assert found.next_request(101.0, in_round=False, has_new=True) == pytest.approx(101.25)
    found.creates = 0
    assert found.next_request(101.0, in_round=False, has_new=True) == 101.0


def test_round_that_has_to_be_repeated_is_due_at_once() -> None:
    found = schedule()
    found.whole_round_finished(200.0, 0.5, changed=True, repeat=True)
    assert found.is_round_due(200.0)
    found.whole_round_finished(200.0, 0.5, changed=True, repeat=False)
    assert not found.is_round_due(200.0)
    assert found.is_round_due(200.25)


def test_round_of_an_earlier_leader_is_stale_after_the_longest_interval() -> None:
    found = schedule()
    found.leader_stopped(100.0)
    assert not found.is_stale(105.0)
    assert found.is_stale(105.1)


events = st.lists(
    st.tuples(
        st.sampled_from(["fails", "finishes", "changes", "creates", "created", "begins"]),
        st.floats(0, 10),
        st.floats(0, 1, exclude_max=True),
    ),
    max_size=50,
)


@given(events=events, in_round=st.booleans(), has_new=st.booleans())
def test_no_history_of_events_postpones_the_next_request_beyond_the_longest_pause(
    events: list[tuple[str, float, float]], in_round: bool, has_new: bool
) -> None:
    found, now = PollSchedule(AdaptiveInterval()), 0.0
    found.reset(now)
    for event, later, random in events:
        now += later
        match event:
            case "fails":
                found.failed(now, random, BROKEN)
            case "finishes" | "changes":
                found.round_finished()
                found.whole_round_finished(now, random, changed=event == "changes", repeat=False)
            case "creates" | "created":
                found.creates = max(0, found.creates + (1 if event == "creates" else -1))
            case _:
                found.round_begun()
        due = found.next_request(now, in_round=in_round, has_new=has_new)
        assert due <= now + found.interval.longest
        # It waits for creates for a moment only, whatever comes in between.
        assert found.next_request(due, in_round=in_round, has_new=has_new) <= due + found.interval.shortest
