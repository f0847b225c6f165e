"""The state file: made when needed, for its user alone, shared by threads and processes, and never half written."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import anyio
import pytest
from state_files import state_at
from until import until

from netmind_rentgpu import AsyncRentGPU, ConfigurationError, StateFileError
from netmind_rentgpu.settings import DEFAULT, Settings
from netmind_rentgpu.state_schema import MIGRATIONS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "er" / "state.sqlite3"


async def test_state_file_is_made_when_needed_and_for_its_user_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        state = state_at(path)
        # A look-up creates nothing.
        assert await state.host_key(1) is None
        assert not path.parent.exists()
        await state.pin_host_key(1, "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for beside in path.parent.iterdir():
        assert stat.S_IMODE(beside.stat().st_mode) == 0o600
    state.close()
    state.close()
    assert await state.host_key(1) == "key"
    state.close()


async def test_state_file_behind_a_link_is_for_its_user_alone(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    before = os.umask(0)
    try:
        state = state_at(link)
        await state.pin_host_key(1, "key")
    finally:
        os.umask(before)
    assert link.is_symlink()
    files = list(path.parent.iterdir())
    assert path in files
    assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}
    state.close()


async def test_state_file_behind_circular_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "one")
    state = state_at(tmp_path / "one")
    for use in (state.host_key(1), state.pin_host_key(1, "key")):
        with pytest.raises(StateFileError, match="it is not a regular file"):
            await use


async def test_host_key_is_kept_unless_it_is_replaced(path: Path) -> None:
    state, of_another_account = state_at(path), state_at(path, "another-token")
    assert await state.pin_host_key(1, "first") == "first"
    assert await state.pin_host_key(1, "second") == "first"
    assert await state.pin_host_key(1, "second", replace=True) == "second"
    assert await of_another_account.pin_host_key(1, "other") == "other"
    assert await state.host_key(1) == "second"
    assert await state.host_key(2) is None
    state.close()
    of_another_account.close()


async def test_unusable_state_file_raises_state_file_error(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir(parents=True)
    tmp_path.chmod(0o755)
    path.write_bytes(b"x" * 5000)
    with pytest.raises(StateFileError, match="not a database"):
        await state_at(path).host_key(1)
    before = tmp_path.stat()
    with pytest.raises(StateFileError, match="it is not a regular file"):
        await state_at(tmp_path).host_key(1)
    assert tmp_path.stat().st_mode == before.st_mode
    with pytest.raises(StateFileError, match="cannot create or write"):
        await state_at(path / "below" / "a-file").pin_host_key(1, "key")


async def test_file_that_a_newer_version_has_migrated_is_refused_also_while_it_is_open(path: Path) -> None:
    state = state_at(path)
    await state.pin_host_key(1, "key")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1000")
    connection.close()
    with pytest.raises(StateFileError, match="newer version"):
        await state.pin_host_key(1, "another", replace=True)
    with pytest.raises(StateFileError, match="newer version"):
        await state.pin_host_key(2, "key")
    for other in (state, state_at(path)):
        with pytest.raises(StateFileError, match="newer version"):
            await other.host_key(1)
    with pytest.raises(StateFileError, match="newer version"):
        await state_at(path).pin_host_key(1, "another")
    state.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT public_key FROM host_keys").fetchall() == [("key",)]
    connection.close()


@pytest.mark.parametrize("version", range(len(MIGRATIONS)))
async def test_look_up_in_a_file_of_an_earlier_version_does_not_migrate_it(path: Path, version: int) -> None:
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        for migration in MIGRATIONS[:version]:
            connection.execute(migration)
        connection.execute(f"PRAGMA user_version = {version}")
        if version:
            connection.execute(
                "INSERT INTO host_keys (account, container_id, public_key) VALUES (?, 1, 'key')",
                (str(state_at(path).fingerprint),),
            )
    connection.close()
    before = path.read_bytes()
    state = state_at(path)
    assert await state.host_key(1) == ("key" if version else None)
    assert path.read_bytes() == before
    await state.pin_host_key(2, "another")
    assert await state.host_key(1) == ("key" if version else None)
    assert await state.host_key(2) == "another"
    state.close()


async def test_failed_write_changes_nothing(path: Path) -> None:
    state = state_at(path)
    await state.pin_host_key(1, "first")

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE host_keys SET public_key = 'broken'")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await state.write(fail)
    assert await state.host_key(1) == "first"
    state.close()


async def test_many_states_share_one_file(path: Path) -> None:
    states = [state_at(path) for _ in range(20)]
    kept = await asyncio.gather(
        *(
            state.pin_host_key(container_id, f"key-{number}")
            for number, state in enumerate(states)
            for container_id in range(10)
        )
    )
    for container_id in range(10):
        assert len({kept[number * 10 + container_id] for number in range(20)}) == 1
    for state in states:
        state.close()


def test_processes_started_at_once_share_one_file(path: Path) -> None:
    program = f"""
import asyncio
from pathlib import Path
from netmind_rentgpu.fingerprint import Fingerprint
from netmind_rentgpu.state_file import State
async def main():
    state = State(Path({str(path)!r}), Fingerprint("https://service.example", "a-token"))
    print(await state.pin_host_key(1, "key"))
    state.close()
