"""SSH servers over the life of their containers: restarts, deletions, resets, faults, and the end of the emulator."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import canaries
import pytest
from ssh_client import LASTING, login, port_of, rent
from until import is_running, until

from netmind_rentgpu import AsyncRentGPU, NotFoundError
from netmind_rentgpu.emulator import Clock, Emulator, Fault, World
from netmind_rentgpu.emulator.__main__ import main

pytestmark = pytest.mark.usefixtures("temporary_folder")


@pytest.fixture
async def emulator(clock: Any) -> AsyncIterator[Emulator]:
    async with Emulator(seed=7, boot_seconds=0, ssh=True, token=canaries.TOKEN, clock=clock) as emulator:
        yield emulator


async def answers(port: int) -> bool:
    """Return True if a server accepts connections on a port."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def folders() -> set[str]:
    """Return the names of the folders of containers."""
    return {path.name for path in Path(tempfile.gettempdir()).glob("netmind-emulator-*")}


def descriptors() -> int:
    """Return the number of open file descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("key", ["kept", "changed"])
@pytest.mark.parametrize("port", ["kept", "changed"])
async def test_restarted_container_keeps_its_files_and_changes_port_or_key_as_the_world_says(
    port: Any, key: Any, clock: Any
) -> None:
    world = World(restart_port=port, restart_host_key=key)
    async with (
        Emulator(boot_seconds=0, ssh=True, clock=clock, world=world) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu,
    ):
        container = await rent(gpu)
        before = port_of(container)
        async with login(before) as connection:
            first = connection.get_server_host_key().get_fingerprint()
            process = await connection.create_process(LASTING)
            pid = int(await process.stdout.readline())
            await connection.run("touch left")
            await gpu.containers.stop(container.id)
            await connection.wait_closed()
        assert not await answers(before)
        await until(lambda: not is_running(pid))
        await gpu.containers.restart(container.id)
        after = port_of(await gpu.containers.get(container.id))
        assert (after == before) is (port == "kept")
        async with login(after) as connection:
            assert (connection.get_server_host_key().get_fingerprint() == first) is (key == "kept")
            assert (await connection.run("ls")).stdout == "left\n"
        assert await answers(before) is (port == "kept")


@pytest.mark.parametrize("how", ["delete", "reset", "the end"])
async def test_deleted_container_leaves_no_process_folder_task_or_descriptor(how: str, clock: Any) -> None:
    """Covers a process that left its session, too."""
    tasks, files = asyncio.all_tasks(), descriptors()
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(Emulator(boot_seconds=0, ssh=True, clock=clock))
        gpu = await stack.enter_async_context(AsyncRentGPU(emulator.token, base_url=emulator.url))
        container = await rent(gpu)
        (folder,) = folders()
        async with login(port_of(container)) as connection:
            process = await connection.create_process(LASTING)
            pids = [int(await process.stdout.readline())]
            await connection.run(f"setsid sh -c '{LASTING}' >pid </dev/null 2>&1 & while ! test -s pid; do :; done")
            pids.append(int((await connection.run("cat pid")).stdout))
            process = await connection.create_process(LASTING, term_type="dumb")
            pids.append(int(await process.stdout.readline()))
            assert all(map(is_running, pids))
            if how == "delete":
                await gpu.containers.delete(container.id)
            elif how == "reset":
                emulator.reset()
            else:
                await stack.aclose()
            await connection.wait_closed()
        assert not await answers(port_of(container))
        assert folder not in folders()
        await until(lambda: not any(map(is_running, pids)))
    await until(lambda: asyncio.all_tasks() <= tasks)
    assert folders() == set()
    await until(lambda: descriptors() <= files)


async def test_caller_that_has_not_logged_in_is_disconnected_at_the_end(clock: Any) -> None:
    tasks = asyncio.all_tasks()
    async with (
        Emulator(boot_seconds=0, ssh=True, clock=clock) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu,
    ):
        port = port_of(await rent(gpu))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await reader.readline()).startswith(b"SSH-2.0-")
        # The second caller connects as the emulator stops.
        _, other = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(30):
        await reader.read()
    writer.close()
    other.transport.abort()
    await until(lambda: asyncio.all_tasks() <= tasks)


async def test_port_opens_and_closes_as_the_clock_advances(clock: Any) -> None:
    async with (
        Emulator(boot_seconds=10, ssh=True, clock=clock) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu,
    ):
        container = await rent(gpu)
        assert container.ssh_endpoint is None
        clock.advance(13)
        port = port_of(await gpu.containers.get(container.id))
        emulator.faults.add(Fault("vanishes", seconds=60, call="restart_container"))
        await gpu.containers.restart(container.id)
        assert not await answers(port)
        # No request reaches the service meanwhile.
        clock.advance(13)
        await until(lambda: answers(port))
        async with login(port) as connection:
            clock.advance(60)
            await connection.wait_closed()
        assert not await answers(port)
        with pytest.raises(NotFoundError):
            await gpu.containers.get(container.id)


async def test_container_that_is_never_reachable_refuses_logins_until_a_restart(
    emulator: Emulator, gpu: AsyncRentGPU
) -> None:
    emulator.faults.add(Fault("never reachable"))
    container = await rent(gpu)
    assert port_of(container) == 1
    with pytest.raises(ConnectionRefusedError):
        await login(1)
    await gpu.containers.restart(container.id)
    async with login(port_of(await gpu.containers.get(container.id))):
        pass


async def test_container_that_dies_on_restart_closes_its_port(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    container = await rent(gpu)
    emulator.faults.add(Fault("dies", call="restart_container"))
    async with login(port_of(container)) as connection:
        await gpu.containers.restart(container.id)
        await connection.wait_closed()
    assert not await answers(port_of(container))
    assert (await gpu.containers.get(container.id)).ssh_endpoint is None


async def test_container_that_moves_opens_another_port(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    container = await rent(gpu)
    emulator.faults.add(Fault("moves"))
    await gpu.containers.restart(container.id)
    moved = port_of(await gpu.containers.get(container.id))
    assert moved != port_of(container)
    assert not await answers(port_of(container))
    async with login(moved):
        pass


async def test_container_rented_after_a_reset_can_be_logged_into(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    await rent(gpu)
    emulator.reset()
    async with login(port_of(await rent(gpu))) as connection:
        assert (await connection.run("ls")).stdout == ""


async def test_slow_calls_from_before_a_reset_change_nothing_after_it(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    container = await rent(gpu)
    emulator.faults.add(Fault("slow", call="restart_container", seconds=0.3))
    emulator.faults.add(Fault("slow", call="create_container", seconds=0.3))
    late = [asyncio.create_task(gpu.containers.restart(container.id)), asyncio.create_task(rent(gpu, "late"))]
    await until(lambda: [request.fault for request in emulator.requests].count("slow") == 2)
    emulator.reset()
    port = port_of(await rent(gpu))
    async with login(port) as connection:
        await asyncio.gather(*late, return_exceptions=True)
        assert (await connection.run("echo still there")).stdout == "still there\n"
    assert await answers(port)
    assert [charge.name for charge in emulator.running] == ["mine"]


async def test_bill_goes_on_after_the_emulator_stopped(clock: Any) -> None:
    async with (
        Emulator(boot_seconds=10, ssh=True, clock=clock) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu,
    ):
        emulator.faults.add(Fault("vanishes", seconds=60))
        await rent(gpu)
        await rent(gpu, "other")
    clock.advance(3600)
    assert [charge.running for charge in emulator.charges] == [False, True]
    assert folders() == set()


def test_emulator_in_a_thread_serves_ssh() -> None:
    with Emulator(boot_seconds=0, ssh=True, clock=Clock(scale=0)) as emulator:

        async def work() -> None:
            async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
                container = await rent(gpu)
                async with login(port_of(container)) as connection:
                    assert (await connection.run("echo hello")).stdout == "hello\n"
                    process = await connection.create_process(LASTING)
                    pid = int(await process.stdout.readline())
                    emulator.reset()
                    await connection.wait_closed()
                await until(lambda: not is_running(pid))
                async with login(port_of(await rent(gpu))):
                    pass

        asyncio.run(work())
    assert folders() == set()


def test_missing_asyncssh_is_an_error_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    monkeypatch.delitem(sys.modules, "netmind_rentgpu.emulator.shells", raising=False)
    with pytest.raises(
        ModuleNotFoundError, match=r"needs asyncssh, which the extra `ssh` installs: run pip install '\.\[ssh\]'"
    ):
        Emulator(ssh=True)
    with pytest.raises(SystemExit):
        main(["--ssh"])
    assert "needs asyncssh" in capsys.readouterr().err
    Emulator()
