"""Who may log in where: a container's password and its host key, as the account and the state file know them."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from netmind_rentgpu.concurrency.threads import run_in_thread
from netmind_rentgpu.errors import ClientStateError, ConfigurationError, RentGPUError, SSHError
from netmind_rentgpu.models import Container
from netmind_rentgpu.resources.auths import AsyncAuths
from netmind_rentgpu.state_file import State

if TYPE_CHECKING:
    import asyncssh

__all__ = ["ContainerLogin", "check_asyncssh", "label_of"]

_LOGIN = "netmind_rentgpu.ssh.login"
_FIRST_TRY, _LONGEST_TRY = 7.5, 30.0


def check_asyncssh() -> None:
    """Raise ConfigurationError if asyncssh is missing."""
    if find_spec("asyncssh") is None:
        raise ConfigurationError("SSH needs asyncssh: pip install 'netmind-rentgpu[ssh]'")


async def _import_asyncssh() -> None:
    """Import asyncssh in a thread: it takes a tenth of a second and more, for which the event loop must not stand still."""
    if not hasattr(sys.modules.get(_LOGIN), "log_in"):
        try:
            await run_in_thread(partial(import_module, _LOGIN))
        except (ImportError, OSError) as error:
            raise ConfigurationError(f"SSH needs asyncssh, which cannot be imported: {error}") from error


class ContainerLogin:
    """Logs one client in to its account's containers."""

    def __init__(self, auths: AsyncAuths, state: State, username: str) -> None:
        """Set up.

        Args:
            username: who logs in where a container's `ssh` names nobody.
        """
        self._username = username
        self._auths = auths
        self._state = state

    async def check(self) -> None:
        """Check, before anything is rented, that this process can log in to containers.

        Raises:
            ConfigurationError: it cannot.
        """
        await _import_asyncssh()
        from netmind_rentgpu.ssh.login import check_login

        check_login(self._username)

    async def log_in(
        self, container: Container, seconds: float, *, password: str | None = None, accept_new_host_key: bool = False
    ) -> asyncssh.SSHClientConnection:
        """Log in to a container. Whoever lets us in first is the only one from then on.

        Args:
            seconds: for finding, connecting and logging in, the account's and the state file's part aside.
            password: else its auth's is asked for.
            accept_new_host_key: keep the key that it has now.

        Raises:
            SSHError: it could not be done.
            StateFileError: the state file cannot be used.
            RentGPUError: the auth could not be got.
        """
        await _import_asyncssh()
        from netmind_rentgpu.ssh.login import Login, log_in

        label = label_of(container)
        endpoint = container.ssh_endpoint
        if endpoint is None:
            said = f"its ssh is {container.ssh[:200]!r}" if container.ssh else "it has no ssh yet"
            raise SSHError(f"{label} names no endpoint to log in at: {said}", stage="name")
        pinned = await self._state.host_key(container.id)
        login = Login(
            label=label,
            endpoint=endpoint,
            username=endpoint.username or self._username,
            password=await self._password_of(container) if password is None else password,
            host_key=None if accept_new_host_key else pinned,
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
        """Log in and leave; return why that cannot be done yet, None if it can.

        Args:
            attempt: counted from 0; the later, the more time.

        Raises:
            SSHError: the server is not the one that this container had, or the service does not tell the password.
            StateFileError: the state file cannot be used.
            ConfigurationError: asyncssh is missing.
        """
        check_asyncssh()
        seconds = min(_LONGEST_TRY, _FIRST_TRY * 2.0 ** min(attempt, 8))
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
            text = f"{label_of(container)}: another server was logged into as this container at the same time"
            raise SSHError(f"{text}; accept the right one with accept_new_host_key=True", stage="host key")

    async def _password_of(self, container: Container) -> str:
        auth_id = container.auth_id
        password = None if auth_id is None else (await self._auths.get(auth_id)).value
        if not password:
            text = f"{label_of(container)}: the service does not tell the password of its auth, {auth_id}; pass password=..."
            raise SSHError(text, stage="password")
        return password


def label_of(container: Container) -> str:
    """Return how errors call a container."""
    return f"container {container.id}" + ("" if container.name is None else f" ({container.name})")
