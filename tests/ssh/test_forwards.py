"""Forwarded ports, both ways: either end speaks first or hangs up first, a closed port, a port in use."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from programs import Program

from netmind_rentgpu import AsyncShell, SSHError
from netmind_rentgpu.emulator import forwards as emulated
from netmind_rentgpu.ssh import forwards

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    del reader
    writer.write(b"hello")
    writer.close()


async def answer_in_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.read()).upper())
    writer.close()


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    del reader
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


async def to_there(shell: AsyncShell, port: int) -> int:
    """Forward a local port to a port of the container; return the local port."""
    return (await shell.forward(local_port=0, remote_port=port)).local_port


async def to_here(shell: AsyncShell, port: int) -> int:
    """Forward a port of the container to a local port; return the container's port."""
    return (await shell.reverse_forward(remote_port=0, local_port=port)).remote_port


async def exchange(port: int, words: bytes) -> bytes:
    """Send words and their end; return the whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        async with asyncio.timeout(60):
            writer.write(words)
            if words:
                writer.write_eof()
            while piece := await reader.read(2**16):
                answer += piece
    except ConnectionResetError:
        pass
    finally:
        writer.close()
    return answer


@pytest.mark.parametrize("way", [to_there, to_here])
@pytest.mark.parametrize(
    ("serve", "words", "answer"),
    [(greet, b"", b"hello"), (answer_in_the_end, b"x" * 300_000, b"X" * 300_000), (reset, b"", b"")],
)
async def test_forwarded_connection_carries_both_directions_to_their_end(
    shell: AsyncShell, way: Callable[[AsyncShell, int], Awaitable[int]], serve: Serve, words: bytes, answer: bytes
) -> None:
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = await way(shell, server.sockets[0].getsockname()[1])
        for _ in range(3):
            assert await exchange(port, words) == answer
    assert (await shell.run("echo usable")).stdout == "usable\n"


@pytest.mark.parametrize("way", [to_there, to_here])
async def test_connection_to_a_closed_port_ends_empty(
    shell: AsyncShell, way: Callable[[AsyncShell, int], Awaitable[int]]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert await exchange(await way(shell, taken.getsockname()[1]), b"hello") == b""
    assert (await shell.run("echo usable")).stdout == "usable\n"


async def test_greeting_sent_at_once_arrives_in_a_loop_that_reads_at_once(tmp_path: Path) -> None:
    program = Program(
        file="forward_greetings.py", environment={"NETMIND_RENTGPU_STATE": str(tmp_path / "state.sqlite3")}
    )
    (await program.run("http://127.0.0.1:9")).assert_silent("")


async def test_forwarding_a_port_in_use_is_an_error(shell: AsyncShell) -> None:
    first = await shell.reverse_forward(remote_port=0, local_port=1)
    with pytest.raises(SSHError, match="cannot be forwarded") as caught:
        await shell.reverse_forward(remote_port=first.remote_port, local_port=1)
    assert caught.value.stage == "connection"
    forward = await shell.forward(local_port=0, remote_port=1)
    with pytest.raises(SSHError, match="cannot be forwarded"):
        await shell.forward(local_port=forward.local_port, remote_port=1)


class End:
    """The connection or the channel of a forwarder; records the calls that it gets."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def get_extra_info(self, name: str) -> None:
        del name

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def write_eof(self) -> None:
        self.calls.append("ended")

    def close(self) -> None:
        self.calls.append("closed")


@pytest.mark.parametrize(
    ("here_of", "there_of"), [(forwards._Here, forwards._There), (emulated._PortEnd, emulated.ChannelEnd)]
)
@pytest.mark.parametrize("early", ["nothing else", "its end", "its loss"])
def test_data_that_comes_early_waits_for_the_channel(here_of: type, there_of: type, early: str) -> None:
    connection, channel = End(), End()
    here = here_of()
    here.connection_made(connection)
    here.data_received(b"one ")
    here.data_received(b"two")
    if early == "its end":
        assert here.eof_received()
    there = there_of(here)
    if early == "its loss":
        here.connection_lost(ConnectionResetError())
    there.connection_made(channel)
    assert channel.calls == []

    there.session_started()
    if early == "nothing else":
        here.data_received(b" three")
        assert here.eof_received()
    if early == "its loss":
        words, *ends = b"one two", "closed"
    else:
        words, *ends = b"one two three" if early == "nothing else" else b"one two", "ended", "closed"
        there.data_received(b"four")
        assert not there.eof_received()
        there.connection_lost(None)
    assert b"".join(word for word in channel.calls if isinstance(word, bytes)) == words
    assert channel.calls[-len(ends) :] == ends
    assert connection.calls == (["closed"] if early == "its loss" else [b"four", "ended", "closed"])


@pytest.mark.parametrize("side", ["client", "emulator"])
async def test_connection_to_a_port_ends_if_the_other_side_has_gone_meanwhile(side: str) -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""
        writer.close()
        ended.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        # asyncssh drops this session, because its channel's connection is closed.
        address = server.sockets[0].getsockname()[:2]
        session = await (
            emulated.connect_to_port(*address) if side == "emulator" else forwards.leading_to(*address)("", 0)
        )
        async with asyncio.timeout(60):
            await ended.wait()
        assert session is not None
