"""State files that are deleted, renamed or replaced while a client uses them: nothing is rented off the record."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from rented import IMAGE, client
from state_files import state_at

from netmind_rentgpu import AsyncRentGPU, StateFileError
from netmind_rentgpu.emulator import Emulator


def delete_file(state: Path) -> None:
    state.unlink()


def delete_folder(state: Path) -> None:
    shutil.rmtree(state.parent)


def rename_file(state: Path) -> None:
    state.rename(state.with_name("earlier.sqlite3"))


def move_folder(state: Path) -> None:
    state.parent.rename(state.parent.with_name("moved"))


def replace_with_empty_file(state: Path) -> None:
    other = state.with_name("other")
    other.touch(mode=0o600)
    other.replace(state)


def replace_with_backup(state: Path) -> None:
    backup = state.with_name("backup")
    with closing(sqlite3.connect(state)) as connection, closing(sqlite3.connect(backup)) as copy:
        connection.backup(copy)
        copy.execute("DELETE FROM rentals")
        copy.commit()
    backup.replace(state)


MOVES = [delete_file, delete_folder, rename_file, move_folder]
REPLACEMENTS = [replace_with_empty_file, replace_with_backup]


def names(state: Path) -> set[str]:
    """Return the names of the rentals in the file that the path leads to."""
    with closing(sqlite3.connect(state)) as connection:
        return {row[0] for row in connection.execute("SELECT name FROM rentals")}


@pytest.mark.parametrize("move", MOVES)
async def test_rentals_stay_on_record_when_the_state_file_is_moved(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path, caplog: pytest.LogCaptureFixture, move: Callable[[Path], None]
) -> None:
    async with gpu.rent(image=IMAGE) as first:
        move(state)
        async with gpu.rent(image=IMAGE) as second:
            assert names(state) == {first.name, second.name}
            assert "were restored" in caplog.text
            # The account's password was restored, too, so that no second auth was made.
            assert first.container.auth_id == second.container.auth_id
        assert names(state) == {first.name}
        assert [record.name for record in await gpu.rentals.list()] == [first.name]
    assert names(state) == set()
    emulator.assert_nothing_rented()
    assert len(emulator.requests.of("create_auth")) == 1


@pytest.mark.parametrize("move", MOVES)
async def test_rental_is_listed_and_reaped_after_the_state_file_was_moved(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path, move: Callable[[Path], None]
) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        await rental.detach()
    move(state)
    assert [record.name for record in await gpu.rentals.list()] == [rental.name]
    async with client(emulator, state) as other:
        async with other.rentals.attach(rental.name):
            pass
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("replace", REPLACEMENTS)
async def test_nothing_is_rented_off_the_record_when_the_state_file_is_replaced(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path, replace: Callable[[Path], None]
) -> None:
    async with gpu.rent(image=IMAGE) as first:
        replace(state)
        try:
            async with gpu.rent(image=IMAGE) as second:
                # The rows were restored.
                assert names(state) == {first.name, second.name}
        except StateFileError as error:
            # SQLite cannot read what was replaced under its journal.
            assert "moved, deleted or replaced" in str(error)
            assert len(emulator.requests.of("create_container")) == 1
    emulator.assert_nothing_rented()


async def test_closed_record_is_not_put_back_by_another_client(emulator: Emulator, state: Path) -> None:
    async with client(emulator, state) as gpu, client(emulator, state) as other:
        async with gpu.rent(image=IMAGE):
            await other._state.pin_host_key(1, "key")
            state.unlink()
        await other._state.pin_host_key(2, "key")
        assert names(state) == set()
        assert await other._state.host_key(1) == "key"
    emulator.assert_nothing_rented()


async def test_rental_that_another_client_has_restored_and_released_is_not_doubled(
    emulator: Emulator, state: Path
) -> None:
    async with client(emulator, state) as gpu, client(emulator, state) as other:
        async with gpu.rent(image=IMAGE) as rental:
            record = await rental.detach()
        await other.rentals.extend(record, ttl=timedelta(hours=30))
        await gpu.budgets.set("team", 5)
        rename_file(state)
        await other.rentals.release(record)
        history = await other.rentals.history()
        # This client restores its own, earlier rows.
        assert await gpu.rentals.list() == []
        assert await gpu.rentals.history() == history
        assert [line.rentals for line in (await gpu.rentals.spent()).lines] == [1]
        assert [budget.name for budget in await gpu.budgets.list()] == ["team"]


async def test_rows_of_a_file_that_replaces_the_state_file_are_kept(tmp_path: Path) -> None:
    path, other = tmp_path / "state.sqlite3", tmp_path / "other.sqlite3"
    state, another = state_at(path), state_at(other)
    for number in range(40):
        await state.pin_host_key(number, "key")
        await another.pin_host_key(1000 + number, "key")
    another.close()
    await state.pin_host_key(500, "key")
    other.replace(path)
    await state.pin_host_key(501, "key")
    state.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = {row[0] for row in connection.execute("SELECT container_id FROM host_keys")}
    assert found == {*range(40), *range(1000, 1040), 500, 501}


async def test_nothing_is_rented_where_a_moved_state_file_cannot_be_restored(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    async with gpu.rent(image=IMAGE):
        shutil.rmtree(state.parent)
        state.parent.touch()
        with pytest.raises(StateFileError, match="moved, deleted or replaced"):
            await gpu.rent(image=IMAGE).__aenter__()
        with pytest.raises(StateFileError, match="moved, deleted or replaced"):
            await gpu.rentals.list()
        assert len(emulator.requests.of("create_container")) == 1
    emulator.assert_nothing_rented()


async def test_restoring_leaves_the_new_file_to_those_who_use_it_already(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    states = [state_at(path), state_at(path), state_at(path)]
    for number, state in enumerate(states):
        await state.pin_host_key(number, f"key {number}")
    path.unlink()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    # Each restores the rows in turn, and closes its connection to the file that is gone while the others write.
    for turn in range(3):
        for number, state in enumerate(states):
            await state.pin_host_key(10 * turn + number + 100, "key")
    for state in states:
        state.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM host_keys").fetchone() == (12,)


async def test_state_file_behind_a_link_that_leads_elsewhere_by_now_is_restored_there(tmp_path: Path) -> None:
    link, first, second = tmp_path / "link", tmp_path / "first", tmp_path / "second"
    link.symlink_to(first)
    state = state_at(link)
    await state.pin_host_key(1, "key")
    link.unlink()
    link.symlink_to(second)
    assert await state.host_key(1) == "key"
    state.close()
    assert await state_at(second).host_key(1) == "key"
