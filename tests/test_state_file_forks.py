"""State files of processes that fork: no connection is open across a fork, and no process loses its locks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from programs import FOLDER
from state_files import state_at

from netmind_rentgpu.sqlite_file import Connection, fork_gate

LONGEST = 60


def counting(path: Path, times: int, folder: Path, *more: str) -> subprocess.Popen[str]:
    """Start a program that counts in a state file, and its forked child."""
    command = [sys.executable, str(FOLDER / "count_in_state_file.py"), str(path), str(times), str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def test_parent_child_and_a_third_process_exclude_each_other(tmp_path: Path) -> None:
    path, times = tmp_path / "state.sqlite3", 20
    state = state_at(path)
    await state.pin_host_key(1, "0")
    with counting(path, times, tmp_path) as forking, counting(path, times, tmp_path, "alone") as third:
        output, _ = forking.communicate(timeout=LONGEST)
        third.communicate(timeout=LONGEST)
    # The child's files, which took the numbers of the descriptors that it closed, are as it left them.
    assert output == "0\n"
    assert (forking.returncode, third.returncode) == (0, 0)
    # Before the fork, in the child twice, in the parent twice, and in the third process.
    assert await state.host_key(1) == str(6 * times)
    state.close()


def fork_and_read(path: Path) -> int:
    """Fork; return the exit code of the child, which uses the state file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork in a process with threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if asyncio.run(state_at(path).host_key(1)) == "key" else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def test_fork_waits_for_a_write_and_lets_no_other_begin(tmp_path: Path) -> None:
    path, began, forking = tmp_path / "state.sqlite3", threading.Event(), threading.Event()
    state = state_at(path)
    await state.pin_host_key(1, "key")

    def write_slowly(connection: Connection) -> str:
        began.set()
        assert forking.wait(LONGEST)
        connection.execute("UPDATE host_keys SET container_id = 2")
        connection.execute("UPDATE host_keys SET container_id = 1")
        return "written"

    def fork() -> int:
        threading.Timer(0.1, forking.set).start()
        return fork_and_read(path)

    writing = state.write_soon(write_slowly)
    assert await asyncio.to_thread(began.wait, LONGEST)
    assert await asyncio.to_thread(fork) == 0
    assert await writing == "written"
    assert await state.host_key(1) == "key"
    state.close()


async def test_fork_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_gate, "longest_use", 0.1)
    path, began, go_on = tmp_path / "state.sqlite3", threading.Event(), threading.Event()
    state = state_at(path)
    await state.pin_host_key(1, "key")

    def write_slowly(_: Connection) -> str:
        began.set()
        assert go_on.wait(LONGEST)
        return "written"

    writing = state.write_soon(write_slowly)
    assert await asyncio.to_thread(began.wait, LONGEST)
    assert await asyncio.to_thread(fork_and_read, path) == 0
    go_on.set()
    assert await writing == "written"
    assert await state.host_key(1) == "key"
    state.close()


async def test_forks_of_several_threads_leave_the_file_usable(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    state = state_at(path)
    await state.pin_host_key(1, "key")
    forks = [asyncio.to_thread(fork_and_read, path) for _ in range(8)]
    writes = [state.pin_host_key(number, "key") for number in range(2, 20)]
    results = await asyncio.gather(*forks, *writes)
    assert results == [0] * 8 + ["key"] * 18
    state.close()
