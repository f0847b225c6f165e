"""Many commands at once: as many as the server allows, shown by a barrier between them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from until import is_running, until

from netmind_rentgpu import AsyncShell, ClientStateError
from netmind_rentgpu.ssh import session_probe
from netmind_rentgpu.ssh.turns import ProbeResult, SessionLimit

pytestmark = pytest.mark.slow


class Barrier:
    """Two pipes: each command writes a byte to the first, and waits for a byte of the second."""

    command = "echo $$ > pid.$$; printf x > arrived; dd bs=1 count=1 < go 2>/dev/null"

    def __init__(self, home: Path) -> None:
        self._home = home
        for name in ("arrived", "go"):
            os.mkfifo(home / name)
        self._arrived = os.open(home / "arrived", os.O_RDWR | os.O_NONBLOCK)
        self._go = os.open(home / "go", os.O_RDWR | os.O_NONBLOCK)
        self.count = 0

    async def arrivals(self, count: int, check: Callable[[], None] = lambda: None) -> None:
        """Wait until so many commands have arrived, which all run, because none has got its byte.

        Args:
            check: fails as soon as so many can arrive no longer.
        """

        def arrived() -> bool:
            with suppress(BlockingIOError):
                self.count += len(os.read(self._arrived, 1000))
            check()
            return self.count >= count

        await until(arrived)
        pids = [int(path.read_text() or 0) for path in self._home.glob("pid.*")]
        assert sum(map(is_running, pids)) >= count

    def open(self, count: int) -> None:
        os.write(self._go, b"y" * count)

    def close(self) -> None:
        os.close(self._arrived)
        os.close(self._go)


async def ended(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel what still runs of them, and wait for it, so that a failure of this test is none of the next."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(("site", "sessions"), [(10, 10), (40, 40)], indirect=["site"])
async def test_openssh_runs_all_its_sessions_but_two_and_no_command_fails(
    shell: AsyncShell, site: Any, sessions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow this machine is, the server's answers are waited for.
    for name in ("_OPENING", "_ENDING"):
        monkeypatch.setattr(session_probe, name, 100.0)
    home, turns = site.home, shell._connection.operations.turns
    barrier = Barrier(home)
    tasks = [asyncio.create_task(shell.run(barrier.command, check=True)) for _ in range(60)]

    def check() -> None:
        assert [task.exception() for task in tasks if task.done()] == []
        assert not turns.limit.is_final or turns.limit.commands == sessions - 2

    try:
        await barrier.arrivals(sessions - 2, check)
        # The reserve is still there: a copy, and the end of a command.
        (home / "file").write_text("x")
        await shell.upload(home / "file", "copy", timeout=60)
        assert (home / "copy").read_text() == "x"
        await until(lambda: turns.limit.is_final)
        assert barrier.count == sessions - 2
        barrier.open(60)
        done = await asyncio.gather(*tasks)
    finally:
        barrier.close()
        await ended(tasks)
    assert [result.stdout for result in done] == ["y"] * 60
    assert turns.limit == SessionLimit(sessions - 2, is_final=True, refused=2)


@pytest.mark.parametrize("site", [10, "emulator"], indirect=True)
async def test_server_that_is_late_with_its_answers_is_asked_again(
    shell: AsyncShell, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 0.0])
    probe = session_probe.probe_sessions

    async def hasty_at_first(*arguments: Any) -> ProbeResult:
        with monkeypatch.context() as patch:
            if (seconds := next(times, None)) is not None:
                patch.setattr(session_probe, "_OPENING", seconds)
            return await probe(*arguments)

    monkeypatch.setattr(session_probe, "probe_sessions", hasty_at_first)
    barrier = Barrier(site.home)
    tasks = [asyncio.create_task(shell.run(barrier.command, check=True)) for _ in range(20)]
    try:
        await barrier.arrivals(8 if site.kind == "OpenSSH" else 20)
        await until(lambda: next(times, None) is None)
        if site.kind == "OpenSSH":
            await until(lambda: shell._connection.operations.turns.limit.is_final)
        barrier.open(20)
        await asyncio.gather(*tasks)
    finally:
        barrier.close()
        await ended(tasks)
    limit = shell._connection.operations.turns.limit
    assert limit == (SessionLimit(8, True, 2, 2) if site.kind == "OpenSSH" else SessionLimit(32, False, 0, 2))


@pytest.mark.parametrize("site", [10, 40, "emulator"], indirect=True)
async def test_burst_of_commands_ends_without_failure(shell: AsyncShell, site: Any) -> None:
    home = site.home
    results = await asyncio.gather(*(shell.run(f"echo {number}", check=True) for number in range(30)))
    assert [int(result.stdout) for result in results] == list(range(30))
    tasks = [asyncio.create_task(shell.run("echo $$ > pid.$$; sleep 3600; true")) for _ in range(30)]
    await until(lambda: len(list(home.glob("pid.*"))) >= 8)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    pids = [int(path.read_text()) for path in home.glob("pid.*")]
    await until(lambda: not any(map(is_running, pids)))
    assert (await shell.run("echo usable")).stdout == "usable\n"


@pytest.mark.parametrize("site", ["emulator"], indirect=True)
async def test_server_without_a_limit_runs_60_commands_at_once(shell: AsyncShell, site: Any) -> None:
    assert shell._connection.operations.turns.limit == SessionLimit(8)
    barrier = Barrier(site.home)
    tasks = [asyncio.create_task(shell.run(barrier.command, check=True)) for _ in range(60)]
    try:
        await barrier.arrivals(60)
        barrier.open(60)
        done = await asyncio.gather(*tasks)
    finally:
        barrier.close()
        await ended(tasks)
    assert [result.stdout for result in done] == ["y"] * 60
    assert shell._connection.operations.turns.limit == SessionLimit(64)


async def test_shell_closed_at_any_step_of_a_probe_ends_all_commands(site: Any, full: bool) -> None:
    before = asyncio.all_tasks()
    for steps in range(0, 80, 4 if full else 12):
        async with site.shell() as shell:
            tasks = [asyncio.create_task(shell.run("sleep 3600; true")) for _ in range(12)]
            for _ in range(steps):
                await asyncio.sleep(0 if steps < 60 else 0.001)
        for task in tasks:
            with pytest.raises(ClientStateError, match="closed"):
                await task
    # Among these tasks are the ones of the emulator's SSH server.
    await until(lambda: all(task.done() for task in asyncio.all_tasks() - before))
