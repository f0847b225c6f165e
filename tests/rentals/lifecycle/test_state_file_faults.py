"""State files that cannot be used or break, and event loops that stop or are busy meanwhile."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rented import IMAGE, client
from state_files import state_at

from netmind_rentgpu import AsyncRentGPU, StateFileError
from netmind_rentgpu.emulator import Emulator


@pytest.mark.parametrize("broken", ["no database", "newer", "a folder", "in a file"])
async def test_unusable_state_file_is_reported_before_any_create(emulator: Emulator, state: Path, broken: str) -> None:
    state.parent.mkdir(parents=True)
    if broken == "no database":
        state.write_bytes(b"x" * 5000)
    elif broken == "newer":
        with sqlite3.connect(state) as connection:
            connection.execute("PRAGMA user_version = 1000")
        connection.close()
    elif broken == "a folder":
        state.mkdir()
    else:
        state.write_text("")
        state = state / "below"
    async with client(emulator, state) as gpu:
        with pytest.raises(StateFileError):
            await gpu.rent(image=IMAGE).__aenter__()
    assert not emulator.requests.of("create_container")


async def test_state_file_broken_during_a_rental_does_not_prevent_its_deletion(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        with sqlite3.connect(state) as connection:
            connection.execute("DROP TABLE rentals")
        connection.close()
        assert (await rental.run("true")).ok
        with pytest.raises(StateFileError):
            await rental.detach()
    emulator.assert_nothing_rented()
    assert "could not update the state file for a rental" in caplog.text


def test_event_loop_stopped_during_a_write_does_not_block_the_next_write(state: Path) -> None:
    state_file = state_at(state)
    gate = threading.Event()
    first = asyncio.new_event_loop()
    writing = first.create_task(state_file.write(lambda _: gate.wait(20)))
    first.call_later(0.05, first.stop)
    first.run_forever()

    async def write() -> int:
        return await asyncio.wait_for(state_file.write(lambda _: 1), 20)

    gate.set()
    assert asyncio.run(write()) == 1
    first.run_until_complete(asyncio.wait({writing}))
    first.close()
    state_file.close()


async def test_state_file_is_read_while_all_threads_of_the_loop_are_busy(gpu: AsyncRentGPU) -> None:
    loop, go_on = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    busy = loop.run_in_executor(None, go_on.wait, 30)
    async with asyncio.timeout(20):
        assert await gpu.rentals.list() == []
    go_on.set()
    await busy
