"""The shell of `gpu.ssh`: its arguments, and the login that opens it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netmind_rentgpu import arguments
from netmind_rentgpu.models import Container
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.ssh.arguments import text
from netmind_rentgpu.ssh.credentials import ContainerLogin, check_asyncssh
from netmind_rentgpu.ssh.shell import AsyncShell
from netmind_rentgpu.waiting.waits import checked_timeout
from netmind_rentgpu.wire.caller import Caller

if TYPE_CHECKING:
    import asyncssh

__all__ = ["shell_on"]


def shell_on(
    container: Container | int,
    *,
    caller: Caller,
    containers: AsyncContainers,
    credentials: ContainerLogin,
    password: str | None,
    accept_new_host_key: bool,
    timeout: float,
    keepalive: float,
) -> AsyncShell:
    """Return a shell to be opened; `AsyncRentGPU.ssh` documents the arguments and errors."""
    check_asyncssh()
    if password is not None:
        text("password", password)
    seconds, interval = checked_timeout(timeout), checked_timeout(keepalive, argument="keepalive")
    wanted = container if isinstance(container, Container) else arguments.identifier("container", container)

    async def log_in() -> tuple[Container, asyncssh.SSHClientConnection]:
        caller.check_usable()
        found = wanted if isinstance(wanted, Container) else await containers.get(wanted)
        if found.ssh_endpoint is None and found is wanted:
            found = await containers.get(found.id)
        connection = await credentials.log_in(
            found, seconds, password=password, accept_new_host_key=accept_new_host_key, keepalive=interval
        )
        return found, connection

    return AsyncShell(log_in, credentials.limits)
