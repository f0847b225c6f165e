"""A rented container's shell, which is opened again after its connection was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from netmind_rentgpu.errors import ClientStateError, ContainerGoneError, NotFoundError, RentGPUError, SSHError
from netmind_rentgpu.models import Container

if TYPE_CHECKING:
    from netmind_rentgpu.ssh.shell import AsyncShell

__all__ = ["ReconnectingShell"]

_PAUSE = 0.5


class ReconnectingShell:
    """One container's shell.

    Attributes:
        shell: the newest shell; None before the first is open.
    """

    def __init__(self, shell_on: Callable[[Container], AsyncShell]) -> None:
        self._shell_on = shell_on
        self._opening = asyncio.Lock()
        self._closed = False
        self.shell: AsyncShell | None = None

    async def open(self, container: Container, deadline: float, get: Callable[[int], Awaitable[Container]]) -> None:
        """Open a shell on a container whose login has worked a moment ago.

        Args:
            deadline: seconds on the event loop's clock; a failed attempt is repeated until then.
            get: sends a GET for a container.

        Raises:
            SSHError: the login still fails at the deadline, or the host key is another.
            ContainerGoneError: the container was deleted.
        """
        time = asyncio.get_running_loop().time
        while True:
            try:
                self.shell = await self._opened(container)
            except SSHError as error:
                if error.stage == "host key" or time() + _PAUSE > deadline:
                    raise
                await self._check_there(container, get, error)
            else:
                return
            await asyncio.sleep(_PAUSE)

    async def usable(self, find: Callable[[], Awaitable[Container]]) -> AsyncShell:
        """Return a shell that is neither closed nor known to be lost; open another if necessary.

        Args:
            find: returns the container as it is now.

        Raises:
            SSHError: no other shell could be opened.
        """
        async with self._opening:
            if self.shell is None or self.shell.lost or self.shell.closed:
                self.shell = await self._opened(await find())
            return self.shell

    async def close(self) -> None:
        """Close the shell for good; no other is opened."""
        self._closed = True
        if self.shell is not None:
            with suppress(RentGPUError, asyncio.CancelledError):
                await self.shell.close()

    async def _opened(self, container: Container) -> AsyncShell:
        shell = self._shell_on(container)
        await shell.__aenter__()
        if self._closed:
            await shell.close()
            raise ClientStateError("cannot open a shell: this rental has ended, or was detached, meanwhile")
        return shell

    @staticmethod
    async def _check_there(container: Container, get: Callable[[int], Awaitable[Container]], error: SSHError) -> None:
        try:
            await get(container.id)
        except NotFoundError:
            text = f"container {container.id} was deleted before a shell on it could be opened"
            raise ContainerGoneError(
                text, container_id=container.id, container=container, arrived={}, pending={container.id: container}
            ) from error
        except RentGPUError:
            pass  # the next attempt shows whether the container is usable
