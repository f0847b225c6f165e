"""Use `pipe` of one synchronous shell from many threads: files, descriptors and bytes, and the streams that it refuses."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import threading
from typing import Any

import preamble
from container_user import CONTAINER, HERE

from netmind_rentgpu import InvalidArgumentError, RentGPU, Shell

THREADS = 12


def pipe_files(shell: Shell, number: int, found: list[bool]) -> None:
    """Send a file of its own through `cat`, and compare the copy; then do the same with descriptors and bytes."""
    data = hashlib.sha256(b"%d" % number).digest() * 50_000
    source, target = HERE / f"source{number}", HERE / f"target{number}"
    source.write_bytes(data)
    with source.open("rb") as reading, target.open("wb") as writing:
        shell.pipe("cat", stdin=reading, stdout=writing, check=True)
    found.append(target.read_bytes() == data)
    sink = io.BytesIO()
    with source.open("rb") as reading:
        shell.pipe("cat", stdin=reading.fileno(), stdout=sink, check=True)
    found.append(sink.getvalue() == data)
    found.append(shell.pipe("wc -c", stdin=data).stdout.strip() == str(len(data)))


async def items() -> Any:
    """Yield bytes in an event loop."""
    yield b"x"


class Sender:
    """A receiver of an event loop."""

    async def send(self, data: bytes) -> None:
        """Receive nothing."""


def refuse(shell: Shell, **streams: Any) -> None:
    """Print the error of a stream that a synchronous program cannot use."""
    try:
        shell.pipe("true", **streams)
    except InvalidArgumentError as error:
        print(str(error).partition(";")[0])


preamble.install()
with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
    found: list[bool] = []
    threads = [threading.Thread(target=pipe_files, args=(shell, number, found)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(found.count(True))
    refuse(shell, stdin=items())
    loop = asyncio.new_event_loop()
    refuse(shell, stdin=asyncio.StreamReader(loop=loop))
    loop.close()
    refuse(shell, stdout=Sender())
    refuse(shell, stdin="text")
    reading, writing = os.pipe()
    print(shell.pipe("echo over", stdin=reading).stdout, end="")
    with shell.forward(local_port=0, remote_port=1) as forward:
        print(forward.port == forward.local_port, forward.listens, forward.closed, repr(forward)[:17])
    forward.close()
    print(forward.closed)
    again = shell.forward(local_port=forward.port, remote_port=1)
    waiting: list[object] = []
    thread = threading.Thread(target=lambda: waiting.append(shell.wait_disconnected()))
    thread.start()
    shell.close()
    thread.join()
    print(waiting, again.closed)
