"""The one event loop in which a client is used, from its first call until it is closed."""

from __future__ import annotations

import asyncio

from netmind_rentgpu.concurrency.running_loop import running_loop
from netmind_rentgpu.errors import ClientStateError

__all__ = ["LoopUse"]


class LoopUse:
    """The loop of a client.

    Attributes:
        is_closed: True once the client is closed.
    """

    def __init__(self) -> None:
        self.is_closed: bool = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def check(self) -> None:
        """Bind the client to the running loop.

        Raises:
            ClientStateError: the client is closed, or belongs to another loop.
        """
        if self.is_closed:
            raise ClientStateError("this client is closed; make a new one")
        loop = running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ClientStateError("this client was first used in another event loop; make one client for each loop")

    def close(self) -> asyncio.AbstractEventLoop:
        """Mark the client as closed, and return its loop.

        Raises:
            ClientStateError: the client was used in another loop.
        """
        loop = running_loop()
        if self._loop is not None and self._loop is not loop:
            raise ClientStateError("this client was used in another event loop; close it there")
        self.is_closed = True
        return loop
