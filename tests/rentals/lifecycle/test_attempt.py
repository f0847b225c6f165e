"""The step that ends an attempt comes from a value alone: a table, every state, and random results of steps."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu import Container
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.process_identity import ProcessIdentity
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.lifecycle.attempt import (
    CreateAttempt,
    Evidence,
    Fate,
    Step,
    UncertaintyWindow,
    Walk,
    next_step,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
RECORD = RentalRecord(
    name="rg-0000000000-0000000000",
    stage="intended",
    node_name="node",
    gpus=1,
    hourly_price=None,
    intended_at=NOW,
    expires_at=NOW + timedelta(hours=1),
    certain_at=NOW + timedelta(minutes=5),
    owner=ProcessIdentity("machine", "boot", "namespace", 7, "100"),
)
WINDOW = UncertaintyWindow(NOW + timedelta(minutes=1), 60.0)
OWN, TWIN = 7, 8
LAST = (Step.KEEP_ON_RECORD, Step.CLOSE_RECORD)


def attempt(evidence: Evidence, **fields: Any) -> CreateAttempt:
    container_id = OWN if OWN in fields.get("containers", {}) else None
    return CreateAttempt(record=attrs.evolve(RECORD, container_id=container_id), evidence=evidence, **fields)


@pytest.mark.parametrize(
    ("state", "step"),
    [
        (attempt(Evidence.NOT_PROCESSED), Step.CLOSE_RECORD),
        (attempt(Evidence.IN_FLIGHT), Step.AWAIT_ANSWER),
        # The service has answered with a container: it is deleted, then looked for once more.
        (attempt(Evidence.CREATED, containers={OWN: Fate.RUNNING}), Step.DELETE),
        (attempt(Evidence.CREATED, containers={OWN: Fate.DELETED}), Step.FINAL_WALK),
        (attempt(Evidence.CREATED, containers={OWN: Fate.DELETED}, walk=Walk.CONCLUSIVE), Step.CLOSE_RECORD),
        # Nothing else can exist, so that a list that fails keeps no record.
        (attempt(Evidence.CREATED, containers={OWN: Fate.DELETED}, walk=Walk.FAILED), Step.CLOSE_RECORD),
        (attempt(Evidence.CREATED, containers={OWN: Fate.NOT_DELETED}), Step.KEEP_ON_RECORD),
        # Its id is another's: only a walk can tell.
        (attempt(Evidence.CREATED, containers={OWN: Fate.REPLACED}), Step.FINAL_WALK),
        (attempt(Evidence.CREATED, containers={OWN: Fate.REPLACED}, walk=Walk.FAILED), Step.KEEP_ON_RECORD),
        (attempt(Evidence.CREATED, containers={OWN: Fate.REPLACED}, walk=Walk.CONCLUSIVE), Step.CLOSE_RECORD),
        # The service has acted twice: each container is deleted, whatever became of the others.
        (
            attempt(Evidence.CONFIRMED, containers={OWN: Fate.NOT_DELETED, TWIN: Fate.RUNNING}, walk=Walk.CONCLUSIVE),
            Step.DELETE,
        ),
        (
            attempt(Evidence.CONFIRMED, containers={OWN: Fate.DELETED, TWIN: Fate.NOT_DELETED}, walk=Walk.CONCLUSIVE),
            Step.KEEP_ON_RECORD,
        ),
        # The answer was lost.
        (attempt(Evidence.UNCLEAR, window=WINDOW), Step.SEARCH),
        (attempt(Evidence.UNCLEAR, window=WINDOW, searched=True), Step.FINAL_WALK),
        (attempt(Evidence.UNCLEAR, window=WINDOW, searched=True, walk=Walk.TOO_EARLY), Step.KEEP_ON_RECORD),
        (attempt(Evidence.UNCLEAR, window=WINDOW, searched=True, walk=Walk.FAILED), Step.KEEP_ON_RECORD),
        (attempt(Evidence.UNCLEAR, window=WINDOW, searched=True, walk=Walk.CONCLUSIVE), Step.CLOSE_RECORD),
        (attempt(Evidence.UNCLEAR, searched=True, walk=Walk.FAILED), Step.KEEP_ON_RECORD),
        # A create that may be acted on once more.
        (
            attempt(Evidence.CONFIRMED, containers={OWN: Fate.DELETED}, window=WINDOW, walk=Walk.TOO_EARLY),
            Step.KEEP_ON_RECORD,
        ),
        # What answers a create with a refusal may not be what acts on it.
        (attempt(Evidence.REFUSED, window=WINDOW), Step.FINAL_WALK),
        (attempt(Evidence.REFUSED, window=WINDOW, walk=Walk.TOO_EARLY), Step.KEEP_ON_RECORD),
        (attempt(Evidence.REFUSED, window=WINDOW, walk=Walk.CONCLUSIVE), Step.CLOSE_RECORD),
        (attempt(Evidence.REFUSED, containers={TWIN: Fate.RUNNING}, window=WINDOW), Step.DELETE),
    ],
)
def test_step_follows_from_what_is_known(state: CreateAttempt, step: Step) -> None:
    assert next_step(state) is step


def every_state() -> Iterator[CreateAttempt]:
    fates = (None, *Fate)
    for evidence, own, twin, window, searched, walk in product(
        Evidence, fates, fates, (None, WINDOW), (False, True), Walk
    ):
        known = {container_id: fate for container_id, fate in ((OWN, own), (TWIN, twin)) if fate is not None}
        yield attempt(evidence, containers=known, window=window, searched=searched, walk=walk)


def test_record_closes_only_when_nothing_is_left_and_nothing_can_turn_up() -> None:
    closed = kept = 0
    for state in every_state():
        step = next_step(state)
        closed += step is Step.CLOSE_RECORD
        kept += step is Step.KEEP_ON_RECORD
        if step is not Step.CLOSE_RECORD or state.evidence is Evidence.NOT_PROCESSED:
            continue
        assert not {Fate.RUNNING, Fate.NOT_DELETED} & set(state.containers.values()), state
        assert state.evidence is not Evidence.IN_FLIGHT
        is_answered = state.evidence in (Evidence.CREATED, Evidence.CONFIRMED)
        without_doubt = is_answered and state.window is None and Fate.REPLACED not in state.containers.values()
        assert state.walk is Walk.CONCLUSIVE or without_doubt, state
    assert closed > 100
    assert kept > 100


def test_attempt_is_deleted_before_its_record_ends_and_searched_for_before_its_last_walk() -> None:
    for state in every_state():
        step = next_step(state)
        if Fate.RUNNING in state.containers.values():
            assert step in (Step.DELETE, Step.AWAIT_ANSWER, Step.CLOSE_RECORD)
            assert (step is Step.CLOSE_RECORD) == (state.evidence is Evidence.NOT_PROCESSED)
        if step is Step.FINAL_WALK:
            assert state.searched or state.evidence is not Evidence.UNCLEAR
        if step in LAST and state.evidence is not Evidence.NOT_PROCESSED and not state.has_undeleted:
            assert state.walk is not Walk.NOT_RUN


def container(container_id: int) -> Container:
    return Container(id=container_id, name=RECORD.name)


def results_of(step: Step, state: CreateAttempt, draw: Any) -> CreateAttempt:
    """Return an attempt after a step that ended in one of the ways in which it can end."""
    clocks = ClockReading(NOW)
    found = draw(st.lists(st.sampled_from([OWN, TWIN, 9]), unique=True, max_size=3))
    match step:
        case Step.AWAIT_ANSWER:
            evidence = draw(
                st.sampled_from([Evidence.NOT_PROCESSED, Evidence.UNCLEAR, Evidence.REFUSED, Evidence.CREATED])
            )
            if evidence is Evidence.CREATED:
                return state.created([container(OWN)], evidence, clocks)
            return state.not_processed() if evidence is Evidence.NOT_PROCESSED else state.in_doubt(evidence, WINDOW)
        case Step.DELETE:
            for container_id in state.running:
                state = state.ended(
                    container_id, draw(st.sampled_from([fate for fate in Fate if fate is not Fate.RUNNING]))
                )
            return state
        case Step.SEARCH if found:
            return state.created(map(container, found), Evidence.CONFIRMED, clocks).search_ended()
        case Step.SEARCH:
            walked = state.walked([], began=draw(st.sampled_from([0.0, 60.0])), is_complete=draw(st.booleans()))
            return walked.search_ended()
        case _:
            return state.walked(found, began=draw(st.sampled_from([0.0, 60.0])), is_complete=draw(st.booleans()))


@given(data=st.data())
def test_cleanup_ends_whatever_its_steps_result_in_and_forgets_no_container(data: st.DataObject) -> None:
    state = CreateAttempt(record=RECORD)
    if data.draw(st.booleans()):
        state = state.sent()
    taken: list[Step] = []
    while (step := next_step(state)) not in LAST:
        known = set(state.containers)
        state = results_of(step, state, data.draw)
        assert known <= set(state.containers)
        taken.append(step)
        assert len(taken) <= 6
    assert taken.count(Step.SEARCH) <= 1
    assert taken.count(Step.FINAL_WALK) <= 1
    if step is Step.KEEP_ON_RECORD:
        left = state.abandoned_record("released", ClockReading(NOW))
        assert (left.stage, left.owner, left.name) == ("abandoned", None, RECORD.name)
        # The reaper deletes by the id where there is one, and else searches by the name.
        assert left.container_id is None or state.containers[left.container_id] is Fate.NOT_DELETED
    # Another cleanup tries all that failed again.
    again = state.cleanup_begun()
    assert (again.walk, again.has_undeleted) == (Walk.NOT_RUN, False)
    assert set(again.running) == {each for each, fate in state.containers.items() if fate is Fate.NOT_DELETED}


@pytest.mark.parametrize(
    ("fields", "by_id"),
    [
        ({"containers": {OWN: Fate.NOT_DELETED}}, True),
        ({"containers": {OWN: Fate.NOT_DELETED}, "window": WINDOW}, True),
        ({"containers": {OWN: Fate.NOT_DELETED, TWIN: Fate.NOT_DELETED}}, True),
        ({"containers": {OWN: Fate.DELETED, TWIN: Fate.NOT_DELETED}}, False),
        ({"containers": {OWN: Fate.DELETED}, "window": WINDOW}, False),
        ({"containers": {OWN: Fate.REPLACED}}, False),
    ],
)
def test_record_that_is_kept_names_a_container_only_if_that_is_left(fields: dict[str, Any], by_id: bool) -> None:
    assert attempt(Evidence.CONFIRMED, **fields).abandoned_record("released", ClockReading(NOW)).container_id == (
        OWN if by_id else None
    )


@pytest.mark.parametrize(
    ("stage", "container_id", "evidence"),
    [
        ("intended", None, Evidence.UNCLEAR),
        ("created", OWN, Evidence.CREATED),
        ("ready", OWN, Evidence.CONFIRMED),
        ("detached", OWN, Evidence.CONFIRMED),
        ("abandoned", OWN, Evidence.CREATED),
        ("abandoned", None, Evidence.UNCLEAR),
    ],
)
@pytest.mark.parametrize("seconds", [0, 299, 300, 10_000])
def test_attempt_of_a_record_is_in_doubt_as_long_as_the_record_says(
    stage: Any, container_id: int | None, evidence: Evidence, seconds: int
) -> None:
    record = attrs.evolve(RECORD, stage=stage, container_id=container_id)
    clocks = ClockReading(NOW + timedelta(seconds=seconds))
    state = CreateAttempt.from_record(record, clocks=clocks, loop_time=1000.0)
    assert state.evidence is evidence
    assert state.running == ([] if container_id is None else [container_id])
    left = max(0, 300 - seconds)
    assert state.window == (UncertaintyWindow(record.certain_at, 1000.0 + left) if left else None)
    # The reaper walks once, and does not search first.
    assert next_step(state) is (Step.FINAL_WALK if container_id is None else Step.DELETE)


def test_walk_is_conclusive_only_if_it_began_after_the_window_and_was_complete() -> None:
    state = attempt(Evidence.UNCLEAR, window=WINDOW, searched=True)
    assert state.walked([], began=59.9, is_complete=True).walk is Walk.TOO_EARLY
    assert state.walked([], began=60.0, is_complete=True).walk is Walk.CONCLUSIVE
    assert state.walked([OWN], began=60.0, is_complete=False).walk is Walk.FAILED
    assert state.certain().walked([], began=0.0, is_complete=True).walk is Walk.CONCLUSIVE
    # A container that was deleted before may still be listed, and does not count again.
    deleted = attempt(Evidence.CREATED, containers={OWN: Fate.DELETED})
    assert deleted.walked([OWN, TWIN], began=0.0, is_complete=True).running == [TWIN]
    # No deletion of ours stands behind this one.
    gone = attempt(Evidence.CREATED, containers={OWN: Fate.ALREADY_GONE})
    assert next_step(gone.walked([OWN], began=0.0, is_complete=True)) is Step.DELETE
