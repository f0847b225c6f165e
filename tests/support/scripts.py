"""Scripts that use a shell on a container of an emulator's, which is served from the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import canaries
from programs import BEGIN, Program

from netmind_rentgpu import AsyncRentGPU, PaymentType
from netmind_rentgpu.emulator import Emulator

BEGIN_SCRIPT = f"""{BEGIN}
from pathlib import Path
from container_user import CONTAINER, HERE, Alive, names
"""


@dataclass
class Served:
    """An emulator with one container, whose id scripts know as CONTAINER; HERE is a folder of theirs."""

    emulator: Emulator
    gpu: AsyncRentGPU
    container: int
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "NETMIND_BASE_URL": self.emulator.url,
            "NETMIND_API_KEY": self.emulator.token,
            "NETMIND_RENTGPU_STATE": str(self.folder / "state.sqlite3"),
            "CONTAINER": str(self.container),
            "HERE": str(self.folder / "here"),
        }

    async def run(self, code: str, *, measured: bool = True, **environment: str) -> Program:
        program = Program(code, {**self.environment, **environment}, measured=measured, begin=BEGIN_SCRIPT)
        return await program.run(self.emulator.url)

    async def run_file(self, file: str, *arguments: str, measured: bool = True, **environment: str) -> Program:
        """Run a program that is kept in a file of its own."""
        program = Program("", {**self.environment, **environment}, measured=measured, file=file, arguments=arguments)
        return await program.run(self.emulator.url)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Served]:
    """Serve a container that can be logged into."""
    (folder / "here").mkdir()
    async with (
        Emulator(seed=7, boot_seconds=0, token=canaries.TOKEN, ssh=True) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu,
    ):
        auth = await gpu.auths.create(canaries.PASSWORD)
        machine = next(one for one in await gpu.machines.list() if one.gpu_count)
        image = (await gpu.images.list().first_page()).items[0]
        container = await gpu.containers.create(
            name="shell",
            auth_id=auth.id,
            gpu=1,
            node_name=machine.node_name,
            image_template_id=image.id,
            payment_type=PaymentType.USD,
        )
        await gpu.containers.wait_ready(container.id, timeout=60)
        yield Served(emulator, gpu, container.id, folder)
