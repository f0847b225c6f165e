"""Use two isolated containers as the user of this process, and print what it found: python isolated_containers.py."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from isolation import holders
from ssh_client import LASTING, rent
from until import is_running, until

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.emulator import Emulator


async def main() -> None:
    async with (
        Emulator(ssh=True, isolated=True, boot_seconds=0) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu,
    ):
        first, second = await rent(gpu, "first"), await rent(gpu, "second")
        holder, _ = holders(os.getpid())
        async with gpu.ssh(first) as one, gpu.ssh(second) as two:
            own, others = Path("/proc/self/ns/user"), Path(f"/proc/{holder}/ns/user")
            print("user namespace:", own.readlink() != others.readlink())
            print("same user:", (await one.run("id -u")).stdout == f"{os.getuid()}\n")
            port = int(emulator.url.rpartition(":")[2])
            forward = await one.reverse_forward(remote_port=80, local_port=port)
            for shell in (one, two):
                # By no program of this Python's, which another user may not be allowed to run.
                listening = await shell.run("grep -c '^ *[0-9]*: 0100007F:0050 [^ ]* 0A' /proc/net/tcp")
                print("listeners on port 80:", listening.stdout.strip())
            await forward.close()
            # It leaves its session, so that the container's end finds it by its environment alone.
            await two.run(f"setsid sh -c '{LASTING}' >pid </dev/null 2>&1 & while ! test -s pid; do :; done")
            pid = int((await two.run("cat pid")).stdout)
        await gpu.containers.stop(second.id)
        await until(lambda: not is_running(pid))
        await gpu.containers.delete(second.id)
        print("holders:", len(holders(os.getpid())))
    print("holders:", len(holders(os.getpid())))


asyncio.run(main())
