"""Rent containers with an SSH server, and log in to them."""

from __future__ import annotations

import asyncio
from typing import Any

import canaries
import pytest

from netmind_rentgpu import AsyncRentGPU, Container, PaymentType

asyncssh = pytest.importorskip("asyncssh")

PASSWORD = canaries.PASSWORD
# A command that runs until it is ended, and prints its process id first.
LASTING = "echo $$; exec sleep 10000"


async def rent(gpu: AsyncRentGPU, name: str = "mine", password: str = PASSWORD, gpus: int = 1) -> Container:
    """Create a container, and return it as the service shows it afterwards."""
    container = await gpu.containers.create(
        name=name,
        auth_id=(await gpu.auths.create(password)).id,
        node_name=(await gpu.machines.list(gpu=gpus))[0].node_name,
        gpu=gpus,
        image_template_id=1,
        payment_type=PaymentType.USD,
    )
    return await gpu.containers.get(container.id)


def port_of(container: Container) -> int:
    """Return the port of the container's SSH server."""
    assert container.ssh_endpoint is not None
    return container.ssh_endpoint.port


def login(port: int, username: str = "root", password: str = PASSWORD) -> Any:
    """Log in without this machine's own keys, agent and configuration."""
    return asyncssh.connect(
        "127.0.0.1",
        port,
        username=username,
        password=password,
        known_hosts=None,
        config=None,
        client_keys=None,
        agent_path=None,
    )


async def shout(reader: Any, writer: Any) -> bytes:
    """Send a line to an echo server, and return the answer."""
    writer.write(b"hello\n")
    async with asyncio.timeout(60):
        answer: bytes = await reader.read()
    writer.close()
    return answer
