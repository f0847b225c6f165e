"""Each kind of source and receiver of `pipe`, on a container; and the objects that it refuses."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import pty
import socket
import subprocess
import tty
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from netmind_rentgpu import AsyncShell, InvalidArgumentError

DATA = os.urandom(300_000)


class AsyncBytes:
    """An object with an asynchronous `read` of at most 1000 bytes."""

    def __init__(self, data: bytes = DATA) -> None:
        self._file = io.BytesIO(data)

    async def read(self, size: int) -> bytes:
        await asyncio.sleep(0)
        return self._file.read(min(size, 1000))


class Raw:
    """An object with nothing but `read`, of bytearrays."""

    def __init__(self) -> None:
        self._file = io.BytesIO(DATA)

    def read(self, size: int) -> bytearray:
        return bytearray(self._file.read(size))


async def items() -> AsyncIterator[bytes]:
    # Empty items are no end, and one item may be large.
    for item in (b"", DATA[:10], b"", DATA[10:]):
        yield item


def data_file(closing: ExitStack, folder: Path, **options: Any) -> Any:
    (folder / "data").write_bytes(DATA)
    return closing.enter_context((folder / "data").open("rb", **options))


def process_of_data(closing: ExitStack, folder: Path) -> Any:
    (folder / "data").write_bytes(DATA)
    process = closing.enter_context(subprocess.Popen(["cat", folder / "data"], stdout=subprocess.PIPE))
    return process.stdout


def gzip_file(closing: ExitStack, folder: Path) -> Any:
    (folder / "data.gz").write_bytes(gzip.compress(DATA))
    return closing.enter_context(gzip.open(folder / "data.gz"))


def socket_with_data(closing: ExitStack) -> int:
    here, there = socket.socketpair()
    closing.enter_context(here)
    closing.enter_context(there)
    there.setblocking(False)

    async def send() -> None:
        await asyncio.get_running_loop().sock_sendall(there, DATA)
        there.shutdown(socket.SHUT_WR)

    task = asyncio.get_running_loop().create_task(send())
    closing.callback(task.cancel)
    return here.fileno()


SOURCES: dict[str, Callable[[ExitStack, Path], Any]] = {
    "bytes": lambda *_: DATA,
    "bytearray": lambda *_: bytearray(DATA),
    "memoryview of another type": lambda *_: memoryview(array("H", DATA)),
    "memoryview of each second byte": lambda *_: memoryview(b"".join(b"%c-" % byte for byte in DATA))[::2],
    "file": data_file,
    "raw file": lambda closing, folder: data_file(closing, folder, buffering=0),
    "descriptor of a file": lambda closing, folder: data_file(closing, folder).fileno(),
    "pipe of a process": process_of_data,
    "descriptor of a pipe": lambda closing, folder: process_of_data(closing, folder).fileno(),
    "descriptor of a socket": lambda closing, _: socket_with_data(closing),
    "BytesIO": lambda *_: io.BytesIO(DATA),
    "compressed file": gzip_file,
    "object with read": lambda *_: Raw(),
    "object with asynchronous read": lambda *_: AsyncBytes(),
    "asynchronous generator": lambda *_: items(),
}


@pytest.mark.parametrize("kind", SOURCES)
async def test_source_of_each_kind_is_read_to_its_end(shell: AsyncShell, site: Any, tmp_path: Path, kind: str) -> None:
    with ExitStack() as closing:
        source = SOURCES[kind](closing, tmp_path)
        await shell.pipe("cat > copy", stdin=source, check=True, timeout=120)
        assert not getattr(source, "closed", False)
        if isinstance(source, int):
            os.fstat(source)
    assert (site.home / "copy").read_bytes() == DATA


async def test_asyncio_and_anyio_streams_are_read_and_written(shell: AsyncShell) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shell.pipe("tr a-z A-Z", stdin=reader, stdout=writer, check=True)
        assert not writer.is_closing()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"x" * 300_000)
            await stream.send_eof()
            assert b"".join([piece async for piece in stream]) == b"X" * 300_000
    sender, receiver = anyio.create_memory_object_stream[bytes](100)
    async with sender, receiver:
        await shell.pipe("cat", stdin=b"one", stdout=sender, check=True)
        await sender.send(b" two")
        receiving = receiver.clone()
        sender.close()
        done = await shell.pipe("cat", stdin=receiving, check=True)
        assert done.stdout == "one two"
        receiving.close()


class AsyncFile:
    """An object with an asynchronous `write`."""

    def __init__(self) -> None:
        self.data = b""

    async def write(self, data: bytes) -> int:
        await asyncio.sleep(0)
        self.data += data
        return len(data)


class HalfFile:
    """An object whose `write` accepts a part, and which says nothing of a flush."""

    def __init__(self, *, counts: bool) -> None:
        self.data = b""
        self._counts = counts

    def write(self, data: bytes) -> int | None:
        accepted = data[: 1 + len(data) // 2] if self._counts else data
        self.data += accepted
        return len(accepted) if self._counts else None


@pytest.mark.parametrize("kind", ["file", "raw file", "buffered file with earlier bytes", "descriptor"])
async def test_file_receives_all_output_and_stays_open(shell: AsyncShell, tmp_path: Path, kind: str) -> None:
    with (tmp_path / "out").open("wb", buffering=0 if kind == "raw file" else -1) as file:
        before = b"before" if "earlier" in kind else b""
        file.write(before)
        sink = file.fileno() if kind == "descriptor" else file
        await shell.pipe("cat", stdin=DATA, stdout=sink, check=True)
        # All is in the file before it is closed.
        assert (tmp_path / "out").read_bytes() == before + DATA
        await shell.pipe("cat", stdin=b"after", stdout=sink, check=True)
    assert (tmp_path / "out").read_bytes() == before + DATA + b"after"


@pytest.mark.parametrize("sink", [AsyncFile(), HalfFile(counts=True), HalfFile(counts=False)])
async def test_object_with_write_receives_all_output(shell: AsyncShell, sink: Any) -> None:
    sink.data = b""
    await shell.pipe("cat", stdin=DATA, stdout=sink, check=True)
    assert sink.data == DATA


@pytest.mark.parametrize("kind", ["pipe", "file object of a pipe", "pipe without blocking", "socket"])
async def test_pipe_or_socket_receives_all_output(shell: AsyncShell, kind: str) -> None:
    with ExitStack() as closing:
        if kind == "socket":
            here, there = socket.socketpair()
            reading, writing = here.detach(), there.detach()
        else:
            reading, writing = os.pipe()
        closing.callback(os.close, reading)
        written = closing.enter_context(os.fdopen(writing, "wb"))
        if "object" in kind:
            written.write(b"x" * 10)
        os.set_blocking(writing, "without" not in kind)
        received = b"x" * 10 if "object" in kind else b""

        def read() -> bytes:
            found = b""
            while len(found) < len(DATA) + len(received):
                found += os.read(reading, 65536)
            return found

        reader = asyncio.create_task(asyncio.to_thread(read))
        await shell.pipe("cat", stdin=DATA, stdout=written if "object" in kind else writing, check=True)
        assert await reader == received + DATA


async def test_terminal_is_read_and_written(shell: AsyncShell) -> None:
    outer, inner = pty.openpty()
    try:
        tty.setraw(inner)
        os.write(outer, b"typed")
        done = await shell.pipe("head -c 5", stdin=inner, check=True)
        assert done.stdout == "typed"
        reading = asyncio.to_thread(lambda: b"".join(os.read(outer, 1) for _ in range(20_000)))
        reader = asyncio.create_task(reading)
        await shell.pipe("head -c 20000 /dev/zero", stdout=inner, check=True)
        assert await reader == bytes(20_000)
    finally:
        os.close(outer)
        os.close(inner)


@pytest.mark.parametrize(
    ("argument", "value", "problem"),
    [
        ("stdin", "text", "must have bytes, not text; encode it"),
        ("stdin", io.StringIO("text"), "must have bytes, not text; open the file in binary mode"),
        ("stdin", -1, "must be a descriptor"),
        ("stdin", True, "must be a descriptor"),
        ("stdin", [b"x"], "not list"),
        ("stdout", io.StringIO(), "must have bytes, not text"),
        ("stdout", b"x", "not bytes"),
        ("stderr", -1, "must be a descriptor"),
        ("stderr", "text", "must have bytes, not text"),
    ],
)
async def test_object_of_another_kind_is_refused(shell: AsyncShell, argument: str, value: Any, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        await shell.pipe("touch started", **{argument: value})
    assert argument in str(caught.value)
    assert not (await shell.run("test -e started")).ok


async def texts() -> AsyncIterator[str]:
    yield "text"


class TextReader:
    """An object whose `read` returns text."""

    def read(self, size: int) -> str:
        return "text"[:size]


@pytest.mark.parametrize("kind", [texts, TextReader])
async def test_source_of_text_is_an_error_that_ends_the_command(shell: AsyncShell, kind: Callable[[], Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="must have bytes, but has given str"):
        await shell.pipe("cat; sleep 3600", stdin=kind(), timeout=120)
