"""Commands end with all their processes: at a timeout, when cancelled, and when a stream or the shell is left."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from until import is_running, until

from netmind_rentgpu import AsyncShell, ClientStateError, SSHTimeoutError
from netmind_rentgpu.ssh.commands import Command, prepared
from netmind_rentgpu.ssh.output import Capture

# A command and its child, which both outlive a hangup.
FAMILY = "trap '' HUP; sleep 3600 & echo $! > child; echo $$ > parent; touch up; wait; sleep 3600"


async def started(home: Path) -> list[int]:
    """Wait until a command and its child have started; return their process ids."""
    await until((home / "up").exists)
    return [int((home / name).read_text()) for name in ("parent", "child")]


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
        """Wait until no process has the pipe open."""
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
            async with asyncio.timeout(120):
                await readable.wait()
        finally:
            loop.remove_reader(self._reading)
        return os.read(self._reading, 1)


@asynccontextmanager
async def holding(site: Any) -> AsyncIterator[Alive]:
    alive = Alive(site.home)
    yield alive
    await alive.over()


async def test_command_over_its_timeout_ends_with_its_children(shell: AsyncShell, site: Any) -> None:
    with pytest.raises(SSHTimeoutError, match=r"did not end within 2 s") as caught:
        await shell.run(f"echo begun; {FAMILY}", timeout=2)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.stage == "command"
    assert caught.value.result is not None
    assert (caught.value.result.stdout, caught.value.result.exit_signal) == ("begun\n", "TERM")
    pids = await started(site.home)
    await until(lambda: not any(map(is_running, pids)))
    assert (await shell.run("true")).ok


async def test_command_that_ignores_term_is_killed(shell: AsyncShell, site: Any) -> None:
    with pytest.raises(SSHTimeoutError):
        await shell.run(f"trap '' TERM; {FAMILY}", timeout=2)
    pids = await started(site.home)
    await until(lambda: not any(map(is_running, pids)))


async def test_command_cancelled_at_any_step_ends_and_leaves_the_shell_usable(shell: AsyncShell, site: Any) -> None:
    before = asyncio.all_tasks()
    for steps in range(40):
        (site.home / "up").unlink(missing_ok=True)
        task = asyncio.create_task(shell.run(FAMILY, input="x" * 100_000))
        for _ in range(steps):
            await asyncio.sleep(0 if steps < 30 else 0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if (site.home / "up").exists():
            pids = await started(site.home)
            await until(lambda pids=pids: not any(map(is_running, pids)))  # type: ignore[misc]
    assert (await shell.run("echo still here")).stdout == "still here\n"
    # Among these tasks are the ones of the emulator's SSH server.
    await until(lambda: all(task.done() for task in asyncio.all_tasks() - before))


async def test_command_cancelled_twice_ends(shell: AsyncShell, site: Any) -> None:
    task = asyncio.create_task(shell.run(f"trap '' TERM; {FAMILY}"))
    pids = await started(site.home)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not any(map(is_running, pids)))


async def test_commands_cancelled_together_end_and_leave_room_for_others(shell: AsyncShell, site: Any) -> None:
    async with holding(site) as alive:
        tasks = [asyncio.create_task(shell.run(alive.command)) for _ in range(20)]
        await alive.began(8)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
    done = await asyncio.gather(*(shell.run("echo again") for _ in range(20)))
    assert {result.stdout for result in done} == {"again\n"}


async def test_stream_left_by_break_ends_its_command_when_the_shell_closes(site: Any) -> None:
    async with holding(site) as alive:
        async with site.shell() as shell:
            async for line in shell.stream(alive.command):
                assert line.text == "line"
                break
            await alive.began(1)


async def test_closing_a_shell_ends_commands_and_copies_with_an_error(site: Any) -> None:
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


async def test_cancelled_command_ends_its_children_under_a_login_shell_of_sh(site: Any) -> None:
    if site.kind == "emulator":
        pytest.skip("the emulator always uses the shell of this machine")
    accounts = site.home.parent / "passwd"
    accounts.write_text(accounts.read_text().replace("/bin/bash", "/bin/sh"))
    async with site.shell() as shell, holding(site) as alive:
        task = asyncio.create_task(shell.run(alive.command))
        await alive.began(1)
        task.cancel()
        await asyncio.wait({task})
        assert (await shell.run("echo $SHELL")).stdout == "/bin/sh\n"


async def test_command_in_a_cancelled_scope_ends_when_the_shell_closes(site: Any) -> None:
    async with site.shell() as shell:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def leave() -> None:
                    await started(site.home)
                    scope.cancel()

                group.start_soon(leave)
                await shell.run(FAMILY)
        pids = await started(site.home)
    await until(lambda: not any(map(is_running, pids)))


async def test_cancelled_scope_around_a_shell_leaves_no_command(site: Any) -> None:
    pid = site.home / "pid"
    with anyio.CancelScope() as scope:

        async def leave() -> None:
            await until(pid.exists)
            scope.cancel()

        leaving = asyncio.create_task(leave())
        async with site.shell() as shell:
            await shell.run("echo $$ > begun; mv begun pid; sleep 3600; true")
    await leaving
    assert not is_running(int(pid.read_text()))


async def test_closed_or_cancelled_stream_ends_its_command(shell: AsyncShell, site: Any) -> None:
    stream = shell.stream(f"echo go; {FAMILY}")
    async for line in stream:
        assert line.text == "go"
        break
    pids = await started(site.home)
    await stream.aclose()
    await until(lambda: not any(map(is_running, pids)))
    (site.home / "up").unlink()

    async def read() -> None:
        async for _ in shell.stream(FAMILY):
            pass

    task = asyncio.create_task(read())
    pids = await started(site.home)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not any(map(is_running, pids)))


async def test_start_that_fails_after_its_caller_was_cancelled_is_not_reported() -> None:
    asyncssh = pytest.importorskip("asyncssh")
    fail = asyncio.Event()

    class Connection:
        async def create_session(self, *_: Any, **__: Any) -> None:
            await fail.wait()
            raise asyncssh.ConnectionLost("gone")

    command = Command(prepared("true", None, None), Capture(1))
    starting = asyncio.create_task(command.start(Connection()))  # type: ignore[arg-type]  # as much of one as is used
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    fail.set()
    task = command._starting
    assert task is not None
    await asyncio.wait({task})
    # The loop reports an error that no caller received once no reference to the task is left.
    del command, starting, task
    gc.collect()
