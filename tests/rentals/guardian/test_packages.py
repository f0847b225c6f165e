"""The copies of the packages that a guardian runs from."""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from programs import INSTALLED

from netmind_rentgpu.errors import ConfigurationError
from netmind_rentgpu.rentals.guardian import packages
from netmind_rentgpu.rentals.guardian.packages import copy_packages

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a guardian needs forks")
ENVIRONMENT = {"PATH": os.environ["PATH"]}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a few files copied instead of the packages; return their folder."""
    folder = tmp_path / "site"
    (folder / "thing").mkdir(parents=True)
    (folder / "thing" / "code.py").write_text("x = 1\n")
    (folder / "single.py").write_text("x = 1\n")
    files = {Path("thing/code.py"): folder / "thing" / "code.py", Path("single.py"): folder / "single.py"}
    monkeypatch.setattr(packages, "_files", lambda: iter(files.items()))
    monkeypatch.setattr(packages, "_try_out", lambda *_: None)
    return folder


def test_copies_hold_the_sdk_and_what_it_needs_and_nothing_else(tmp_path: Path) -> None:
    copies = copy_packages(tmp_path / "guardian", ENVIRONMENT)
    os.close(copies.lock)
    names = {entry.name for entry in copies.folder.iterdir()}
    assert names >= {"netmind_rentgpu", "aiohttp", "attr", "attrs", "cattrs", "anyio", "yarl", "typing_extensions.py"}
    # It logs in to look at jobs.
    assert names >= {"asyncssh", "cryptography"}
    assert not names & {"pytest", "click", "rich", "pip"}
    assert not (copies.folder / "netmind_rentgpu" / "emulator").exists()
    assert (copies.folder / "netmind_rentgpu" / "rentals" / "guardian" / "process.py").exists()
    assert (copies.folder / "netmind_rentgpu" / "ssh" / "job.sh").exists()
    assert copies.folder.stat().st_mode & 0o777 == 0o700


def test_second_guardian_uses_the_same_copies(tmp_path: Path, small: Path) -> None:
    first = copy_packages(tmp_path / "guardian", ENVIRONMENT)
    kept = (first.folder / "single.py").stat().st_ino
    second = copy_packages(tmp_path / "guardian", ENVIRONMENT)
    assert (first.folder, kept) == (second.folder, (second.folder / "single.py").stat().st_ino)
    os.close(first.lock)
    os.close(second.lock)


def test_copies_that_were_damaged_are_mended(tmp_path: Path, small: Path) -> None:
    copies = copy_packages(tmp_path / "guardian", ENVIRONMENT)
    os.close(copies.lock)
    (copies.folder / "thing" / "code.py").unlink()
    (copies.folder / "single.py").write_text("")
    os.close(copy_packages(tmp_path / "guardian", ENVIRONMENT).lock)
    assert (copies.folder / "thing" / "code.py").read_text() == (copies.folder / "single.py").read_text() == "x = 1\n"


def test_copies_of_other_versions_are_removed_once_no_guardian_holds_them(tmp_path: Path, small: Path) -> None:
    first = copy_packages(tmp_path / "guardian", ENVIRONMENT)
    (small / "single.py").write_text("x = 22\n")
    second = copy_packages(tmp_path / "guardian", ENVIRONMENT)
    assert first.folder != second.folder
    assert first.folder.exists()
    os.close(first.lock)
    (small / "single.py").write_text("x = 333\n")
    third = copy_packages(tmp_path / "guardian", ENVIRONMENT)
    assert not first.folder.exists()
    assert second.folder.exists()
    os.close(second.lock)
    os.close(third.lock)


def test_copies_that_are_removed_while_they_are_locked_are_made_again(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    flock, removed = fcntl.flock, []

    def lock_late(descriptor: int, how: int) -> None:
        if how == fcntl.LOCK_SH and not removed:
            (target,) = (tmp_path / "guardian").glob("packages-*")
            target.rmdir()
            removed.append(target)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    copies = copy_packages(tmp_path / "guardian", ENVIRONMENT)
    assert removed == [copies.folder]
    assert (copies.folder / "single.py").exists()
    os.close(copies.lock)


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_folder_in_which_others_may_write_is_refused(tmp_path: Path, small: Path, mode: int) -> None:
    folder = tmp_path / "guardian"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigurationError, match=r"another user owns .*guardian, or may write there"):
        copy_packages(folder, ENVIRONMENT)


def test_folder_that_is_a_link_or_a_file_is_refused(tmp_path: Path, small: Path) -> None:
    (tmp_path / "link").symlink_to(small)
    with pytest.raises(ConfigurationError, match="another user owns"):
        copy_packages(tmp_path / "link", ENVIRONMENT)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="could not copy the packages it needs into"):
        copy_packages(tmp_path / "file", ENVIRONMENT)


def test_folder_of_another_user_is_refused(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigurationError, match="another user owns"):
        copy_packages(tmp_path / "guardian", ENVIRONMENT)


def test_missing_package_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "distribution", fail)
    with pytest.raises(ConfigurationError, match="the package netmind_rentgpu is not installed"):
        copy_packages(tmp_path / "guardian", ENVIRONMENT)


def test_copies_that_cannot_be_imported_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [(relative, path) for relative, path in packages._files() if relative.parts[0] != "yarl"]
    monkeypatch.setattr(packages, "_files", lambda: iter(files))
    with pytest.raises(ConfigurationError, match=r"could not import the SDK from copies.*No module named 'yarl'"):
        copy_packages(tmp_path / "guardian", ENVIRONMENT)


def test_program_that_is_no_python_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ConfigurationError, match=r"/bin/false could not import the SDK.*it ended with 1"):
        copy_packages(tmp_path / "guardian", ENVIRONMENT)


def test_package_without_a_list_of_files_is_found_by_its_name() -> None:
    class Bare:
        name = "some-thing"
        files = None

        @staticmethod
        def read_text(name: str) -> str | None:
            return "first\nsecond\n" if name == "top_level.txt" else None

    found: Any = Bare()
    assert list(packages._modules_of(found)) == ["some_thing", "first", "second"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of files")
def test_compiled_files_are_whole_or_missing_where_the_disk_is_full(tmp_path: Path) -> None:
    copies = copy_packages(tmp_path, ENVIRONMENT)
    os.close(copies.lock)
    whole = len(compiled(copies.folder))
    (copies.folder / ".imported").unlink()
    for each in compiled(copies.folder):
        each.unlink()
    limited = f"""
        import os, resource
        from pathlib import Path
        from netmind_rentgpu.rentals.guardian.packages import copy_packages
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        copy_packages(Path({str(tmp_path)!r}), dict(os.environ))
    """
    subprocess.run([sys.executable, "-c", dedent(limited)], check=True, env={**ENVIRONMENT, **INSTALLED})
    left = compiled(copies.folder)
    assert 0 < len(left) < whole
    for each in left:
        marshal.loads(each.read_bytes()[16:])


def compiled(folder: Path) -> list[Path]:
    return [each for each in folder.rglob("__pycache__/*") if each.is_file()]
