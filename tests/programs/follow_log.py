"""Follow the log of a job, and keep each line and its position by one write; go on behind the last line that is kept.

Arguments: the id of the container, its `ssh` field, the job's name, and the file to write to.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import attrs

from netmind_rentgpu import AsyncRentGPU


async def main(container_id: int, ssh: str, name: str, file: Path) -> None:
    kept = file.read_text().splitlines() if file.exists() else []
    after = kept[-1].split(" ", 1)[0] if kept else None
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    async with AsyncRentGPU() as gpu:
        container = attrs.evolve(await gpu.containers.get(container_id), ssh=ssh)
        async with gpu.ssh(container) as shell:
            job = await shell.job(name)
            async for line in job.logs(follow=True, after=after):
                os.write(descriptor, f"{line.position} {line.stream} {line.text}\n".encode())
            status = await job.status()
    print(status.state, status.exit_status)


asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])))
