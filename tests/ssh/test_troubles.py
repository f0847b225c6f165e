"""What goes wrong around a shell: scopes, stuck servers, locked files, strange arguments. It ends, and leaves nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import openssh
import pytest

from netmind_rentgpu import AsyncShell, ClientStateError, InvalidArgumentError, SSHError, TransferProgress
from netmind_rentgpu.ssh import transfer
from netmind_rentgpu.ssh.commands import Lines

LONG = 60


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG):
        while not true():
            await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_scope_round_a_shell_leaves_no_command(site: Any) -> None:
    pid = site.home / "pid"
    with anyio.CancelScope() as scope:

        async def leave() -> None:
            await until(pid.exists)
            scope.cancel()

        leaving = asyncio.create_task(leave())
        async with site.shell() as shell:
            await shell.run("echo $$ > begun; mv begun pid; sleep 3600; true")
    await leaving
    assert not alive(int(pid.read_text()))


async def test_a_scope_round_a_shell_leaves_nothing_in_part(site: Any, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(8_000_000))
    with anyio.CancelScope() as scope:

        def leave(progress: TransferProgress) -> None:
            if progress.bytes_done > 1_000_000:
                scope.cancel()

        async with site.shell() as shell:
            await shell.upload(tmp_path / "big", "big", on_progress=leave)
    assert list(site.home.glob("*big*")) == site.parts() == []


async def test_a_copy_from_a_server_that_is_stuck_can_be_cancelled(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if site.kind == "emulator":
        pytest.skip("it is this very process, which cannot be stopped")
    monkeypatch.setattr(transfer, "_LONGEST_GOODBYE", 0.1)
    (tmp_path / "big").write_bytes(os.urandom(8_000_000))
    async with site.shell() as shell:
        await shell.upload(tmp_path / "big", "other")
        parent = (await shell.run("echo $PPID")).stdout.strip()
        listed = subprocess.run(
            [openssh.program("ps"), "-o", "pid=", "--ppid", parent], capture_output=True, text=True, check=True
        )
        (server,) = map(int, listed.stdout.split())
        stuck = asyncio.Event()

        def stick(progress: TransferProgress) -> None:
            if progress.bytes_done > 1_000_000 and not stuck.is_set():
                os.kill(server, signal.SIGSTOP)
                stuck.set()

        try:
            copy = asyncio.create_task(shell.upload(tmp_path / "big", "big", on_progress=stick))
            await stuck.wait()
            copy.cancel()
            async with asyncio.timeout(LONG):
                await asyncio.wait({copy})
            assert copy.cancelled()
            # Nor is it waited for without end by one who is not cancelled.
            monkeypatch.setattr(transfer, "_LONGEST_SILENCE", 0.2)
            monkeypatch.setattr(transfer._soon, "__defaults__", (0.2,))
            with pytest.raises(SSHError, match="has not answered"):
                await shell.upload(tmp_path / "big", "big")
        finally:
            os.kill(server, signal.SIGKILL)
        async with asyncio.timeout(LONG):
            assert (await shell.run("true")).ok


async def test_closing_waits_for_nobody_who_has_the_state_file(site: Any, state: Path) -> None:
    async with site.shell():
        pass
    holder = sqlite3.connect(state, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        kept = asyncio.create_task(site.gpu._state.pin_host_key("account", 1, "key"))
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not kept.done()
        # To look a key up waits for nobody.
        async with site.shell() as shell:
            assert (await shell.run("true")).ok
        kept.cancel()
        # In the loop's own thread, so that a wait in it would be seen as one for the thread below.
        async with asyncio.timeout(LONG):
            site.gpu._state.close()
    finally:
        holder.close()
    await asyncio.wait({kept})
    async with site.shell() as shell:
        assert (await shell.run("true")).ok


async def test_a_shell_is_entered_once(site: Any) -> None:
    shell = site.shell()
    both = await asyncio.gather(shell.__aenter__(), shell.__aenter__(), return_exceptions=True)
    assert sorted(type(one).__name__ for one in both) == ["AsyncShell", "ClientStateError"]
    await shell.close()


async def test_a_shell_that_is_closed_while_it_is_opened_stays_closed(site: Any) -> None:
    shell = site.shell()
    opening = asyncio.create_task(shell.__aenter__())
    await asyncio.sleep(0)
    await shell.close()
    with pytest.raises(ClientStateError, match="closed"):
        await opening
    assert "closed" in repr(shell)


async def test_a_shell_that_could_not_be_opened_can_be_tried_again(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from netmind_rentgpu.ssh import login

    shell = site.shell()

    async def fails(*_: Any) -> Any:
        raise OSError("not now")

    with monkeypatch.context() as context:
        context.setattr(login, "connect", fails)
        with pytest.raises(SSHError, match="not now"):
            await shell.__aenter__()
    async with shell:
        assert (await shell.run("true")).ok


def test_empty_lines_fill_a_slow_readers_room_too() -> None:
    lines = Lines()
    assert not lines.take(b"\n" * 20_000, error=False)
    while lines.next() is not None:
        pass
    assert lines.room


async def test_a_port_that_is_taken(shell: AsyncShell) -> None:
    first = await shell.reverse_forward(remote_port=0, local_port=1)
    with pytest.raises(SSHError, match="cannot be forwarded") as caught:
        await shell.reverse_forward(remote_port=first.remote_port, local_port=1)
    assert caught.value.stage == "connection"
    here = await shell.forward(local_port=0, remote_port=1)
    with pytest.raises(SSHError, match="cannot be forwarded"):
        await shell.forward(local_port=here.local_port, remote_port=1)


HALF = "\ud800"


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda shell: shell.run(HALF), "command"),
        (lambda shell: shell.run(7), "command"),
        (lambda shell: shell.run("x" * 200_000), "command"),
        (lambda shell: shell.run("true", input=HALF), "input"),
        (lambda shell: shell.run("true", input=7), "input"),
        (lambda shell: shell.run("true", environment={"A": HALF}), "environment"),
        (lambda shell: shell.run("true", environment={"A": "x" * 200_000}), "environment"),
        (lambda shell: shell.run("true", environment=["A"]), "environment"),
        (lambda shell: shell.upload("/etc/hostname", HALF), "remote"),
        (lambda shell: shell.upload("/etc/\0", "x"), "local"),
        (lambda shell: shell.download("x", None), "local"),
        (lambda shell: shell.forward(local_port=0, remote_port=0), "remote_port"),
        (lambda shell: shell.forward(local_port=70_000, remote_port=1), "local_port"),
        (lambda shell: shell.forward(local_port=0, remote_port=1, remote_host=""), "remote_host"),
        (lambda shell: shell.reverse_forward(remote_port=0, local_port=1, local_host=HALF), "local_host"),
    ],
    ids=map(str, range(15)),
)
async def test_arguments_that_cannot_be_sent(shell: AsyncShell, call: Any, argument: str) -> None:
    with pytest.raises(InvalidArgumentError, match=argument):
        await call(shell)
    assert (await shell.run("true")).ok


async def test_a_password_that_cannot_be_sent(site: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="password"):
        site.gpu.ssh(site.container, password=HALF)


async def test_what_has_no_size_is_read_to_its_end(shell: AsyncShell, site: Any, tmp_path: Path) -> None:
    await shell.upload("/proc/self/status", "status")
    assert "VmRSS" in (site.home / "status").read_text()
    if site.kind == "OpenSSH":
        await shell.download("/proc/self/status", tmp_path / "status")
        assert "VmRSS" in (tmp_path / "status").read_text()


async def test_names_of_any_length_and_kind(shell: AsyncShell, site: Any, tmp_path: Path) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    names = ["\N{CJK UNIFIED IDEOGRAPH-65E5}" * 84, "-rf", "two\nlines", "x" * 255, os.fsdecode(b"\xff\xfe")]
    for name in names:
        (folder / name).write_text(name, errors="surrogateescape")
    await shell.upload(folder, "names")
    assert sorted(path.name for path in (site.home / "names").iterdir()) == sorted(names)
    await shell.download("names", tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(names)


async def test_folders_are_private_until_they_are_whole_and_those_that_were_there_stay_as_they_were(
    shell: AsyncShell, site: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    (folder / "file").write_bytes(b"x" * 1000)
    folder.chmod(0o755)

    def fail(progress: TransferProgress) -> None:
        raise ZeroDivisionError

    for root, copy in (
        (site.home, lambda: shell.upload(folder, "new", on_progress=fail)),
        (tmp_path, lambda: shell.download("folder", tmp_path / "new", on_progress=fail)),
    ):
        with pytest.raises(ZeroDivisionError):
            await copy()
        assert stat.S_IMODE((root / "new").stat().st_mode) == 0o700
        # What a failed copy has made is added to, and keeps its mode.
        await shell.upload(folder, "folder")
    assert stat.S_IMODE((site.home / "folder").stat().st_mode) == 0o755
    (site.home / "folder").chmod(0o1777)
    await shell.upload(folder, "folder")
    assert stat.S_IMODE((site.home / "folder").stat().st_mode) == 0o1777


async def test_folders_in_folders_go_with_their_container(site: Any) -> None:
    if site.kind != "emulator":
        pytest.skip("its folder is the test's own")
    async with site.shell() as shell:
        script = "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')"
        assert (await shell.run("python3 -", input=script)).ok
    await site.gpu.containers.delete(site.container.id)
    assert not site.home.exists()
