"""The end of a forward: by `close`, by its block, by its shell, by a lost connection; and what it says of itself."""

from __future__ import annotations

import asyncio
import copy
import pickle
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from until import until

from netmind_rentgpu import AsyncForward, AsyncShell, ClientStateError, SSHError


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data.upper())
    writer.close()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """The port of a server that answers in capital letters."""
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def opened(shell: AsyncShell, way: str, port: int, listening: int = 0) -> AsyncForward:
    if way == "here":
        return await shell.forward(local_port=listening, remote_port=port)
    return await shell.reverse_forward(remote_port=listening, local_port=port)


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Talk:
    """A connection over a forward."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> Talk:
        talk = cls(*await asyncio.open_connection("127.0.0.1", port))
        assert await talk.say(b"hello") == b"HELLO"
        return talk

    async def say(self, words: bytes) -> bytes:
        """Send words, and return the answer; empty once the other end is closed, or has reset the connection."""
        self._writer.write(words)
        try:
            async with asyncio.timeout(60):
                return await self._reader.read(len(words))
        except ConnectionError:
            return b""

    def close(self) -> None:
        self._writer.close()


@pytest.mark.parametrize("way", ["here", "there"])
async def test_closed_forward_refuses_connections_and_its_port_can_be_used_again(
    shell: AsyncShell, way: str, port: int
) -> None:
    forward = await opened(shell, way, port)
    (await Talk.to(forward.port)).close()
    assert (forward.closed, "open>" in repr(forward)) == (False, True)
    await forward.close()
    assert (forward.closed, "closed>" in repr(forward)) == (True, True)
    await until(lambda: not accepts(forward.port))
    again = await opened(shell, way, port, forward.port)
    assert again.port == forward.port
    (await Talk.to(again.port)).close()
    # A second close does nothing, not even to the other forward of the same port.
    await asyncio.gather(forward.close(), forward.close())
    (await Talk.to(again.port)).close()
    await again.close()


@pytest.mark.parametrize("way", ["here", "there"])
async def test_open_connections_go_on_after_their_forward_is_closed(shell: AsyncShell, way: str, port: int) -> None:
    forward = await opened(shell, way, port)
    talk = await Talk.to(forward.port)
    async with asyncio.timeout(60):
        await forward.close()
    assert await talk.say(b"still here") == b"STILL HERE"
    talk.close()
    assert (await shell.run("echo usable")).stdout == "usable\n"


@pytest.mark.parametrize("way", ["here", "there"])
async def test_block_of_a_forward_closes_it(shell: AsyncShell, way: str, port: int) -> None:
    with pytest.raises(ZeroDivisionError):
        async with await opened(shell, way, port) as forward:
            (await Talk.to(forward.port)).close()
            raise ZeroDivisionError
    assert forward.closed
    await until(lambda: not accepts(forward.port))


@pytest.mark.parametrize("way", ["here", "there"])
@pytest.mark.parametrize("end", ["closed", "lost"])
async def test_end_of_the_shell_closes_forwards_and_their_connections(site: Any, way: str, end: str, port: int) -> None:
    async with site.shell() as shell:
        forward = await opened(shell, way, port)
        talk = await Talk.to(forward.port)
        if end == "lost":
            shell._connection.connected().abort()
            assert isinstance(await shell.wait_disconnected(), SSHError)
        else:
            await shell.close()
        assert forward.closed
        assert await talk.say(b"x") == b""
        talk.close()
        await until(lambda: not accepts(forward.port))
        async with asyncio.timeout(60):
            await forward.close()
            await forward.close()


@pytest.mark.parametrize("way", ["here", "there"])
async def test_cancelled_close_still_closes(shell: AsyncShell, way: str, port: int) -> None:
    forward = await opened(shell, way, port)
    for steps in range(4):
        task = asyncio.create_task(forward.close())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
    await until(lambda: not accepts(forward.port))
    await forward.close()


async def test_forward_says_where_it_leads(shell: AsyncShell) -> None:
    here = await shell.forward(local_port=0, remote_port=8888, remote_host="10.0.0.7")
    there = await shell.reverse_forward(remote_port=0, local_port=9999)
    assert (here.listens, here.local_port, here.remote_port) == ("here", here.port, 8888)
    assert (there.listens, there.local_port, there.remote_port) == ("there", 9999, there.port)
    container = f"container {shell.container.id} (mine)"
    assert repr(here) == (
        f"<AsyncForward from 127.0.0.1:{here.port} of this machine to 10.0.0.7:8888 of {container}: open>"
    )
    assert repr(there) == (
        f"<AsyncForward from localhost:{there.port} of {container} to 127.0.0.1:9999 of this machine: open>"
    )
    for convert in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            convert(here)


async def test_forward_cannot_be_closed_in_another_event_loop(shell: AsyncShell) -> None:
    forward = await shell.forward(local_port=0, remote_port=1)

    def elsewhere() -> None:
        with pytest.raises(ClientStateError, match="another event loop"):
            asyncio.run(forward.close())

    await asyncio.to_thread(elsewhere)
    assert not forward.closed
