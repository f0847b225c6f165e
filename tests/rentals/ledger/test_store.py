"""The ledger: reading and writing of records, shared commits, and disks that are full or cannot lock."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest
from programs import Program
from rented import IMAGE, client
from short_forms import thinned
from state_files import state_at

from netmind_rentgpu import RentalEndedError, StateFileError
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.process_identity import this_process
from netmind_rentgpu.rentals.ledger.records import RentalRecord, Stage, is_legal_change
from netmind_rentgpu.rentals.ledger.store import Ledger
from netmind_rentgpu.state_file import LONGEST_LOCK, State

RECORD = RentalRecord(
    name="rg-1",
    stage="intended",
    node_name="node",
    gpus=2,
    hourly_price=Decimal("0.50"),
    intended_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    expires_at=datetime(2026, 1, 3, 3, 4, 5, 678, tzinfo=UTC),
    certain_at=datetime(2026, 1, 2, 3, 5, tzinfo=UTC),
    owner=this_process(),
    boot="a boot",
    booted_at=datetime(2026, 1, 1, tzinfo=UTC),
    longest_create=timedelta(seconds=270.5),
)


@pytest.fixture
def state_file(state: Path) -> Iterator[State]:
    state_file = state_at(state)
    yield state_file
    state_file.close()


@pytest.fixture
def ledger(state_file: State) -> Ledger:
    return Ledger(state_file)


async def test_stored_record_reads_back_unchanged(state_file: State, ledger: Ledger) -> None:
    without_optional = attrs.evolve(
        RECORD, name="rg-2", hourly_price=None, expires_at=None, owner=None, booted_at=None, longest_create=None
    )
    await ledger.insert(RECORD)
    await ledger.insert(without_optional)
    assert await ledger.list_open() == [RECORD, without_optional]
    another = state_at(state_file.path, "another-token")
    assert await Ledger(another).list_open() == []
    another.close()
    ready = attrs.evolve(RECORD, stage="ready", container_id=7, shown_name="rg-", refused=True)
    await ledger.update(ready)
    assert await ledger.list_open() == [ready, without_optional]
    for name in ("rg-1", "rg-2", "rg-3"):
        await ledger.close(name, None)
    assert await ledger.list_open() == []


async def test_row_is_inserted_once(ledger: Ledger) -> None:
    await ledger.insert(RECORD)
    with pytest.raises(StateFileError, match="UNIQUE constraint failed"):
        await ledger.insert(attrs.evolve(RECORD, stage="ready"))
    assert await ledger.list_open() == [RECORD]


async def test_row_that_another_process_has_closed_is_not_written_again(ledger: Ledger) -> None:
    await ledger.insert(RECORD)
    await ledger.close(RECORD.name, None)
    ready = attrs.evolve(RECORD, stage="ready", container_id=7)
    for write in (ledger.update, ledger.update_soon, ledger.detach):
        with pytest.raises(RentalEndedError, match=r"could not record rental rg-1 as .*: another process has ended it"):
            await write(ready)
    assert await ledger.list_open() == []
    # But for a container that has to be deleted after all.
    over = attrs.evolve(ready, stage="abandoned", owner=None)
    await ledger.abandon(over, RECORD.owner)
    assert await ledger.list_open() == [over]
    await ledger.close(RECORD.name, None)
    await ledger.reopen(ready)
    await ledger.reopen(over)
    assert await ledger.list_open() == [ready]


async def test_row_of_another_owner_is_not_written(ledger: Ledger) -> None:
    other = attrs.evolve(this_process(), process_id=1)
    taken = attrs.evolve(RECORD, stage="ready", owner=other)
    await ledger.insert(taken)
    for write in (ledger.update, ledger.detach):
        with pytest.raises(RentalEndedError):
            await write(attrs.evolve(RECORD, stage="ready"))
    with pytest.raises(RentalEndedError):
        await ledger.abandon(attrs.evolve(RECORD, stage="abandoned", owner=None), RECORD.owner)
    assert await ledger.list_open() == [taken]


async def test_owner_writes_no_deadline(ledger: Ledger) -> None:
    await ledger.insert(RECORD)
    later = attrs.evolve(
        RECORD, expires_at=None, hourly_price=None, gpus=7, node_name="another", boot="", longest_create=None
    )
    await ledger.update(attrs.evolve(later, stage="created", container_id=7))
    assert await ledger.list_open() == [attrs.evolve(RECORD, stage="created", container_id=7)]
    detached = await ledger.detach(attrs.evolve(later, stage="ready", container_id=7))
    assert detached == attrs.evolve(RECORD, stage="detached", container_id=7, owner=None)
    assert await ledger.list_open() == [detached]


async def test_container_id_too_large_for_the_state_file_is_refused(ledger: Ledger) -> None:
    with pytest.raises(StateFileError, match="too large"):
        await ledger.insert(attrs.evolve(RECORD, container_id=2**63))
    assert await ledger.list_open() == []


async def test_detached_record_is_taken_by_only_one_caller(ledger: Ledger) -> None:
    process, now = this_process(), ClockReading(RECORD.intended_at)
    await ledger.insert(RECORD)
    assert await ledger.claim_detached("rg-1", process, now) is None
    await ledger.detach(attrs.evolve(RECORD, container_id=7))
    assert await ledger.claim_detached("rg-1", process, ClockReading(RECORD.intended_at + timedelta(days=2))) is None
    taken = await asyncio.gather(*(ledger.claim_detached("rg-1", process, now) for _ in range(5)))
    assert len([record for record in taken if record is not None]) == 1
    other = attrs.evolve(process, process_id=1)
    await ledger.return_detached("rg-1", other)
    assert (await ledger.list_open())[0].stage == "ready"
    await ledger.return_detached("rg-1", process)
    assert (await ledger.list_open())[0].stage == "detached"


@pytest.mark.parametrize("before", get_args(Stage))
@pytest.mark.parametrize("after", get_args(Stage))
async def test_stage_that_cannot_follow_the_present_one_is_not_written(
    ledger: Ledger, before: Stage, after: Stage
) -> None:
    first = attrs.evolve(RECORD, stage=before)
    await ledger.insert(first)
    second = attrs.evolve(RECORD, stage=after, container_id=7)
    if is_legal_change(before, after):
        await ledger.update(second)
        assert await ledger.list_open() == [second]
        return
    with pytest.raises(
        RentalEndedError, match=f"could not record rental rg-1 as {after}: another process has ended it"
    ):
        await ledger.update(second)
    assert await ledger.list_open() == [first]


async def test_record_whose_stage_is_unreadable_is_written_over(state: Path, ledger: Ledger) -> None:
    await ledger.insert(RECORD)
    damage(state, "stage = CAST(x'ff' AS TEXT)", RECORD.name)
    await ledger.update(attrs.evolve(RECORD, stage="ready"))
    assert [record.stage for record in await ledger.list_open()] == ["ready"]


DAMAGES = [
    "expires_at = 'soon'",
    "certain_at = ''",
    "intended_at = '2026-01-02T03:04:05'",
    "stage = 'ended'",
    "hourly_price = 'cheap'",
    "hourly_price = 'NaN'",
    "booted_at = 'then'",
    "booted_at = '9999-12-31T23:59:59+00:00'",
    "intended_at = '0001-01-01T00:00:00+00:00'",
    "owner = 'me'",
    "owner = '[]'",
    "owner = '{}'",
    """owner = '{"machine": "m", "boot": "b", "namespace": "n", "process_id": "7", "started": "1"}'""",
    """owner = '{"machine": "m", "boot": "b", "namespace": "n", "process_id": -1, "started": "1"}'""",
    """owner = '{"machine": "m", "boot": "b", "namespace": "n", "process_id": 99999999999, "started": "1"}'""",
    """owner = '{"machine": 7, "boot": "b", "namespace": "n", "process_id": 7, "started": "1"}'""",
    "owner = " + repr("[" * 10_000),
    "expires_at = CAST(x'ff' AS TEXT)",
    "time_limit = 'soon'",
    "time_limit = ''",
    "extendable_to = '2026-01-02T03:04:05'",
    "budget = 'much'",
    "budget = 'Infinity'",
    "spent_before = ''",
]


def damage(state: Path, change: str, name: str) -> None:
    """Change one record in the state file to what cannot be read."""
    with closing(sqlite3.connect(state)) as connection:
        changed = connection.execute(f"UPDATE rentals SET {change} WHERE name = ?", (name,))
        assert changed.rowcount == 1
        connection.commit()


@pytest.mark.parametrize("change", DAMAGES)
async def test_unreadable_record_is_set_aside_and_logged_with_its_name(
    state: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    await ledger.insert(attrs.evolve(RECORD, container_id=105))
    other = attrs.evolve(RECORD, name="rg-2")
    await ledger.insert(other)
    damage(state, change, "rg-1")
    assert await ledger.list_open() == [other]
    assert "could not read the record of rental rg-1" in caplog.text
    assert "container 105 may still run" in caplog.text
    records, unreadable = await ledger.read_open()
    assert (records, list(unreadable)) == ([other], ["rg-1"])


async def test_record_is_claimed_however_its_owner_is_written(state: Path, ledger: Ledger) -> None:
    await ledger.insert(RECORD)
    damage(state, "owner = replace(owner, ', ', ',   ')", "rg-1")
    (record,) = await ledger.list_open()
    assert record.owner == this_process()
    assert await ledger.claim_for_reap(record, is_due=lambda _: True)
    assert not await ledger.claim_for_reap(record, is_due=lambda _: True)
    assert [claimed.stage for claimed in await ledger.list_open()] == ["abandoned"]


async def test_record_with_a_node_name_that_is_not_utf_8_is_read(state: Path, ledger: Ledger) -> None:
    await ledger.insert(RECORD)
    damage(state, "node_name = CAST(x'6eff' AS TEXT)", "rg-1")
    assert [record.node_name for record in await ledger.list_open()] == ["n\\xff"]


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4, 5, 6])
async def test_older_state_file_is_migrated_and_keeps_its_rows(
    state: Path, state_file: State, ledger: Ledger, version: int
) -> None:
    from netmind_rentgpu.state_schema import MIGRATIONS

    account = (str(state_file.fingerprint),)
    state.parent.mkdir(parents=True)
    with sqlite3.connect(state) as connection:
        for migration in MIGRATIONS[:version]:
            connection.execute(migration)
        connection.execute(f"PRAGMA user_version = {version}")
        if version:
            connection.execute(
                "INSERT INTO host_keys (account, container_id, public_key) VALUES (?, 1, 'key')", account
            )
    connection.close()
    await ledger.insert(RECORD)
    assert await ledger.list_open() == [RECORD]
    assert await state_file.host_key(1) == ("key" if version else None)


async def test_concurrent_writes_share_commits(state_file: State, ledger: Ledger) -> None:
    commits: list[int] = []
    together = state_file._together

    def counted(acts: Any) -> Any:
        commits.append(len(acts))
        return together(acts)

    state_file._together = counted  # type: ignore[method-assign]
    await asyncio.gather(*(ledger.insert(attrs.evolve(RECORD, name=f"rg-{number}")) for number in range(200)))
    assert len(await ledger.list_open()) == sum(commits) == 200
    assert len(commits) <= 2


async def test_failed_write_does_not_undo_the_others_of_its_commit(state_file: State, ledger: Ledger) -> None:
    def fail(connection: Any) -> None:
        connection.execute("DELETE FROM rentals")
        raise ZeroDivisionError

    ends = await asyncio.gather(
        ledger.insert(RECORD),
        state_file.write(fail),
        ledger.insert(attrs.evolve(RECORD, name="rg-3", container_id=2**63)),
        ledger.insert(attrs.evolve(RECORD, name="rg-2")),
        return_exceptions=True,
    )
    assert [type(end).__name__ for end in ends] == ["NoneType", "ZeroDivisionError", "StateFileError", "NoneType"]
    assert [record.name for record in await ledger.list_open()] == ["rg-1", "rg-2"]


async def test_cancelled_write_still_reaches_the_state_file(ledger: Ledger) -> None:
    writing = asyncio.create_task(ledger.insert(RECORD))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await ledger.list_open() == [RECORD]


# State files that cannot be used: renting fails before anything is created.


async def error_of_rent(emulator: Emulator, state: Path, *, longest_lock: float = LONGEST_LOCK) -> StateFileError:
    """Rent with a state file that cannot be used; return the error."""
    async with client(emulator, state) as gpu:
        gpu._state.longest_lock = longest_lock
        with pytest.raises(StateFileError) as raised:
            await gpu.rent(image=IMAGE).__aenter__()
    assert not emulator.requests.of("create_container")
    return raised.value


async def test_rent_with_a_state_file_that_processes_cannot_share_is_refused(
    emulator: Emulator, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def without_locks(path: Path, **options: Any) -> sqlite3.Connection:
        # SQLite's own way to open a file without locks.
        return connect(f"file:{path}?vfs=unix-none", uri=True, **options)

    monkeypatch.setattr(sqlite3, "connect", without_locks)
    assert "processes cannot share a file" in str(await error_of_rent(emulator, state))


async def test_rent_with_a_state_file_that_stays_locked_is_refused(emulator: Emulator, state: Path) -> None:
    state.parent.mkdir(parents=True)
    holder = sqlite3.connect(state, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert "locked" in str(await error_of_rent(emulator, state, longest_lock=0.2))
    holder.close()


@pytest.mark.parametrize("size", thinned([1, 5_000, 30_000, 60_000], every=2))
async def test_rent_on_a_full_disk_is_refused_and_leaves_nothing_rented(
    emulator: Emulator, state: Path, size: int
) -> None:
    program = Program(
        file="rent_until_disk_full.py",
        arguments=[str(size)],
        environment={"NETMIND_API_KEY": emulator.token, "NETMIND_RENTGPU_STATE": str(state)},
    )
    await program.run(emulator.url)
    assert program.output.startswith("StateFileError cannot use the state file"), program.errors
    emulator.assert_nothing_rented()
