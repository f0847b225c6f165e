"""Isolated containers: whether this machine allows them, and the processes that hold their networks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import FOLDER

from netmind_rentgpu.emulator.namespaces import check_namespaces

NETWORKS = ["shared network", "isolated"]
"""The parameters of a fixture for an emulator whose containers share this machine's network, or have their own."""


def is_isolated(request: pytest.FixtureRequest) -> bool:
    """Return True if a fixture of these parameters is for isolated containers, which the machine may forbid."""
    if request.param == "shared network":
        return False
    require_isolation()
    return True


def require_isolation() -> None:
    """Skip a test where the system forbids namespaces, and fail it in CI where the system allows them after all."""
    try:
        check_namespaces()
    except NotImplementedError as error:
        if "CI" in os.environ and unshare_succeeds():
            pytest.fail(f"`unshare -Urn true` succeeds, but {error}")
        pytest.skip(str(error))


def unshare_succeeds() -> bool:
    program = shutil.which("unshare")
    return program is not None and subprocess.run([program, "-Urn", "true"], check=False).returncode == 0


def holders(parent: int) -> set[int]:
    """Return the process ids of the namespaces' holders that a process started and that run."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if words[-2:] == [b"hold", b""] and int(fields[1]) == parent:
            found.add(int(process.name))
    return found


def inside(mode: str, *arguments: object) -> str:
    """Return the command that runs `network_peer.py` in a container."""
    return " ".join(["exec", sys.executable, "-IS", str(FOLDER / "network_peer.py"), mode, *map(str, arguments)])
