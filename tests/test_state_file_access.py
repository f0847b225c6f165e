"""A state file that is there already: another user's is refused, our own is kept from others."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from state_files import state_at

from netmind_rentgpu import ConfigurationError, StateFileError

OTHER = 54321


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[None]:
    """Restore the umask."""
    before = os.umask(0o022)
    yield
    os.umask(before)


async def used(path: Path) -> None:
    """Write to a state file, and read it."""
    state = state_at(path)
    try:
        await state.pin_host_key(1, "key")
        assert await state.host_key(1) == "key"
    finally:
        state.close()


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file another user's: by its owner if that can be changed, else by whom this process takes itself for."""
    if os.geteuid() == 0:
        os.chown(path, OTHER, -1)
    monkeypatch.setattr(os, "geteuid", lambda: OTHER + 1)


@pytest.mark.parametrize("mode", [0o600, 0o666])
async def test_state_file_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    path = tmp_path / "state.sqlite3"
    await used(path)
    content = path.read_bytes()
    path.chmod(mode)
    give_away(path, monkeypatch)
    owner = path.stat().st_uid
    with pytest.raises(ConfigurationError, match=rf"belongs to .*uid {owner}.* \(mode {mode:04o}\)") as caught:
        await used(path)
    assert isinstance(caught.value, StateFileError)
    assert "state=" in str(caught.value)
    assert str(path) in str(caught.value)
    assert (path.read_bytes(), mode_of(path)) == (content, mode)


async def test_link_to_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, link = tmp_path / "theirs.sqlite3", tmp_path / "state.sqlite3"
    path.touch()
    link.symlink_to(path)
    give_away(path, monkeypatch)
    with pytest.raises(ConfigurationError, match="belongs to"):
        await used(link)
    assert path.read_bytes() == b""


async def test_link_to_a_file_of_our_own_is_used(tmp_path: Path) -> None:
    path, link = tmp_path / "mine.sqlite3", tmp_path / "state.sqlite3"
    path.touch(mode=0o644)
    link.symlink_to(path)
    await used(link)
    assert link.is_symlink()
    assert mode_of(path) == 0o600


async def test_root_uses_the_file_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.sqlite3"
    await used(path)
    give_away(path, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    await used(path)


async def test_planted_link_beside_the_file_is_refused(tmp_path: Path) -> None:
    path, precious = tmp_path / "state.sqlite3", tmp_path / "precious"
    precious.touch()
    precious.chmod(0o664)
    path.touch()
    path.with_name("state.sqlite3-wal").symlink_to(precious)
    with pytest.raises(ConfigurationError, match=r"state\.sqlite3-wal: it is not a regular file"):
        await used(path)
    assert mode_of(precious) == 0o664


async def test_file_system_without_modes_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: int, **options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    path = tmp_path / "folder" / "state.sqlite3"
    await used(path)
    assert not list(path.parent.glob("*.new"))


async def test_lack_of_descriptors_is_not_taken_for_an_unusable_folder(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "state.sqlite3"
    await used(path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    state = state_at(path)
    taken: list[int] = []
    try:
        taken.append(os.open("/dev/null", os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 5, limits[1]))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(StateFileError) as caught:
            await state.host_key(1)
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        state.close()
    assert not isinstance(caught.value, ConfigurationError)


async def test_file_of_root_is_used_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.sqlite3"
    await used(path)
    lstat = Path.lstat

    def owned_by_root(self: Path) -> os.stat_result:
        found = lstat(self)
        return os.stat_result((*found[:4], 0, *found[5:]))

    monkeypatch.setattr(Path, "lstat", owned_by_root)
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    await used(path)


@pytest.mark.parametrize("mode", [0o666, 0o640, 0o604, 0o777])
async def test_state_file_that_others_may_read_is_kept_from_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    path = tmp_path / "state.sqlite3"
    state = state_at(path)
    await state.pin_host_key(1, "key")
    companions = [file for file in tmp_path.iterdir() if file != path]
    assert companions
    for file in (path, *companions):
        file.chmod(mode)
    await used(path)
    for file in tmp_path.iterdir():
        assert mode_of(file) == mode & 0o700
    state.close()
    assert "other users may read" not in caplog.text


async def test_state_file_whose_mode_cannot_be_changed_is_used_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.sqlite3"
    path.touch()
    path.chmod(0o644)
    chmod = Path.chmod

    def has_no_effect(self: Path, mode: int, **options: Any) -> None:
        if self.name.startswith("state.sqlite3."):
            chmod(self, mode, **options)

    monkeypatch.setattr(Path, "chmod", has_no_effect)
    await used(path)
    await used(path)
    warnings = [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and str(path) + "," in record.getMessage()
    ]
    assert len(warnings) == 1
    assert "its mode is 0644, and cannot be changed; choose another place with state=..." in warnings[0]


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o277, 0o777], ids=oct)
async def test_folders_and_file_are_for_their_user_alone_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    path = tmp_path / "one" / "two" / "three" / "state.sqlite3"
    os.umask(mask)
    await used(path)
    assert [mode_of(folder) for folder in path.parents[:3]] == [0o700] * 3
    assert mode_of(path) == 0o600


async def test_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o755)
    await used(folder / "below" / "state.sqlite3")
    assert (mode_of(folder), mode_of(folder / "below")) == (0o755, 0o700)
