"""A guardian's look, run here: what it ends, what it leaves, and when it has to look again."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from full_disk import disk_full
from lifecycle import put_as_it_is, refuse_deletes
from rented import IMAGE

from netmind_rentgpu import AsyncRentGPU, RentalRecord
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.rentals.guardian import look as look_module
from netmind_rentgpu.rentals.guardian.registration import registration_of
from netmind_rentgpu.rentals.ledger.process_identity import ProcessIdentity, this_process
from netmind_rentgpu.rentals.ledger.rows import owner_text

ME, FORMER, OTHER = (ProcessIdentity("", "", "of a test", number, "") for number in (1, 2, 3))
# A process of another machine, of which no reaper knows whether it is dead.
OWNER = attrs.evolve(this_process(), machine="another", boot="another", process_id=4711)


@pytest.fixture
async def record(gpu: AsyncRentGPU) -> RentalRecord:
    """Return the record of a rental that another process has, and that the guardian guards."""
    async with gpu.rent(image=IMAGE) as rental:
        detached = await rental.detach()
    held = attrs.evolve(detached, stage="ready", owner=OWNER, guardian=ME)
    await put_as_it_is(gpu, held)
    return held


async def look(
    gpu: AsyncRentGPU, *, gone: bool, former: tuple[ProcessIdentity, ...] = (), **options: Any
) -> float | None:
    """Look as the guardian of a client does; return what it says of that client."""
    registration = {
        **registration_of(gpu._parts),
        "guardian": owner_text(ME),
        "owner": owner_text(OWNER),
        "former": [owner_text(each) for each in former],
        "grace": 10.0,
        "between_job_looks": 60.0,
        "reading_end": 0.0,
        **options,
    }
    found = await look_module._look([("key", registration)], parent_is_gone=gone)
    assert found.keys() == {"key"}
    return found["key"]


def expired(record: RentalRecord, ago: timedelta) -> RentalRecord:
    clock = record.intended_at - ago
    return attrs.evolve(record, expires_at=clock, time_limit=clock)


async def test_rental_of_the_dead_is_ended(gpu: AsyncRentGPU, emulator: Emulator, record: RentalRecord) -> None:
    assert await look(gpu, gone=True) is None
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []
    (past,) = await gpu.rentals.history()
    assert past.cause == "reaped"


async def test_rental_of_the_dead_is_ended_while_the_disk_is_full(
    gpu: AsyncRentGPU, emulator: Emulator, record: RentalRecord
) -> None:
    former = attrs.evolve(record, guardian=FORMER)
    await put_as_it_is(gpu, former)
    with disk_full():
        assert await look(gpu, gone=True, former=(FORMER,)) == 0
        emulator.assert_nothing_rented()
    assert await look(gpu, gone=True, former=(FORMER,)) is None
    assert await gpu.rentals.list() == []


async def test_detached_rental_is_left_while_no_process_could_say_that_it_has_attached(
    gpu: AsyncRentGPU, emulator: Emulator, record: RentalRecord
) -> None:
    over = attrs.evolve(expired(record, timedelta(0)), stage="detached", owner=None)
    await put_as_it_is(gpu, over)
    with disk_full():
        assert await look(gpu, gone=True) == 0
        assert len(emulator.running) == 1
    assert await look(gpu, gone=True) is None
    emulator.assert_nothing_rented()


async def test_rental_of_the_living_is_left(gpu: AsyncRentGPU, emulator: Emulator, record: RentalRecord) -> None:
    seconds = await look(gpu, gone=False)
    assert seconds == pytest.approx(24 * 3600, abs=120)
    assert await gpu.rentals.list() == [record]
    assert len(emulator.running) == 1


@pytest.mark.parametrize(
    "changes",
    [{"guardian": OTHER}, {"guardian": None}, {"owner": OTHER}, {"stage": "detached", "owner": None}],
    ids=["another's", "no one's", "attached elsewhere", "detached"],
)
async def test_what_the_dead_does_not_own_is_left(
    gpu: AsyncRentGPU, emulator: Emulator, record: RentalRecord, changes: dict[str, Any]
) -> None:
    left = attrs.evolve(record, **changes)
    await put_as_it_is(gpu, left)
    seconds = await look(gpu, gone=True)
    assert (seconds is None) == (left.guardian != ME)
    assert await gpu.rentals.list() == [left]
    assert len(emulator.running) == 1


@pytest.mark.parametrize(
    ("changes", "ago", "ends"),
    [
        ({}, 5, False),
        ({}, 3600, True),
        ({"owner": OTHER}, 3600, True),
        ({"stage": "detached", "owner": None}, 0, True),
        ({"guardian": OTHER}, 3600, False),
    ],
)
@pytest.mark.parametrize("gone", [False, True])
async def test_deadline_ends_what_is_guarded_and_leaves_the_living_a_moment(
    gpu: AsyncRentGPU,
    emulator: Emulator,
    record: RentalRecord,
    changes: dict[str, Any],
    ago: float,
    ends: bool,
    gone: bool,
) -> None:
    present = record.present(gpu._context.clock())
    past = expired(record, record.intended_at - present + timedelta(seconds=ago))
    await put_as_it_is(gpu, attrs.evolve(past, **changes))
    ends = ends or (gone and not changes)
    seconds = await look(gpu, gone=gone)
    assert bool(emulator.running) != ends
    if ends or "guardian" in changes:
        assert seconds is None
    else:
        assert seconds is not None
        assert 0 < seconds <= 10 - ago


async def test_intent_of_the_living_keeps_its_record_and_loses_its_machine_at_its_deadline(
    gpu: AsyncRentGPU, emulator: Emulator, record: RentalRecord
) -> None:
    intent = attrs.evolve(expired(record, timedelta(hours=1)), stage="intended", container_id=None)
    await put_as_it_is(gpu, intent)
    assert await look(gpu, gone=False) == 0
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == [intent]
    # The dead sends nothing any more.
    assert await look(gpu, gone=True) is None
    assert await gpu.rentals.list() == []


async def test_unclear_create_of_the_dead_is_looked_for_as_long_as_it_may_turn_up(
    gpu: AsyncRentGPU, emulator: Emulator, record: RentalRecord
) -> None:
    far = record.intended_at + timedelta(hours=5)
    intent = attrs.evolve(
        record, stage="intended", container_id=None, certain_at=far, longest_create=timedelta(hours=5)
    )
    await put_as_it_is(gpu, intent)
    # No longer than the lags, although the living could still send it.
    assert await look(gpu, gone=True) is None
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


async def test_rental_that_was_given_up_is_ended_although_its_process_lives(
    gpu: AsyncRentGPU, emulator: Emulator, record: RentalRecord
) -> None:
    await put_as_it_is(gpu, attrs.evolve(record, stage="abandoned", owner=None))
    assert await look(gpu, gone=False) is None
    emulator.assert_nothing_rented()


async def test_what_could_not_be_ended_is_due_again(
    gpu: AsyncRentGPU, emulator: Emulator, record: RentalRecord
) -> None:
    emulator.faults.add(Fault("status", call="delete_container", status=403, times="all"))
    assert await look(gpu, gone=True) == 0
    emulator.faults.clear()
    refuse_deletes(emulator, 2)
    assert await look(gpu, gone=True) is None
    emulator.assert_nothing_rented()


async def test_rentals_of_former_guardians_are_taken_over(
    gpu: AsyncRentGPU, emulator: Emulator, record: RentalRecord
) -> None:
    await put_as_it_is(gpu, attrs.evolve(record, guardian=FORMER))
    assert await look(gpu, gone=False) is None
    assert await look(gpu, gone=False, former=(OTHER, FORMER)) is not None
    assert (await gpu.rentals.get(record)).guardian == ME
    assert await look(gpu, gone=True) is None
    emulator.assert_nothing_rented()


async def test_look_that_fails_is_due_again(gpu: AsyncRentGPU, record: RentalRecord, tmp_path: Path) -> None:
    unusable = tmp_path / "no state"
    unusable.write_text("something else")
    assert await look(gpu, gone=True, state=str(unusable)) == 0
    assert await look(gpu, gone=True, guardian="unreadable") is None


def test_look_runs_an_event_loop_of_its_own() -> None:
    assert look_module.look([], parent_is_gone=True) == {}
