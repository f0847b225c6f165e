"""The script that renames in users' code what the package has renamed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / ".github" / "rename_imports.py"
BEFORE = """
from netmind_rentgpu import LedgerError  # the text LedgerError stays

async def leave(gpu, emulator, file):
    try:
        print(await gpu.rentals.open(), emulator.coming, open(file), file.open(), "LedgerError")
    except LedgerError as coming:
        raise coming
"""
AFTER = """
from netmind_rentgpu import StateFileError  # the text LedgerError stays

async def leave(gpu, emulator, file):
    try:
        print(await gpu.rentals.list(), emulator.pending_creates, open(file), file.open(), "LedgerError")
    except StateFileError as coming:
        raise coming
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_old_names_are_renamed_and_nothing_else_is(tmp_path: Path) -> None:
    old, other = tmp_path / "deep" / "old.py", tmp_path / "other.py"
    old.parent.mkdir()
    old.write_text(BEFORE)
    other.write_text("open('x')\n")
    done = run(str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{old}\n", "")
    assert old.read_text() == AFTER
    assert other.read_text() == "open('x')\n"
    assert run(str(tmp_path)).stdout == ""


def test_only_names_change_whatever_else_a_file_holds(tmp_path: Path) -> None:
    kept = tmp_path / "kept.py"
    before = "import os\n\x0c\r\nfrom netmind_rentgpu import LedgerError\r\nx = 'a\x85\u2028b'\nraise LedgerError"
    kept.write_bytes(before.encode())
    assert run(str(kept)).returncode == 0
    assert kept.read_bytes() == before.replace("LedgerError", "StateFileError").encode()


def test_file_that_is_not_python_is_reported_and_the_others_are_renamed(tmp_path: Path) -> None:
    for name, content in (("a.py", b"(LedgerError\n"), ("b.py", b"\xff LedgerError\n"), ("c.py", b"LedgerError\n")):
        (tmp_path / name).write_bytes(content)
    for folder in (".venv", "site-packages"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "d.py").write_bytes(b"LedgerError\n")
    done = run(str(tmp_path))
    assert (done.returncode, done.stdout) == (1, f"{tmp_path / 'c.py'}\n")
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == [
        str(tmp_path / "a.py"),
        str(tmp_path / "b.py"),
    ]
    assert (tmp_path / ".venv" / "d.py").read_bytes() == b"LedgerError\n"


def test_script_without_a_folder_prints_its_usage() -> None:
    done = run()
    assert done.returncode == 1
    assert "usage:" in done.stderr