asyncio.run(main())
"""
    processes = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(8)
    ]
    for process in processes:
        assert process.communicate(timeout=60) == (b"key\n", b"")


async def test_forked_child_opens_a_connection_of_its_own(path: Path) -> None:
    state = state_at(path)
    await state.pin_host_key(1, "key")
    inherited = state._connection
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork in a process with threads
        child = os.fork()
    if child == 0:
        try:
            found = state._together(
                [lambda connection: (connection is not inherited, connection.execute("SELECT 1").fetchone())]
            )
            os._exit(0 if found == [(True, (1,))] else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert await state.host_key(1) == "key"
    state.close()


@pytest.mark.parametrize(
    ("argument", "environment", "expected"),
    [
        ("/a/file", {"NETMIND_RENTGPU_STATE": "/b"}, "/a/file"),
        (Path("/a/file"), {}, "/a/file"),
        (None, {"NETMIND_RENTGPU_STATE": "/b/file", "XDG_STATE_HOME": "/c"}, "/b/file"),
        (None, {"XDG_STATE_HOME": "/c"}, "/c/netmind-rentgpu/state.sqlite3"),
        (None, {}, str(Path("~/.local/state/netmind-rentgpu/state.sqlite3").expanduser())),
    ],
)
def test_state_file_path_comes_from_argument_environment_or_default(
    argument: str | Path | None, environment: dict[str, str], expected: str
) -> None:
    settings = Settings.resolve(
        token="token",
        base_url=None,
        proxy=None,
        timeout=DEFAULT,
        retries=DEFAULT,
        max_connections=1,
        allow_insecure_http=False,
        environment=environment,
        state=argument,
    )
    assert settings.state == Path(expected)
    assert str(settings.fingerprint).startswith("https://api.netmind.ai ")
    assert "token" not in str(settings.fingerprint)


def test_unusable_state_path_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="state must be a path"):
        AsyncRentGPU("token", state=7)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="no place for the state file"):
        AsyncRentGPU("token", state="~no-such-user-here/state")


async def test_reading_the_state_file_keeps_its_locks(path: Path) -> None:
    # POSIX takes all of a process's locks on a file when the process closes any descriptor of it. Then another process
    # takes itself for the last user of the file, and removes the writes of this one.
    state = state_at(path)
    await state.pin_host_key(1, "first")
    assert await state.host_key(1) == "first"
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM host_keys'); c.close()"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    assert Path(f"{path}-wal").exists()
    await state.pin_host_key(2, "second")
    assert await state.host_key(2) == "second"
    assert [file.name for file in path.parent.iterdir() if file.name.endswith(".new")] == []
    state.close()


@pytest.mark.parametrize("how", ["once", "again and again", "by a scope"])
@pytest.mark.parametrize("fails", [False, True])
async def test_cancelled_write_ends_only_once_it_is_written(path: Path, how: str, fails: bool) -> None:
    state, gate, acted = state_at(path), threading.Event(), threading.Event()

    def act(connection: sqlite3.Connection) -> None:
        assert gate.wait(60)
        acted.set()
        if fails:
            raise ValueError("the write fails")

    left: list[BaseException] = []

    async def write() -> None:
        try:
            await state.write(act)
        except BaseException as error:
            assert acted.is_set()
            left.append(error)
            raise

    with anyio.CancelScope() as scope:
        writing = asyncio.ensure_future(write()) if how != "by a scope" else None

        async def cancel() -> None:
            for _ in range(5):
                await asyncio.sleep(0)
                if writing is None:
                    scope.cancel()
                elif how != "once" or not writing.cancelling():
                    writing.cancel()
            assert not left
            gate.set()

        cancelling = asyncio.create_task(cancel())
        if writing is None:
            await write()
        else:
            await asyncio.wait({writing})
            assert writing.cancelled()
    await cancelling
    assert [type(error) for error in left] == [asyncio.CancelledError]
    assert scope.cancelled_caught is (writing is None)
    state.close()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_write_cancelled_as_it_finishes_is_cancelled(
    path: Path, fails: bool, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, finished = state_at(path), 0
    finish = state._finish

    def act(connection: sqlite3.Connection) -> None:
        if fails:
            raise ValueError("the write fails")

    def finish_and_cancel(*arguments: Any) -> None:
        nonlocal finished
        finished += 1
        if after:
            finish(*arguments)
        writing.cancel()
        if not after:
            finish(*arguments)

    monkeypatch.setattr(state, "_finish", finish_and_cancel)
    writing = asyncio.create_task(state.write(act))
    await asyncio.wait({writing})
    assert writing.cancelled()
    assert finished == 1
    monkeypatch.undo()
    assert await state.write(lambda connection: 1) == 1
    state.close()


async def test_closed_state_file_closes_once_all_is_written(path: Path) -> None:
    state, go_on, written = state_at(path), threading.Event(), asyncio.Event()
    writing = [asyncio.create_task(state.write(lambda _: go_on.wait(60)))]
    async with asyncio.timeout(120):
        await until(lambda: state._writing and not state._waiting)
        writing.append(asyncio.create_task(state.write(lambda _: 1)))
        state.write_soon(lambda _: 1).add_done_callback(lambda _: written.set())
        await asyncio.sleep(0)
        state.close()
        go_on.set()
        await asyncio.gather(*writing)
        await written.wait()
        await until(lambda: state._connection is None)


async def test_state_file_closed_during_a_write_closes_afterwards(path: Path) -> None:
    state = state_at(path)

    def act(connection: sqlite3.Connection) -> None:
        state.close()
        connection.execute("SELECT 1")

    await state.write(act)
    assert state._connection is None
    assert await state.write(lambda connection: 1) == 1
    state.close()
