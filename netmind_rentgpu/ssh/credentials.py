"""Logins to containers: the password is what the service shows for a container's auth, the host key is in the state file."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from netmind_rentgpu.concurrency.backoff import backoff_delay
from netmind_rentgpu.concurrency.threads import run_in_thread
from netmind_rentgpu.errors import ClientStateError, ConfigurationError, RentGPUError, SSHError
from netmind_rentgpu.models import Container
from netmind_rentgpu.resources.auths import AsyncAuths
from netmind_rentgpu.ssh.limits import SSHLimits
from netmind_rentgpu.state_file import State

if TYPE_CHECKING:
    import asyncssh

__all__ = ["ContainerLogin", "check_asyncssh", "label_of"]

_LOGIN = "netmind_rentgpu.ssh.login"
NEEDS_SSH: Final = (
    "SSH needs asyncssh, which the extra `ssh` installs: run pip install '.[ssh]' in the folder of this package's"
    " source"
)
_KEEPALIVE = 15.0
_FIRST_TRY, _LONGEST_TRY = 7.5, 30.0


def check_asyncssh() -> None:
    """Raise ConfigurationError if asyncssh is missing."""
    if find_spec("asyncssh") is None:
        raise ConfigurationError(NEEDS_SSH)


async def _import_asyncssh() -> None:
    """Import asyncssh in a thread, because the import takes 0.1 seconds or more and would block the event loop."""
    if not hasattr(sys.modules.get(_LOGIN), "log_in"):
        try:
            await run_in_thread(partial(import_module, _LOGIN))
        except (ImportError, OSError) as error:
            raise ConfigurationError(f"SSH needs asyncssh, which cannot be imported: {error}") from error


class ContainerLogin:
    """The logins of one client to the containers of its account.

    Attributes:
        limits: those of the copies over these logins.
    """

    def __init__(self, auths: AsyncAuths, state: State, username: str) -> None:
        """Set up.

        Args:
            username: the user to log in as where a container's `ssh` field names no user.
        """
        self._username = username
        self._auths = auths
        self._state = state
        self.limits: SSHLimits = SSHLimits()

    async def check(self) -> None:
        """Check, before anything is rented, that this process can log in to containers.

        Raises:
            ConfigurationError: this process cannot log in.
        """
        await _import_asyncssh()
        from netmind_rentgpu.ssh.login import check_login

        check_login(self._username)

    async def log_in(
        self,
        container: Container,
        seconds: float,
        *,
        password: str | None = None,
        accept_new_host_key: bool = False,
        keepalive: float = _KEEPALIVE,
    ) -> asyncssh.SSHClientConnection:
        """Log in to a container. The first successful login pins the server's host key, and later ones require that key.

        Args:
            seconds: the seconds for finding the host, connecting and logging in. The calls to the service and the state file
                do not count.
            password: the password; None to ask the service for that of the container's auth.
            accept_new_host_key: True to accept the key that the server has now, and pin it.
            keepalive: as for `AsyncRentGPU.ssh`.

        Raises:
            SSHError: the login failed.
            StateFileError: the state file cannot be used.
            RentGPUError: the service did not return the auth.
        """
        await _import_asyncssh()
        from netmind_rentgpu.ssh.login import Login, log_in

        label = label_of(container)
        endpoint = container.ssh_endpoint
        if endpoint is None:
            cause = f", {container.ssh[:200]!r}, names no endpoint" if container.ssh else " is empty"
            raise SSHError(f"cannot log in to {label}: its ssh field{cause}", stage="name")
        pinned = await self._state.host_key(container.id)
        login = Login(
            label=label,
            endpoint=endpoint,
            username=endpoint.username or self._username,
            password=await self._password_of(container) if password is None else password,
            host_key=None if accept_new_host_key else pinned,
            keepalive=keepalive,
        )
        connection, key = await log_in(login, seconds)
        if key == pinned:
            return connection
        try:
            await self._pin(container, key, replace=accept_new_host_key)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def try_to_log_in(self, container: Container, attempt: int) -> RentGPUError | None:
        """Try to log in, and disconnect; return the error of a failure that may pass, or None after a successful login.

        Args:
            attempt: the attempt's number, from 0; later attempts have more time.

        Raises:
            SSHError: the server's host key is not that of the container, or the service does not return the password.
            StateFileError: the state file cannot be used.
            ConfigurationError: asyncssh is missing.
        """
        check_asyncssh()
        seconds = backoff_delay(attempt, first=_FIRST_TRY, longest=_LONGEST_TRY, factor=2)
        try:
            password = await self._password_of(container)
        except (ClientStateError, SSHError):
            raise
        except RentGPUError as error:
            return error
        try:
            connection = await self.log_in(container, seconds, password=password)
        except SSHError as error:
            if error.stage == "host key":
                raise
            return error
        connection.close()
        await connection.wait_closed()
        return None

    async def _pin(self, container: Container, key: str, *, replace: bool) -> None:
        kept = await self._state.pin_host_key(container.id, key, replace=replace)
        if kept != key:
            text = f"{label_of(container)}: another login at the same time reached a server with another host key"
            raise SSHError(f"{text}; accept the right key with accept_new_host_key=True", stage="host key")

    async def _password_of(self, container: Container) -> str:
        auth_id = container.auth_id
        password = None if auth_id is None else (await self._auths.get(auth_id)).value
        if not password:
            text = (
                f"{label_of(container)}: the service does not return the password of auth {auth_id}; pass password=..."
            )
            raise SSHError(text, stage="password")
        return password


def label_of(container: Container) -> str:
    """Return the id and name of a container, by which errors name it."""
    return f"container {container.id}" + ("" if container.name is None else f" ({container.name})")
