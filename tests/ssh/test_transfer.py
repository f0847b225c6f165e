"""Copies to a container and back: whole or not at all, with their modes, whatever is in the way."""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import aclosing
from itertools import chain, count
from pathlib import Path
from typing import Any

import pytest

from netmind_rentgpu import AsyncShell, InvalidArgumentError, SSHError, TransferProgress
from netmind_rentgpu.ssh import transfer

LONG = 60


def tree(root: Path) -> dict[str, tuple[int, bytes | None]]:
    """Return each file and folder below, with its mode and content."""
    return {
        str(path.relative_to(root)): (stat.S_IMODE(path.stat().st_mode), path.read_bytes() if path.is_file() else None)
        for path in sorted(root.rglob("*"))
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a bit of everything."""
    root = tmp_path / "local"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "big").write_bytes(os.urandom(3_000_001))
    (root / "deep" / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (root / "deep" / "run.sh").chmod(0o755)
    (root / "deep" / "er" / "private").write_text("p")
    (root / "deep" / "er" / "private").chmod(0o600)
    (root / "nothing").touch()
    (root / "a name \N{SNOWMAN} 'with' \"all\"").write_text("x")
    for number in range(40):
        (root / "deep" / f"{number}").write_text(str(number))
    (root / "empty").chmod(0o755)
    return root


async def test_a_folder_goes_up_and_comes_down_as_it_was(
    shell: AsyncShell, site: Any, folder: Path, tmp_path: Path
) -> None:
    await shell.upload(folder, "up/there")
    assert tree(site.home / "up" / "there") == tree(folder)
    assert (await shell.run("up/there/deep/run.sh")).stdout == "ran\n"
    await shell.download("up/there", tmp_path / "new" / "down")
    assert tree(tmp_path / "new" / "down") == tree(folder)
    assert site.parts() == []
    # Once more: what is there is replaced, and what else is there stays.
    (site.home / "up" / "there" / "other").touch()
    (folder / "nothing").write_text("something")
    await shell.upload(folder, "up/there/")
    assert (site.home / "up" / "there" / "nothing").read_text() == "something"
    assert (site.home / "up" / "there" / "other").exists()


async def test_a_file_goes_up_and_comes_down(shell: AsyncShell, site: Any, folder: Path, tmp_path: Path) -> None:
    await shell.upload(folder / "big", "big")
    assert (site.home / "big").read_bytes() == (folder / "big").read_bytes()
    await shell.upload(str(folder / "deep" / "run.sh"), "big")
    assert (await shell.run("./big")).stdout == "ran\n"
    (tmp_path / "down").write_text("before")
    await shell.download("big", tmp_path / "down")
    assert (tmp_path / "down").read_text() == "#!/bin/sh\necho ran\n"
    assert stat.S_IMODE((tmp_path / "down").stat().st_mode) == 0o755


async def test_what_runs_as_another_user_there_does_not_here(shell: AsyncShell, site: Any, tmp_path: Path) -> None:
    (site.home / "odd").write_text("x")
    (site.home / "odd").chmod(0o6755)
    await shell.download("odd", tmp_path / "odd")
    assert stat.S_IMODE((tmp_path / "odd").stat().st_mode) == 0o755


async def test_progress_adds_up(shell: AsyncShell, folder: Path, tmp_path: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    for copy in (
        lambda tell: shell.upload(folder, "up", on_progress=tell),
        lambda tell: shell.download("up", tmp_path / "down", on_progress=tell),
    ):
        told: list[TransferProgress] = []
        await copy(told.append)
        assert {one.bytes_total for one in told} == {sum(path.stat().st_size for path in files)}
        assert {one.files_total for one in told} == {len(files)}
        assert [one.bytes_done for one in told] == sorted(one.bytes_done for one in told)
        assert (told[-1].bytes_done, told[-1].files_done) == (told[-1].bytes_total, len(files))
        assert {one.path for one in told} == {str(path.relative_to(folder)) for path in files}


async def test_who_is_told_may_end_it(shell: AsyncShell, site: Any, folder: Path, tmp_path: Path) -> None:
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


async def test_links_are_followed(shell: AsyncShell, site: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "link").symlink_to("deep/run.sh")
    (folder / "folder-link").symlink_to("deep")
    await shell.upload(folder, "up")
    assert not (site.home / "up" / "link").is_symlink()
    assert (site.home / "up" / "folder-link" / "er" / "private").read_text() == "p"
    (site.home / "up" / "outside").symlink_to("../elsewhere")
    (site.home / "elsewhere").write_text("elsewhere")
    await shell.download("up", tmp_path / "down")
    assert (tmp_path / "down" / "outside").read_text() == "elsewhere"
    assert not (tmp_path / "down" / "outside").is_symlink()
    for root in (folder, site.home / "up"):
        (root / "deep" / "back").symlink_to("..")
    for copy in (shell.upload(folder, "up2"), shell.download("up", tmp_path / "down2")):
        with pytest.raises(SSHError, match="link to a folder that it stands in") as caught:
            await copy
        assert caught.value.stage == "transfer"


async def test_what_cannot_be_copied_is_said(shell: AsyncShell, site: Any, folder: Path, tmp_path: Path) -> None:
    (site.home / "folder").mkdir()
    (site.home / "file").touch()
    os.mkfifo(site.home / "pipe")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "here").mkdir()
    (folder / "dangling").symlink_to("nowhere")
    for copy, message in (
        (shell.upload(tmp_path / "missing", "x"), "missing"),
        (shell.upload(tmp_path / "pipe", "x"), "neither a file nor a folder"),
        (shell.upload(folder, "x"), "dangling"),
        (shell.upload(folder / "big", "folder"), "is a folder; name the file in it"),
        (shell.upload(folder / "big", "file/below"), "file/below"),
        (shell.download("missing", tmp_path / "x"), "missing"),
        (shell.download("pipe", tmp_path / "x"), "neither a file nor a folder"),
        (shell.download("file", tmp_path / "here"), "is a folder; name the file in it"),
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


async def test_cancelled_at_any_step_nothing_is_left_in_part(
    shell: AsyncShell, site: Any, folder: Path, tmp_path: Path
) -> None:
    content = (folder / "big").read_bytes()
    # This begins the session that all copies share.
    await shell.upload(folder / "big", "down")
    before = asyncio.all_tasks()
    # As many in the end as it takes to be left alone.
    for steps in chain(range(0, 60, 3), range(60, 600, 30), (600 * 2**more for more in count())):
        whole = steps >= 600
        for copy in (shell.upload(folder / "big", "up"), shell.download("down", tmp_path / "down")):
            task = asyncio.create_task(copy)
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            whole = whole and not task.cancelled()
        for there in (site.home / "up", tmp_path / "down"):
            if there.exists():
                assert there.read_bytes() == content
                there.unlink()
        assert site.parts() == []
        assert list(tmp_path.glob(".*.part")) == []
        if whole:
            break
    async with asyncio.timeout(LONG):
        while not all(task.done() for task in asyncio.all_tasks() - before):
            await asyncio.sleep(0.005)
    await shell.upload(folder / "big", "up")
    assert (site.home / "up").read_bytes() == content


async def test_names_that_a_server_makes_up_lead_nowhere_else(
    shell: AsyncShell, site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site.home / "folder").mkdir()
    (site.home / "folder" / "file").touch()
    client = await shell._sftp_client()
    scandir = client.scandir

    async def strange(path: Any) -> Any:
        async with aclosing(scandir(path)) as entries:
            async for entry in entries:
                if entry.filename not in (".", ".."):
                    entry.filename = "../../outside"
                yield entry

    monkeypatch.setattr(client, "scandir", strange)
    with pytest.raises(SSHError, match="can be no name"):
        await shell.download("folder", tmp_path / "down")
    assert not (tmp_path / "outside").exists()


async def test_every_listing_has_ended_when_a_download_fails(
    shell: AsyncShell, site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site.home / "folder" / "below").mkdir(parents=True)
    os.mkfifo(site.home / "folder" / "below" / "pipe")
    client = await shell._sftp_client()
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
    with pytest.raises(SSHError, match="neither a file nor a folder") as raised:
        await shell.download("folder", tmp_path / "down")
    # While the error lives, so do the frames of what it came through: nothing but a proper end closes a listing.
    assert raised.value is not None
    assert open_listings == []


async def test_what_shrinks_meanwhile_is_not_taken_for_whole(
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


async def test_without_the_servers_extension_a_name_is_given_all_the_same(
    shell: AsyncShell, site: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncssh

    async def unsupported(*_: Any) -> None:
        raise asyncssh.SFTPOpUnsupported("no")

    monkeypatch.setattr(await shell._sftp_client(), "posix_rename", unsupported)
    for name in ("big", "nothing"):
        await shell.upload(folder / name, "same")
        assert (site.home / "same").read_bytes() == (folder / name).read_bytes()
    assert site.parts() == []


async def test_copies_at_once_share_a_session(shell: AsyncShell, site: Any, tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / str(number)).write_text(str(number))
    await asyncio.gather(*(shell.upload(tmp_path / str(number), f"up/{number}") for number in range(30)))
    assert sorted(path.read_text() for path in (site.home / "up").iterdir()) == sorted(map(str, range(30)))
