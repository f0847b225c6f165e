"""A container whose commands run on this machine, environments for pip to change there, and isolated machines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import canaries
import pytest
import wheels
from dask_clusters import serving
from renters import Service

from netmind_rentgpu import AsyncRentGPU, AsyncShell, PaymentType
from netmind_rentgpu.emulator import Emulator


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[AsyncShell]:
    """A shell on a container."""
    async with (
        Emulator(seed=7, boot_seconds=0, token=canaries.TOKEN, ssh=True) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url, state=tmp_path / "kept" / "state.sqlite3") as gpu,
    ):
        auth = await gpu.auths.ensure(canaries.PASSWORD)
        [machine, *_] = await gpu.machines.list()
        container = await gpu.containers.create(
            name="worker",
            auth_id=auth.id,
            node_name=machine.node_name,
            image_template_id=1,
            payment_type=PaymentType.USD,
        )
        async with gpu.ssh(await gpu.containers.get(container.id)) as shell:
            yield shell


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The Python of a virtual environment with pip alone, which the test may change."""
    venv = tmp_path / "image"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    # Only linked, because a copy of pip takes seconds to make and to compile.
    for path in wheels.top_level("pip"):
        (wheels.libraries_of(venv / "bin" / "python") / path.name).symlink_to(path)
    return venv / "bin" / "python"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """Serve isolated machines to clusters of the test, or of programs in processes of their own."""
    async with serving(tmp_path) as service:
        yield service
