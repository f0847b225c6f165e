"""What a shell has under way ends, with all that it started there: many at once, and before the connection does."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from netmind_rentgpu import AsyncShell, ClientStateError


class Alive:
    """A pipe that commands and their children hold."""

    def __init__(self, home: Path) -> None:
        self.path = home / "alive"
        os.mkfifo(self.path)
        self._reading = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self._writing = os.open(self.path, os.O_WRONLY)
        self.command = "exec 9>alive; printf x >&9; sleep 1000 & echo line; wait"

    async def began(self, count: int) -> None:
        """Wait until so many commands have the pipe open."""
        for _ in range(count):
            assert await self._read() == b"x"

    async def over(self) -> None:
        """Wait until no process has it open."""
        os.close(self._writing)
        try:
            assert await self._read() == b""
        finally:
            os.close(self._reading)

    async def _read(self) -> bytes:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._reading, readable.set)
        try:
            async with asyncio.timeout(30):
                await readable.wait()
        finally:
            loop.remove_reader(self._reading)
        return os.read(self._reading, 1)


@asynccontextmanager
async def holding(site: Any) -> AsyncIterator[Alive]:
    alive = Alive(site.home)
    yield alive
    await alive.over()


async def test_many_that_are_cancelled_together_end_and_leave_room(shell: AsyncShell, site: Any) -> None:
    async with holding(site) as alive:
        tasks = [asyncio.create_task(shell.run(alive.command)) for _ in range(20)]
        await alive.began(8)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
    done = await asyncio.gather(*(shell.run("echo again") for _ in range(20)))
    assert {one.stdout for one in done} == {"again\n"}


async def test_a_stream_that_is_left_ends_before_the_shell_does(site: Any) -> None:
    async with holding(site) as alive:
        async with site.shell() as shell:
            async for line in shell.stream(alive.command):
                assert line.text == "line"
                break
            await alive.began(1)


async def test_closing_ends_what_runs_and_says_so(site: Any) -> None:
    (site.home / "large").touch()
    os.truncate(site.home / "large", 2**30)
    copying = asyncio.Event()
    async with holding(site) as alive:
        async with site.shell() as shell:
            tasks = [
                asyncio.create_task(shell.run(alive.command)),
                asyncio.create_task(shell.upload(site.home / "large", "copy", on_progress=lambda _: copying.set())),
            ]
            await alive.began(1)
            await copying.wait()
        for task in tasks:
            with pytest.raises(ClientStateError, match="this shell cannot be used: it is closed"):
                await task
    assert site.parts() == []


async def test_children_end_where_the_logins_shell_is_sh(site: Any) -> None:
    if site.kind == "emulator":
        pytest.skip("its shell is the machine's")
    accounts = site.home.parent / "passwd"
    accounts.write_text(accounts.read_text().replace("/bin/bash", "/bin/sh"))
    async with site.shell() as shell, holding(site) as alive:
        task = asyncio.create_task(shell.run(alive.command))
        await alive.began(1)
        task.cancel()
        await asyncio.wait({task})
        assert (await shell.run("echo $SHELL")).stdout == "/bin/sh\n"
