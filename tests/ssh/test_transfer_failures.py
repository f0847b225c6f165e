"""Copies that fail or are cancelled: the errors, and no partial file left on either side."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import aclosing
from itertools import chain, count
from pathlib import Path
from typing import Any

import anyio
import openssh
import pytest
from until import until

from netmind_rentgpu import AsyncShell, InvalidArgumentError, SSHError, TransferProgress
from netmind_rentgpu.ssh import transfer
from netmind_rentgpu.ssh.limits import SSHLimits

LONG = 60


async def test_error_in_a_progress_callback_ends_the_copy(
    shell: AsyncShell, site: Any, folder: Path, tmp_path: Path
) -> None:
    def fail(progress: TransferProgress) -> None:
        if progress.bytes_done:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await shell.upload(folder / "big", "big", on_progress=fail)
    assert list(site.home.glob("*big*")) == []
    (site.home / "big").write_bytes(b"x" * 3_000_000)
    with pytest.raises(ZeroDivisionError):
        await shell.download("big", tmp_path / "big", on_progress=fail)
    assert list(tmp_path.glob("*big*")) == []


async def test_copy_that_cannot_be_made_raises_with_its_cause(
    shell: AsyncShell, site: Any, folder: Path, tmp_path: Path
) -> None:
    (site.home / "folder").mkdir()
    (site.home / "file").touch()
    os.mkfifo(site.home / "pipe")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "here").mkdir()
    for copy, message in (
        (shell.upload(tmp_path / "missing", "x"), "missing"),
        (shell.upload(tmp_path / "pipe", "x"), "neither a file nor a folder"),
        (shell.upload(folder / "big", "folder"), "is a folder; add a file name to the path"),
        (shell.upload(folder / "big", "file/below"), "file/below"),
        (shell.download("missing", tmp_path / "x"), "missing"),
        (shell.download("pipe", tmp_path / "x"), "neither a file nor a folder"),
        (shell.download("file", tmp_path / "here"), "is a folder; add a file name to the path"),
    ):
        with pytest.raises(SSHError, match=message) as caught:
            await copy
        assert caught.value.stage == "transfer"
        assert caught.value.__cause__ is not None
    assert site.parts() == []
    assert list(tmp_path.rglob("*.part")) == []
    for wrong in ("", "a\0b", 7, None):
        with pytest.raises(InvalidArgumentError, match="remote"):
            await shell.download(wrong, tmp_path / "x")  # type: ignore[arg-type]
    assert (await shell.run("true")).ok


@pytest.mark.slow
async def test_copy_cancelled_at_any_step_leaves_no_partial_file(
    full: bool, shell: AsyncShell, site: Any, folder: Path, tmp_path: Path
) -> None:
    content = (folder / "big").read_bytes()
    # This copy opens the session that the others share.
    await shell.upload(folder / "big", "down")
    before = asyncio.all_tasks()
    # The steps grow until a copy ends before it is cancelled.
    for steps in chain(
        range(0, 60, 3 if full else 9), range(60, 600, 30 if full else 90), (600 * 2**more for more in count())
    ):
        whole = steps >= 600
        for copy in (shell.upload(folder / "big", "up"), shell.download("down", tmp_path / "down")):
            task = asyncio.create_task(copy)
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            whole = whole and not task.cancelled()
        for copied in (site.home / "up", tmp_path / "down"):
            if copied.exists():
                assert copied.read_bytes() == content
                copied.unlink()
        assert site.parts() == []
        assert list(tmp_path.glob(".*.part")) == []
        if whole:
            break
    await until(lambda: all(task.done() for task in asyncio.all_tasks() - before))
    await shell.upload(folder / "big", "up")
    assert (site.home / "up").read_bytes() == content


async def test_cancelled_scope_around_a_shell_leaves_no_partial_file(site: Any, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(8_000_000))
    with anyio.CancelScope() as scope:

        def leave(progress: TransferProgress) -> None:
            if progress.bytes_done > 1_000_000:
                scope.cancel()

        async with site.shell() as shell:
            await shell.upload(tmp_path / "big", "big", on_progress=leave)
    assert list(site.home.glob("*big*")) == site.parts() == []


async def test_copy_with_a_stuck_server_can_be_cancelled_and_times_out(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if site.kind == "emulator":
        pytest.skip("the emulator runs in this process, which cannot be stopped")
    site.gpu._credentials.limits = SSHLimits(tidying=0.1)
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
            # A copy that is not cancelled does not wait without end either.
            shell._connection.limits = SSHLimits(answer=0.2, tidying=0.1)
            with pytest.raises(SSHError, match="has not answered"):
                await shell.upload(tmp_path / "big", "big")
        finally:
            os.kill(server, signal.SIGKILL)
        async with asyncio.timeout(LONG):
            assert (await shell.run("true")).ok


async def test_invented_name_from_the_server_cannot_leave_the_target(
    shell: AsyncShell, site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site.home / "folder").mkdir()
    (site.home / "folder" / "file").touch()
    client = await shell._connection.sftp_client()
    scandir = client.scandir

    async def strange(path: Any) -> Any:
        async with aclosing(scandir(path)) as entries:
            async for entry in entries:
                if entry.filename not in (".", ".."):
                    entry.filename = "../../outside"
                yield entry

    monkeypatch.setattr(client, "scandir", strange)
    with pytest.raises(SSHError, match="cannot be a file's name"):
        await shell.download("folder", tmp_path / "down")
    assert not (tmp_path / "outside").exists()


async def test_failed_download_closes_every_listing(
    shell: AsyncShell, site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site.home / "folder" / "below").mkdir(parents=True)
    client = await shell._connection.sftp_client()
    scandir = client.scandir
    open_listings: list[Any] = []

    async def counted(path: Any) -> Any:
        open_listings.append(path)
        try:
            async with aclosing(scandir(path)) as entries:
                async for entry in entries:
                    yield entry
        finally:
            open_listings.remove(path)

    monkeypatch.setattr(client, "scandir", counted)
    (site.home / "folder" / "below" / "loop").symlink_to("..")
    with pytest.raises(SSHError, match="is a link to a folder that contains it") as raised:
        await shell.download("folder", tmp_path / "down")
    # The error keeps the frames that it passed alive, so that only an explicit close ends a listing.
    assert raised.value is not None
    assert open_listings == []


async def test_file_that_shrinks_during_a_copy_is_an_error(
    shell: AsyncShell, site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = transfer._blocks
    for source, copy in (
        (tmp_path / "file", lambda: shell.upload(tmp_path / "file", "copied")),
        (site.home / "file", lambda: shell.download("file", tmp_path / "copied")),
    ):
        source.write_bytes(b"x" * 100_000)

        def shrink(*arguments: Any, source: Path = source) -> Any:
            source.write_bytes(b"x")
            return blocks(*arguments)

        monkeypatch.setattr(transfer, "_blocks", shrink)
        with pytest.raises(SSHError, match="became shorter"):
            await copy()
    assert not (site.home / "copied").exists()
    assert not (tmp_path / "copied").exists()
