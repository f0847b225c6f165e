"""Runs of pytest in a process of their own, with the plugin as users have it and with warnings as errors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

from programs import FOLDER, with_programs

# Plugins that the nested runs do not need, and that would take most of their time.
QUICK = [f"-pno:{plugin}" for plugin in ("cacheprovider", "hypothesispytest", "schemathesis", "xdist")]
# Without the short summary, which repeats an error: cut where `CI` is unset and whole where it is set.
ALWAYS = ["-rN", "-W", "error", "--strict-markers"]
BEGIN = """
import asyncio, os, sys
import pytest
from netmind_rentgpu import (
    APIConnectionError, AsyncRentGPU, ConfigurationError, InvalidRequestError, PaymentType, PermissionDeniedError, RentGPU
)
from netmind_rentgpu.emulator import Clock, Emulator, Fault
from container_creation import create
"""
ANYIO = """
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


def own_folder(folder: Path) -> str:
    """Return the option that keeps a run's temporary files in a folder of its own.

    Runs that share one remove each other's old files at their ends, and may fail over it.
    """
    return f"--basetemp={folder / 'temporary'}"


def run_pytest(
    folder: Path, test: str = "", *options: str, file: str | None = None, conftest: str = "", ini: str = "", **env: str
) -> tuple[dict[str, int], str]:
    """Run a test module, given by its text or by its file's name in tests/programs; return the counts and the output."""
    target = folder / "test_nested.py"
    if file is None:
        target.write_text(BEGIN + dedent(test))
    else:
        shutil.copy(FOLDER / file, target)
    (folder / "conftest.py").write_text(dedent(conftest))
    if "no:asyncio" not in options and "asyncio_default_fixture_loop_scope" not in ini:
        ini += "\nasyncio_default_fixture_loop_scope = function"  # pytest-asyncio warns if this is unset
    (folder / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *QUICK, *ALWAYS, own_folder(folder), *options, folder],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd=folder,
        env={**with_programs(os.environ), "NETMIND_API_KEY": "the-real-one", **env},
    )
    last = done.stdout.strip().rpartition("\n")[2]
    counts = {kind.rstrip("s"): int(number) for number, kind in re.findall(r"(\d+) (\w+)", last.rpartition(" in ")[0])}
    output = done.stdout + done.stderr
    assert counts or done.returncode == 0, (
        f"no summary line was printed, and the exit status was {done.returncode}:\n{output}"
    )
    return counts, output
