"""Connect through forwarded ports to a server that speaks first, in a uvloop that reads at once."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import preamble
import uvloop

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.emulator import Emulator


@contextmanager
def greeter() -> Iterator[int]:
    """Greet each caller from a thread, which ends before its socket is closed; yield the port."""
    stopping = threading.Event()

    def greet(server: socket.socket) -> None:
        while True:
            with server.accept()[0] as accepted:
                if stopping.is_set():
                    return
                accepted.sendall(b"hello")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=greet, args=[server])
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            stopping.set()
            # A last connection, because a thread in accept() sees nothing else.
            socket.create_connection(server.getsockname()).close()
            thread.join()


async def main() -> None:
    """Connect a hundred times each way."""
    async with (
        Emulator(ssh=True, boot_seconds=0) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu,
        gpu.rent(image=1) as rental,
    ):
        with greeter() as port:
            forward = await rental.shell.forward(local_port=0, remote_port=port)
            backward = await rental.shell.reverse_forward(remote_port=0, local_port=port)
            for forwarded in [forward.local_port, backward.remote_port] * 100:
                reader, writer = await asyncio.open_connection("127.0.0.1", forwarded)
                assert await asyncio.wait_for(reader.read(), 60) == b"hello"
                writer.close()


preamble.install()
uvloop.run(main())
