"""The choice among the addresses of a host."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from banners import listening, says
from hostile import full_listener

from netmind_rentgpu import connecting

LONG = 60


async def test_unresponsive_address_does_not_prevent_a_connection_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with full_listener() as url:
        full = int(url.rpartition(":")[2])
        async with listening(says()) as port:

            def look_up(host: str, *_: Any, **__: Any) -> Any:
                if host != "two.example" or "flags" in __:
                    raise socket.gaierror
                return [
                    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", listener)) for listener in (full, port)
                ]

            monkeypatch.setattr(socket, "getaddrinfo", look_up)
            async with asyncio.timeout(LONG):
                connected = await connecting.connect(await connecting.look_up("two.example", 22))
            with connected:
                assert connected.getpeername() == ("127.0.0.1", port)


async def test_numeric_address_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "run_in_thread", lambda _: pytest.fail("a numeric address needs no look-up"))
    async with listening(says()) as port:
        with await connecting.connect(await connecting.look_up("127.0.0.1", port)) as connected:
            assert connected.getpeername() == ("127.0.0.1", port)


async def test_unknown_host_name_raises_gaierror() -> None:
    with pytest.raises(socket.gaierror):
        await connecting.look_up("no-such-name.invalid", 22)
