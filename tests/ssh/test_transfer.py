"""Copies to a container and back: content, modes, names, links, and progress."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from netmind_rentgpu import AsyncShell, InvalidArgumentError, SSHError, TransferProgress


def tree(root: Path) -> dict[str, tuple[int, bytes | None]]:
    """Return each file and folder below a folder, with its mode and content."""
    return {
        str(path.relative_to(root)): (stat.S_IMODE(path.stat().st_mode), path.read_bytes() if path.is_file() else None)
        for path in sorted(root.rglob("*"))
    }


async def test_folder_copied_there_and_back_is_unchanged(
    shell: AsyncShell, site: Any, folder: Path, tmp_path: Path
) -> None:
    await shell.upload(folder, "up/there")
    assert tree(site.home / "up" / "there") == tree(folder)
    assert (await shell.run("up/there/deep/run.sh")).stdout == "ran\n"
    await shell.download("up/there", tmp_path / "new" / "down")
    assert tree(tmp_path / "new" / "down") == tree(folder)
    assert site.parts() == []
    # A second copy replaces the files of the same names, and leaves the others.
    (site.home / "up" / "there" / "other").touch()
    (folder / "nothing").write_text("something")
    await shell.upload(folder, "up/there/")
    assert (site.home / "up" / "there" / "nothing").read_text() == "something"
    assert (site.home / "up" / "there" / "other").exists()


async def test_file_copied_there_and_back_replaces_content_and_mode(
    shell: AsyncShell, site: Any, folder: Path, tmp_path: Path
) -> None:
    await shell.upload(folder / "big", "big")
    assert (site.home / "big").read_bytes() == (folder / "big").read_bytes()
    await shell.upload(str(folder / "deep" / "run.sh"), "big")
    assert (await shell.run("./big")).stdout == "ran\n"
    (tmp_path / "down").write_text("before")
    await shell.download("big", tmp_path / "down")
    assert (tmp_path / "down").read_text() == "#!/bin/sh\necho ran\n"
    assert stat.S_IMODE((tmp_path / "down").stat().st_mode) == 0o755


async def test_download_drops_the_bits_that_change_the_user(shell: AsyncShell, site: Any, tmp_path: Path) -> None:
    (site.home / "odd").write_text("x")
    (site.home / "odd").chmod(0o6755)
    await shell.download("odd", tmp_path / "odd")
    assert stat.S_IMODE((tmp_path / "odd").stat().st_mode) == 0o755


async def test_progress_adds_up_to_all_files_and_bytes(shell: AsyncShell, folder: Path, tmp_path: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    for copy in (
        lambda report: shell.upload(folder, "up", on_progress=report),
        lambda report: shell.download("up", tmp_path / "down", on_progress=report),
    ):
        reports: list[TransferProgress] = []
        await copy(reports.append)
        assert {report.bytes_total for report in reports} == {sum(path.stat().st_size for path in files)}
        assert {report.files_total for report in reports} == {len(files)}
        assert [report.bytes_done for report in reports] == sorted(report.bytes_done for report in reports)
        assert (reports[-1].bytes_done, reports[-1].files_done) == (reports[-1].bytes_total, len(files))
        assert {report.path for report in reports} == {str(path.relative_to(folder)) for path in files}


async def test_links_are_followed_and_loops_refused(shell: AsyncShell, site: Any, folder: Path, tmp_path: Path) -> None:
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
        with pytest.raises(SSHError, match="link to a folder that contains it") as caught:
            await copy
        assert caught.value.stage == "transfer"


async def test_upload_replaces_a_file_without_the_posix_rename_extension(
    shell: AsyncShell, site: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncssh

    async def unsupported(*_: Any) -> None:
        raise asyncssh.SFTPOpUnsupported("no")

    monkeypatch.setattr(await shell._connection.sftp_client(), "posix_rename", unsupported)
    for name in ("big", "nothing"):
        await shell.upload(folder / name, "same")
        assert (site.home / "same").read_bytes() == (folder / name).read_bytes()
    assert site.parts() == []


async def test_concurrent_copies_share_a_session(shell: AsyncShell, site: Any, tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / str(number)).write_text(str(number))
    await asyncio.gather(*(shell.upload(tmp_path / str(number), f"up/{number}") for number in range(30)))
    assert sorted(path.read_text() for path in (site.home / "up").iterdir()) == sorted(map(str, range(30)))


async def test_file_without_a_size_is_copied_to_its_end(shell: AsyncShell, site: Any, tmp_path: Path) -> None:
    await shell.upload("/proc/self/status", "status")
    assert "VmRSS" in (site.home / "status").read_text()
    if site.kind == "OpenSSH":
        await shell.download("/proc/self/status", tmp_path / "status")
        assert "VmRSS" in (tmp_path / "status").read_text()


async def test_names_of_any_length_and_kind_survive_a_copy(shell: AsyncShell, site: Any, tmp_path: Path) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    names = ["\N{CJK UNIFIED IDEOGRAPH-65E5}" * 84, "-rf", "two\nlines", "x" * 255, os.fsdecode(b"\xff\xfe")]
    for name in names:
        (folder / name).write_text(name, errors="surrogateescape")
    await shell.upload(folder, "names")
    assert sorted(path.name for path in (site.home / "names").iterdir()) == sorted(names)
    await shell.download("names", tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(names)


async def test_new_folder_is_private_until_whole_and_old_folder_keeps_its_mode(
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
        # A later copy adds to the folder of a failed copy.
        await shell.upload(folder, "folder")
    assert stat.S_IMODE((site.home / "folder").stat().st_mode) == 0o755
    (site.home / "folder").chmod(0o1777)
    await shell.upload(folder, "folder")
    assert stat.S_IMODE((site.home / "folder").stat().st_mode) == 0o1777


async def test_progress_of_a_single_file_has_its_path(shell: AsyncShell, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("x" * 1000)
    for copy, expected in (
        (lambda report: shell.upload(tmp_path / "one", "up/one", on_progress=report), str(tmp_path / "one")),
        (lambda report: shell.download("up/one", tmp_path / "down", on_progress=report), "up/one"),
    ):
        reports: list[TransferProgress] = []
        await copy(reports.append)
        assert {report.path for report in reports} == {expected}


# What a copy leaves out.


async def test_links_to_nowhere_and_sockets_in_a_folder_are_skipped_and_reported(
    shell: AsyncShell, site: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for root in (tmp_path / "local", site.home / "there"):
        (root / "deep").mkdir(parents=True)
        (root / "file").write_text("kept")
        (root / "dangling").symlink_to("nowhere")
        (root / "deep" / "itself").symlink_to("itself")
        os.mkfifo(root / "deep" / "pipe")
        os.mknod(root / "socket", 0o600 | stat.S_IFSOCK)
        (root / "through").symlink_to("file/below")
    skipped = ("dangling", "deep/itself", "deep/pipe", "socket", "through")
    for copy, result in (
        (lambda report: shell.upload(tmp_path / "local", "up", on_progress=report), site.home / "up"),
        (lambda report: shell.download("there", tmp_path / "down", on_progress=report), tmp_path / "down"),
    ):
        caplog.clear()
        reports: list[TransferProgress] = []
        await copy(reports.append)
        assert {tuple(sorted(report.skipped)) for report in reports} == {skipped}
        assert (reports[-1].files_done, reports[-1].files_total) == (1, 1)
        assert sorted(path.name for path in result.rglob("*")) == ["deep", "file"]
        assert "did not copy " in caplog.text
    # Alone, each of them is an error.
    for alone in skipped:
        with pytest.raises(SSHError):
            await shell.upload(tmp_path / "local" / alone, "x")
        with pytest.raises(SSHError):
            await shell.download(f"there/{alone}", tmp_path / "x")


async def test_folder_of_nothing_but_skipped_entries_is_reported(shell: AsyncShell, tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "dangling").symlink_to("nowhere")
    reports: list[TransferProgress] = []
    await shell.upload(tmp_path / "local", "up", on_progress=reports.append)
    assert [(report.skipped, report.files_total) for report in reports] == [(("dangling",), 0)]


@pytest.mark.parametrize(
    ("exclude", "left_out"),
    [
        (["*.pyc"], {"a.pyc", "deep/b.pyc", "deep/er/c.pyc"}),
        ("*.pyc", {"a.pyc", "deep/b.pyc", "deep/er/c.pyc"}),
        ([".git/"], {".git/config"}),
        (["deep/er"], {"deep/er/c.pyc", "deep/er/d"}),
        (["/deep/er/"], {"deep/er/c.pyc", "deep/er/d"}),
        (["er"], {"deep/er/c.pyc", "deep/er/d"}),
        (["deep/*"], {"deep/b.pyc", "deep/er/c.pyc", "deep/er/d"}),
        (["[ad]*"], {"a.pyc", "deep/b.pyc", "deep/er/c.pyc", "deep/er/d"}),
        (["?"], {"deep/er/d", "x"}),
        (["./x", "**/er"], {"x", "deep/er/c.pyc", "deep/er/d"}),
        (["**/deep"], {"deep/b.pyc", "deep/er/c.pyc", "deep/er/d"}),
        # As in .gitignore, `*` matches no slash, and a slash at the end is for folders.
        (["deep/*.pyc"], {"deep/b.pyc"}),
        (["deep/**/*.pyc"], {"deep/b.pyc", "deep/er/c.pyc"}),
        (["**/*.pyc"], {"a.pyc", "deep/b.pyc", "deep/er/c.pyc"}),
        (["*/d", "deep/?r/d"], {"deep/er/d"}),
        (["deep/**"], {"deep/b.pyc", "deep/er/c.pyc", "deep/er/d"}),
        (["x/", "d/", "**/a.pyc/"], set()),
        (["er/"], {"deep/er/c.pyc", "deep/er/d"}),
        (["nothing", "deep/nothing", "eep", "local"], set()),
        ([], set()),
    ],
)
async def test_excluded_files_and_folders_are_not_copied(
    shell: AsyncShell, site: Any, tmp_path: Path, exclude: Any, left_out: set[str]
) -> None:
    files = {"a.pyc", "x", "deep/b.pyc", "deep/er/c.pyc", "deep/er/d", ".git/config"}
    for name in files:
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).touch()
    await shell.upload(tmp_path / "local", "up", exclude=exclude)
    up = site.home / "up"
    assert {str(path.relative_to(up)) for path in up.rglob("*") if path.is_file()} == files - left_out


@pytest.mark.parametrize("exclude", [7, [7], None, [b"x"]], ids=str)
async def test_patterns_that_are_no_texts_are_refused(shell: AsyncShell, tmp_path: Path, exclude: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="exclude"):
        await shell.upload(tmp_path, "up", exclude=exclude)
