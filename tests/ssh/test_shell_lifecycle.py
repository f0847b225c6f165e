"""A shell from opening to closing: its states, its event loop, lost connections, and a locked state file."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from netmind_rentgpu import AsyncRentGPU, AsyncShell, ClientStateError, InvalidArgumentError, SSHError
from netmind_rentgpu.ssh import login

LONG = 60


async def test_shell_is_usable_only_while_open(site: Any) -> None:
    shell = site.shell()
    assert re.search("is not open yet", repr(shell))
    with pytest.raises(ClientStateError, match="not open yet"):
        await shell.run("true")
    with pytest.raises(ClientStateError):
        _ = shell.container
    async with shell:
        assert shell.container == site.container
        with pytest.raises(ClientStateError, match="open already"):
            await shell.__aenter__()
    with pytest.raises(ClientStateError, match="closed"):
        await shell.run("true")
    with pytest.raises(ClientStateError, match="closed"):
        await shell.__aenter__()
    await shell.close()


async def test_shell_entered_twice_at_once_opens_once(site: Any) -> None:
    shell = site.shell()
    both = await asyncio.gather(shell.__aenter__(), shell.__aenter__(), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in both) == ["AsyncShell", "ClientStateError"]
    await shell.close()


async def test_shell_closed_while_opening_stays_closed(site: Any) -> None:
    shell = site.shell()
    opening = asyncio.create_task(shell.__aenter__())
    await asyncio.sleep(0)
    await shell.close()
    with pytest.raises(ClientStateError, match="closed"):
        await opening
    assert "closed" in repr(shell)


async def test_shell_that_failed_to_open_can_be_opened_again(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = site.shell()

    async def fails(*_: Any) -> Any:
        raise OSError("not now")

    with monkeypatch.context() as context:
        context.setattr(login, "connect", fails)
        with pytest.raises(SSHError, match="not now"):
            await shell.__aenter__()
    async with shell:
        assert (await shell.run("true")).ok


async def test_lost_connection_fails_every_call_and_is_not_reopened(site: Any) -> None:
    async with site.shell() as shell:
        task = asyncio.create_task(shell.run("sleep 3600"))
        stream = shell.stream("echo x; sleep 3600")
        assert (await anext(stream)).text == "x"
        if site.kind == "emulator":
            await site.gpu.containers.stop(site.container.id)
        else:
            pid = int((await shell.run("echo $PPID")).stdout)
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(SSHError, match="the connection was lost; its commands may still run") as caught:
            await task
        assert caught.value.stage == "connection"
        with pytest.raises(SSHError, match="lost"):
            await anext(stream)
        for call in (
            lambda: shell.run("true"),
            lambda: shell.upload(__file__, "x"),
            lambda: anext(shell.stream("true")),
        ):
            with pytest.raises(SSHError, match="the connection was lost") as caught:
                await call()
            assert caught.value.stage == "connection"
        assert "open" in repr(shell)
    assert "closed" in repr(shell)


async def test_connection_that_dies_silently_is_detected(site: Any) -> None:
    if site.kind == "emulator":
        pytest.skip("the emulator runs in this process, which cannot be stopped")
    async with site.gpu.ssh(site.container, keepalive=1) as shell:
        server = int((await shell.run("echo $PPID")).stdout)
        task = asyncio.create_task(shell.run("sleep 3600"))
        await shell.upload(__file__, "copy")
        os.kill(server, signal.SIGSTOP)
        try:
            async with asyncio.timeout(LONG):
                for call in (task, shell.upload(__file__, "again")):
                    with pytest.raises(SSHError, match="the connection was lost") as caught:
                        await call
                    assert caught.value.stage == "connection"
        finally:
            os.kill(server, signal.SIGKILL)


async def lose(site: Any, shell: AsyncShell) -> None:
    """Break a shell's connection from the server's side."""
    if site.kind == "emulator":
        await site.gpu.containers.stop(site.container.id)
    else:
        os.kill(int((await shell.run("echo $PPID")).stdout), signal.SIGKILL)


async def test_every_call_that_waits_for_a_disconnection_gets_the_error(site: Any) -> None:
    async with site.shell() as shell:
        waiting = [asyncio.create_task(shell.wait_disconnected()) for _ in range(3)]
        await shell.run("true")
        waiting[0].cancel()
        await asyncio.wait({waiting[0]})
        assert [task.done() for task in waiting] == [True, False, False]
        await lose(site, shell)
        for error in (*(await asyncio.gather(*waiting[1:])), await shell.wait_disconnected()):
            assert isinstance(error, SSHError)
            assert (error.stage, "the connection was lost" in str(error)) == ("connection", True)
        assert shell.lost
        late = asyncio.create_task(shell.wait_disconnected())
        await asyncio.sleep(0)
    assert isinstance(await late, SSHError)


async def test_wait_for_a_disconnection_ends_with_none_when_the_shell_is_closed(site: Any) -> None:
    shell = site.shell()
    with pytest.raises(ClientStateError, match="not open yet"):
        await shell.wait_disconnected()
    async with shell:
        waiting = [asyncio.create_task(shell.wait_disconnected()) for _ in range(3)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*waiting) == [None, None, None]
    with pytest.raises(ClientStateError, match="closed"):
        await shell.wait_disconnected()


async def test_silent_connection_ends_the_wait_with_its_cause(site: Any) -> None:
    if site.kind == "emulator":
        pytest.skip("the emulator runs in this process, which cannot be stopped")
    async with site.gpu.ssh(site.container, keepalive=1) as shell:
        server = int((await shell.run("echo $PPID")).stdout)
        waiting = asyncio.create_task(shell.wait_disconnected())
        os.kill(server, signal.SIGSTOP)
        try:
            async with asyncio.timeout(LONG):
                error = await waiting
        finally:
            os.kill(server, signal.SIGKILL)
        assert "keepalive" in str(error.__cause__)


async def test_one_unanswered_question_after_the_keepalive_ends_the_connection(site: Any) -> None:
    for shell, seconds in ((site.shell(), 15), (site.gpu.ssh(site.container, keepalive=2.5), 2.5)):
        async with shell:
            connection = shell._connection.connected()
            assert (connection._keepalive_interval, connection._keepalive_count_max) == (seconds, 1)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "15", None, True])
def test_keepalive_has_to_be_a_number_of_seconds(wrong: Any) -> None:
    gpu = AsyncRentGPU("token", base_url="http://127.0.0.1:9")
    with pytest.raises(InvalidArgumentError, match="must be a number of seconds above 0") as caught:
        gpu.ssh(7, keepalive=wrong)
    assert "keepalive" in str(caught.value)


async def test_locked_state_file_delays_neither_opening_nor_closing(site: Any, state: Path) -> None:
    async with site.shell():
        pass
    holder = sqlite3.connect(state, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        kept = asyncio.create_task(site.gpu._state.pin_host_key(1, "key"))
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not kept.done()
        # Reading a host key needs no lock.
        async with site.shell() as shell:
            assert (await shell.run("true")).ok
        kept.cancel()
        # In the thread of the event loop, because the timeout then also covers a wait for the thread that writes.
        async with asyncio.timeout(LONG):
            site.gpu._state.close()
    finally:
        holder.close()
    await asyncio.wait({kept})
    async with site.shell() as shell:
        assert (await shell.run("true")).ok


async def test_deeply_nested_folders_are_deleted_with_the_container(site: Any) -> None:
    if site.kind != "emulator":
        pytest.skip("the home folder belongs to the test")
    async with site.shell() as shell:
        script = "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')"
        assert (await shell.run("python3 -", input=script)).ok
    await site.gpu.containers.delete(site.container.id)
    assert not site.home.exists()
