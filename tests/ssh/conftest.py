"""Containers to log in to: one with the emulator's SSH server, and one with a real OpenSSH server."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import attrs
import canaries
import openssh
import pytest
from scripts import Served, serving

from netmind_rentgpu import AsyncRentGPU, AsyncShell, Container, PaymentType
from netmind_rentgpu.emulator import Emulator


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def rented(gpu: AsyncRentGPU, password: str = canaries.PASSWORD, name: str = "mine") -> Container:
    """Rent a container that starts at once."""
    auth = await gpu.auths.ensure(password)
    machine = max(await gpu.machines.list(), key=lambda machine: machine.gpu_count or 0)
    container = await gpu.containers.create(
        name=name, auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type=PaymentType.USD
    )
    return await gpu.containers.get(container.id)


@dataclass
class Site:
    """A container to log in to.

    Attributes:
        home: the home folder of the login, which is on this machine.
        kind: `emulator` or `OpenSSH`, the SSH server of the container.
    """

    gpu: AsyncRentGPU
    emulator: Emulator
    container: Container
    home: Path
    kind: str

    def shell(self) -> AsyncShell:
        return self.gpu.ssh(self.container)

    def parts(self) -> list[Path]:
        """Return the files that are only partly copied."""
        return list(self.home.rglob("*.part"))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "state.sqlite3"


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(seed=7, boot_seconds=0, token=canaries.TOKEN, ssh=True) as emulator:
        yield emulator


@pytest.fixture
async def gpu(emulator: Emulator, state: Path) -> AsyncIterator[AsyncRentGPU]:
    async with AsyncRentGPU(emulator.token, base_url=emulator.url, state=state) as gpu:
        yield gpu


@pytest.fixture(params=["emulator", "OpenSSH"])
async def site(
    request: pytest.FixtureRequest, gpu: AsyncRentGPU, emulator: Emulator, tmp_path: Path
) -> AsyncIterator[Site]:
    if request.param == "emulator":
        container = await rented(gpu)
        async with gpu.ssh(container) as shell:
            home = Path((await shell.run("pwd")).stdout.strip())
        yield Site(gpu, emulator, container, home, "emulator")
        return
    # A test may ask for a server with so many sessions on a connection.
    sessions = request.param if isinstance(request.param, int) else 10
    with openssh.openssh_server(tmp_path / "sshd", free_port(), sessions=sessions) as server:
        container = attrs.evolve(await rented(gpu, openssh.PASSWORD), ssh=f"ssh root@127.0.0.1 -p {server.port}")
        yield Site(gpu, emulator, container, server.home, "OpenSSH")


@pytest.fixture
async def shell(site: Site) -> AsyncIterator[AsyncShell]:
    async with site.shell() as shell:
        yield shell


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as served:
        yield served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with large, small, empty, private, executable and oddly named files."""
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
