"""Call each method of an asynchronous shell on uvloop, and print the results."""

from __future__ import annotations

import asyncio

import preamble
import uvloop
from container_user import CONTAINER, HERE, Alive

from netmind_rentgpu import AsyncRentGPU, AsyncShell


async def forward_a_port(shell: AsyncShell) -> None:
    """Receive a greeting through a forwarded port."""

    def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"four\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    forward = await shell.forward(local_port=0, remote_port=server.sockets[0].getsockname()[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", forward.local_port)
    print((await reader.read()).decode(), end="")
    writer.close()
    server.close()


async def cancel_a_command(shell: AsyncShell) -> None:
    """Cancel a command, and wait until its processes have ended."""
    alive = Alive()
    running = asyncio.create_task(shell.run(alive.command("true")))
    await asyncio.to_thread(alive.began)
    running.cancel()
    await asyncio.wait({running})
    print(running.cancelled())
    await asyncio.to_thread(alive.wait)


async def main() -> None:
    """Use a shell."""
    async with AsyncRentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
        print((await shell.run("cat", input="one")).stdout)
        print(*[line.text async for line in shell.stream("echo two; sleep 0.1; echo three")])
        (HERE / "up").write_bytes(b"x" * 1_000_000)
        await shell.upload(HERE / "up", "up")
        await shell.download("up", HERE / "down")
        print((HERE / "down").stat().st_size)
        await forward_a_port(shell)
        await cancel_a_command(shell)


preamble.install()
uvloop.run(main())
