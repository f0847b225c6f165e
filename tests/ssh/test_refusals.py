"""Sessions that a server refuses for a moment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import OPEN_ADMINISTRATIVELY_PROHIBITED

from netmind_rentgpu.ssh import refusals


class Server:
    """A server that refuses the first sessions."""

    def __init__(self, refusals: int, *, is_closed: bool = False) -> None:
        self.left = refusals
        self.asked = 0
        self.connection: Any = SimpleNamespace(is_closed=lambda: is_closed)

    async def open(self) -> str:
        self.asked += 1
        if self.left:
            self.left -= 1
            raise asyncssh.ChannelOpenError(OPEN_ADMINISTRATIVELY_PROHIBITED, "open failed")
        return "a session"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_PAUSES", (0, 0, 0))


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_session_is_asked_for_again_until_the_server_opens_it(count: int) -> None:
    server = Server(count)
    assert await refusals.open_patiently(server.connection, server.open) == "a session"
    assert server.asked == count + 1


async def test_server_that_goes_on_refusing_is_not_asked_for_ever() -> None:
    server = Server(4)
    with pytest.raises(asyncssh.ChannelOpenError):
        await refusals.open_patiently(server.connection, server.open)
    assert server.asked == 4


async def test_closed_connection_is_not_asked_again() -> None:
    server = Server(1, is_closed=True)
    with pytest.raises(asyncssh.ChannelOpenError):
        await refusals.open_patiently(server.connection, server.open)
    assert server.asked == 1
