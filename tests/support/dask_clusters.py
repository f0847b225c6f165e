"""Clusters of an emulator whose containers have networks of their own, in the test or in programs that it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dask_tasks
import pytest
from isolation import require_isolation
from renters import Service, renting

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.dask import Software


@asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[Service]:
    """Serve isolated machines for clusters."""
    require_isolation()
    async with renting(folder, **{"isolated": True, "machines": 10, **options}) as service:
        yield service


def wanted(service: Service | None, **options: Any) -> dict[str, Any]:
    """Return a cluster's arguments: machines that have the tests' own Python, and a client without a guardian."""
    # The workers import the functions of the tests.
    environment = {"PYTHONPATH": str(Path(dask_tasks.__file__).parent), **options.pop("environment", {})}
    usual: dict[str, Any] = {"image": "PyTorch 2.4", "software": Software(python=sys.executable)}
    if service is not None:
        usual["client"] = service.client
    return {**usual, **options, "environment": environment}


def processes_with(text: str) -> list[int]:
    """Return the ids of the processes in whose environment a text occurs."""
    return [pid for pid, environment in environments().items() if text.encode() in environment]


def environments() -> dict[int, bytes]:
    """Return the environment of each process of this user, by its process id; this one's is left out."""
    return _read("environ")


def command_lines_by_id() -> dict[int, bytes]:
    """Return the command line of each process, by its process id; this one's is left out."""
    return _read("cmdline")


def _read(name: str) -> dict[int, bytes]:
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid():
                found[int(process.name)] = (process / name).read_bytes()
        except OSError:
            continue
    return found


def never() -> Callable[[], AsyncRentGPU]:
    """Return a client's factory that fails the test when it is called."""

    def client() -> AsyncRentGPU:
        pytest.fail("a client was made")

    return client
