"""The ledger on disks that are full, read-only or cannot lock; and how many commits it takes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
from programs import Program
from rented import IMAGE, client

from netmind_rentgpu import LedgerError
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.rentals.ledger import Ledger
from netmind_rentgpu.rentals.owners import this_process
from netmind_rentgpu.rentals.records import RentalRecord
from netmind_rentgpu.state import State

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
)


@pytest.fixture
def keeper(state: Path) -> Iterator[State]:
    keeper = State(state)
    yield keeper
    keeper.close()


@pytest.fixture
def ledger(keeper: State) -> Ledger:
    return Ledger(keeper, "account")


async def test_a_record_comes_back_as_it_was(keeper: State, ledger: Ledger) -> None:
    odd = attrs.evolve(RECORD, name="rg-2", hourly_price=None, expires_at=None, owner=None)
    await ledger.put(RECORD)
    await ledger.put(odd)
    assert await ledger.open() == [RECORD, odd]
    assert await Ledger(keeper, "another account").open() == []
    ready = attrs.evolve(RECORD, stage="ready", container_id=7, shown_name="rg-", owner=None)
    await ledger.put(ready)
    assert await ledger.open() == [ready, odd]
    await ledger.close(["rg-1", "rg-2", "rg-3"])
    await ledger.close([])
    assert await ledger.open() == []
    # Whoever struck it out was wrong.
    await ledger.put(ready)
    assert await ledger.open() == [ready]


async def test_a_number_that_no_file_holds(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="too large"):
        await ledger.put(attrs.evolve(RECORD, container_id=2**63))
    assert await ledger.open() == []


async def test_only_one_takes_what_is_detached(ledger: Ledger) -> None:
    me, now = this_process(), RECORD.intended_at
    await ledger.put(RECORD)
    assert await ledger.take("rg-1", me, now) is None
    await ledger.put(attrs.evolve(RECORD, stage="detached", container_id=7, owner=None))
    assert await ledger.take("rg-1", me, now + timedelta(days=2)) is None
    taken = await asyncio.gather(*(ledger.take("rg-1", me, now) for _ in range(5)))
    assert len([one for one in taken if one is not None]) == 1
    other = attrs.evolve(me, process_id=1)
    await ledger.give_back("rg-1", other)
    assert (await ledger.open())[0].stage == "ready"
    await ledger.give_back("rg-1", me)
    assert (await ledger.open())[0].stage == "detached"


async def test_what_cannot_be_read_is_said(state: Path, ledger: Ledger) -> None:
    await ledger.put(RECORD)
    with sqlite3.connect(state) as connection:
        connection.execute("UPDATE rentals SET expires_at = 'soon'")
    connection.close()
    with pytest.raises(LedgerError, match="record of rg-1 cannot be read"):
        await ledger.open()


@pytest.mark.parametrize("version", [0, 1, 2])
async def test_an_older_file_is_brought_up_to_date(state: Path, keeper: State, ledger: Ledger, version: int) -> None:
    from netmind_rentgpu.state import _MIGRATIONS

    state.parent.mkdir(parents=True)
    with sqlite3.connect(state) as connection:
        for migration in _MIGRATIONS[:version]:
            connection.execute(migration)
        connection.execute(f"PRAGMA user_version = {version}")
        if version:
            connection.execute("INSERT INTO host_keys (account, container_id, public_key) VALUES ('account', 1, 'key')")
    connection.close()
    await ledger.put(RECORD)
    assert await ledger.open() == [RECORD]
    assert await keeper.host_key("account", 1) == ("key" if version else None)


async def test_commits_of_those_who_write_at_once_are_shared(keeper: State, ledger: Ledger) -> None:
    commits: list[int] = []
    together = keeper._together

    def counted(acts: Any) -> Any:
        commits.append(len(acts))
        return together(acts)

    keeper._together = counted  # type: ignore[method-assign]
    await asyncio.gather(*(ledger.put(attrs.evolve(RECORD, name=f"rg-{number}")) for number in range(200)))
    assert len(await ledger.open()) == sum(commits) == 200
    assert len(commits) <= 2


async def test_one_who_fails_does_not_undo_the_others(keeper: State, ledger: Ledger) -> None:
    def fail(connection: Any) -> None:
        connection.execute("DELETE FROM rentals")
        raise ZeroDivisionError

    ends = await asyncio.gather(
        ledger.put(RECORD),
        keeper.write(fail),
        ledger.put(attrs.evolve(RECORD, name="rg-3", container_id=2**63)),
        ledger.put(attrs.evolve(RECORD, name="rg-2")),
        return_exceptions=True,
    )
    assert [type(end).__name__ for end in ends] == ["NoneType", "ZeroDivisionError", "LedgerError", "NoneType"]
    assert [record.name for record in await ledger.open()] == ["rg-1", "rg-2"]


async def test_a_write_comes_to_its_end_whoever_cancels_it(ledger: Ledger) -> None:
    writing = asyncio.create_task(ledger.put(RECORD))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await ledger.open() == [RECORD]


# Before anything is rented.


async def refused(emulator: Emulator, state: Path) -> LedgerError:
    """Rent with a state file that cannot be used."""
    async with client(emulator, state) as gpu:
        with pytest.raises(LedgerError) as raised:
            await gpu.rent(image=IMAGE).__aenter__()
    assert not emulator.requests.of("create_container")
    return raised.value


async def test_where_processes_cannot_share_it(
    emulator: Emulator, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def without_locks(path: Path, **options: Any) -> sqlite3.Connection:
        # SQLite's own way to a disk that has no locks.
        return connect(f"file:{path}?vfs=unix-none", uri=True, **options)

    monkeypatch.setattr(sqlite3, "connect", without_locks)
    assert "processes cannot share it" in str(await refused(emulator, state))


async def test_where_it_is_locked_for_good(emulator: Emulator, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netmind_rentgpu.state.LONGEST_LOCK", 0.2)
    state.parent.mkdir(parents=True)
    holder = sqlite3.connect(state, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert "locked" in str(await refused(emulator, state))
    holder.close()


FULL = """
import resource
# No file of this process may grow beyond so many bytes: what a full disk does to it.
resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))
"""


@pytest.mark.parametrize("size", [1, 5_000, 30_000, 60_000])
async def test_where_the_disk_is_full(emulator: Emulator, state: Path, size: int) -> None:
    program = Program(
        FULL.replace("LARGEST", str(size))
        + f"""
async def main():
    async with AsyncRentGPU("{emulator.token}") as gpu:
        try:
            for _ in range(50):
                async with gpu.rent(image="PyTorch 2.4", keep=True) as rental:
                    await gpu.containers.delete(rental.container.id)
                await gpu.rentals._desk.ledger.put(RECORD())
        except LedgerError as error:
            print("LedgerError", error)

def RECORD():
    import attrs, secrets
    from netmind_rentgpu.rentals.records import RentalRecord
    from datetime import datetime, UTC
    now = datetime.now(UTC)
    return RentalRecord(name=secrets.token_hex(), stage="detached", node_name="x" * 3000, gpus=1, hourly_price=None,
                        intended_at=now, expires_at=None, certain_at=now)

asyncio.run(main())
""",
        environment={"NETMIND_RENTGPU_STATE": str(state)},
        begin="import asyncio\nfrom netmind_rentgpu import AsyncRentGPU, LedgerError\n",
    )
    await program.run(emulator.url)
    assert program.output.startswith("LedgerError the state file"), program.errors
    emulator.assert_nothing_rented()
