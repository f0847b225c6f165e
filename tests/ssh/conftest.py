"""A container to log in to: an emulated one, and one whose SSH server is OpenSSH's own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import attrs
import canaries
import openssh
import pytest

from netmind_rentgpu import AsyncRentGPU, AsyncShell, Container, PaymentType
from netmind_rentgpu.emulator import Emulator


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def rented(gpu: AsyncRentGPU, password: str = canaries.PASSWORD, name: str = "mine") -> Container:
    """Rent a container that is up at once."""
    auth = await gpu.auths.ensure(password)
    machine = max(await gpu.machines.list(), key=lambda machine: machine.gpu_count or 0)
    made = await gpu.containers.create(
        name=name, auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type=PaymentType.USD
    )
    return await gpu.containers.get(made.id)


@dataclass
class Site:
    """Where to log in.

    Attributes:
        home: the login's home, which is on this machine.
        kind: which server it is.
    """

    gpu: AsyncRentGPU
    emulator: Emulator
    container: Container
    home: Path
    kind: str

    def shell(self) -> AsyncShell:
        return self.gpu.ssh(self.container)

    def parts(self) -> list[Path]:
        """Files that are there only in part."""
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
    with openssh.openssh_server(tmp_path / "sshd", free_port()) as server:
        container = await rented(gpu, openssh.PASSWORD)
        there = attrs.evolve(container, ssh=f"ssh root@127.0.0.1 -p {server.port}")
        yield Site(gpu, emulator, there, server.home, "OpenSSH")


@pytest.fixture
async def shell(site: Site) -> AsyncIterator[AsyncShell]:
    async with site.shell() as shell:
        yield shell


@contextmanager
def nothing_left() -> Iterator[None]:
    """Check that no task is left that was not there before."""
    before = asyncio.all_tasks()
    yield
    left = [task for task in asyncio.all_tasks() - before if not task.done()]
    assert left == []
