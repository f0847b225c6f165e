"""Programs that rent, each in a process of its own, from an emulator that is served from the test."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardian_copies import share_copies
from programs import BEGIN, Program
from until import until

from netmind_rentgpu import AsyncRentGPU, RentalRecord
from netmind_rentgpu.emulator import Emulator

BEGIN_RENTER = f"""{BEGIN}
import json
from datetime import timedelta
from pathlib import Path
from renter import HERE, WANTED, on_record, rented, until
"""
# So that what is in doubt is not so for long.
PROFILE = "list_lag = 0.2\ncreate_lag = 0.3\n"


# The session of a client that was never closed is aiohttp's to complain of.
QUIETLY = ("-W", "error", "-W", "ignore::ResourceWarning")


@dataclass
class Service:
    """An emulator, and the state file of those who rent there; HERE is a folder of theirs."""

    emulator: Emulator
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "NETMIND_BASE_URL": self.emulator.url,
            "NETMIND_API_KEY": self.emulator.token,
            "NETMIND_RENTGPU_STATE": str(self.folder / "state.sqlite3"),
            "NETMIND_RENTGPU_PROFILE": str(self.folder / "profile.toml"),
            "HERE": str(self.folder),
        }

    def program(self, code: str, *, measured: bool = True, **environment: str) -> Program:
        return Program(code, {**self.environment, **environment}, measured=measured, begin=BEGIN_RENTER)

    async def run(self, code: str, *, measured: bool = True, **environment: str) -> Program:
        return await self.program(code, measured=measured, **environment).run(self.emulator.url)

    async def run_file(self, file: str, *arguments: str, measured: bool = True, **environment: str) -> Program:
        """Run a program that is kept in a file of its own."""
        program = Program("", {**self.environment, **environment}, measured=measured, file=file, arguments=arguments)
        return await program.run(self.emulator.url)

    async def interrupted(self, program: Program, *moments: Callable[[], Any]) -> Program:
        """Run a program that is interrupted as soon as each of some things has happened."""
        async with asyncio.TaskGroup() as group:
            running = group.create_task(program.run(self.emulator.url))
            for happened in moments:
                await until(lambda happened=happened: running.done() or happened())
                if not running.done():
                    os.kill(program.pid, signal.SIGINT)
        return program

    def asked(self, call: str) -> Callable[[], int]:
        return lambda: len(self.emulator.requests.of(call))

    async def records(self) -> list[RentalRecord]:
        async with self.client() as gpu:
            return await gpu.rentals.list()

    def client(self) -> AsyncRentGPU:
        environment = self.environment
        return AsyncRentGPU(
            self.emulator.token,
            base_url=self.emulator.url,
            state=environment["NETMIND_RENTGPU_STATE"],
            profile=environment["NETMIND_RENTGPU_PROFILE"],
        )

    async def assert_nothing_left(self) -> None:
        """Assert that nothing is rented, and nothing on record."""
        self.emulator.assert_nothing_rented()
        assert await self.records() == []

    async def assert_one_reap_clears(self) -> None:
        """Assert that a process that comes next deletes all that is left."""
        reaping = await self.run("print(RentGPU().rentals.reap(wait=True).clean)")
        reaping.assert_silent("True\n")
        await self.assert_nothing_left()


async def run_quietly(service: Service, code: str, **environment: str) -> Program:
    """Run a program that may leave a client open, and no traceback."""
    program = await service.program(code, **environment).run(service.emulator.url, QUIETLY)
    assert "Traceback" not in program.errors, program.errors
    return program


@asynccontextmanager
async def renting(folder: Path, **options: Any) -> AsyncIterator[Service]:
    """Serve machines that can be logged into."""
    (folder / "profile.toml").write_text(PROFILE)
    share_copies(folder)
    async with Emulator(**{"seed": 7, "boot_seconds": 0.05, "ssh": True, **options}) as emulator:
        yield Service(emulator, folder)
