"""A transport that is made at the first request, because the import of aiohttp takes long, and some programs send none."""

from __future__ import annotations

import sys
from importlib import import_module
from ssl import SSLContext
from typing import TYPE_CHECKING

from netmind_rentgpu.concurrency.threads import run_in_thread
from netmind_rentgpu.errors import APIConnectionError
from netmind_rentgpu.settings import Settings, Timeouts
from netmind_rentgpu.wire.loop_use import LoopUse
from netmind_rentgpu.wire.messages import RawResponse, Request

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from netmind_rentgpu.wire.transport import Transport

__all__ = ["LazyTransport", "transport_for"]

_MODULE = "netmind_rentgpu.wire.transport"


def transport_for(
    settings: Settings,
    authorization: str,
    session: ClientSession | None,
    ssl_context: SSLContext | None,
    *,
    is_lazy: bool,
) -> Transport | LazyTransport:
    """Return the transport of a client.

    Args:
        is_lazy: True for a lazy one, unless the session or the proxy has to be checked. A program that forks meanwhile would
            leave its child the lock of an import that no thread goes on with.

    Raises:
        ConfigurationError: the session or the proxy cannot be used.
    """
    if is_lazy and session is None and settings.proxy is None:
        return LazyTransport(settings, authorization=authorization, ssl_context=ssl_context)
    from netmind_rentgpu.wire.transport import Transport

    return Transport(settings, authorization=authorization, session=session, ssl_context=ssl_context)


class LazyTransport:
    """A transport with sessions of its own, which imports its library at its first request.

    Attributes:
        connection_limit: None, because only the client's limit counts.
    """

    connection_limit: None = None

    def __init__(self, settings: Settings, *, authorization: str, ssl_context: SSLContext | None) -> None:
        self._settings = settings
        self._authorization = authorization
        self._ssl_context = ssl_context
        self._use = LoopUse()
        self._transport: Transport | None = None

    def check_usable(self) -> None:
        """Raise ClientStateError if the client is closed or belongs to another event loop."""
        self._use.check()

    async def send(self, request: Request, timeouts: Timeouts, remaining: float | None) -> RawResponse:
        """Send a request once, and read the whole answer; see `Transport.send`."""
        if self._transport is None and _MODULE not in sys.modules:
            # In a thread, so that the event loop goes on meanwhile.
            await run_in_thread(lambda: import_module(_MODULE))
        if self._transport is None:
            from netmind_rentgpu.wire.transport import Transport

            if self._use.is_closed:
                raise APIConnectionError(
                    f"{request.method} {request.path}: the client was closed meanwhile", maybe_processed=False
                )
            self._transport = Transport(
                self._settings, authorization=self._authorization, ssl_context=self._ssl_context, use=self._use
            )
        return await self._transport.send(request, timeouts, remaining)

    async def close(self) -> None:
        """Close the transport; see `Transport.close`."""
        if self._transport is None:
            self._use.close()
        else:
            await self._transport.close()
