"""Containers with a network of their own: they see each other, this machine and the emulator through SSH alone."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import canaries
import pytest
from isolation import holders, inside, require_isolation
from ssh_client import LASTING, login, port_of, rent
from until import is_running, until

from netmind_rentgpu import AsyncRentGPU, AsyncShell, SSHError
from netmind_rentgpu.emulator import Emulator

asyncssh = pytest.importorskip("asyncssh")

pytestmark = pytest.mark.usefixtures("temporary_folder")
# Any port will do, because no other program uses the networks of the containers.
PORT = 8000


@pytest.fixture
async def emulator(clock: Any) -> AsyncIterator[Emulator]:
    require_isolation()
    async with Emulator(seed=7, boot_seconds=0, ssh=True, isolated=True, token=canaries.TOKEN, clock=clock) as emulator:
        yield emulator


@pytest.fixture
async def shells(gpu: AsyncRentGPU) -> AsyncIterator[list[AsyncShell]]:
    """Shells on two containers."""
    async with gpu.ssh(await rent(gpu, "one")) as one, gpu.ssh(await rent(gpu, "two")) as two:
        yield [one, two]


@pytest.fixture
def shell(shells: list[AsyncShell]) -> AsyncShell:
    return shells[0]


async def start(shell: AsyncShell, mode: str, *arguments: object) -> int:
    """Start a server on a container, and return its port."""
    job = await shell.start(inside(mode, *arguments))
    async with asyncio.timeout(60):
        async for line in job.logs(follow=True):
            return int(line.text)
    raise AssertionError(await job.wait())


async def get(shell: AsyncShell, host: str, port: int) -> str:
    """Connect from a container, and return what the server sends, or the error's name."""
    return (await shell.run(inside("exchange", host, port), timeout=60)).stdout.strip()


async def exchange(port: int, words: bytes) -> bytes:
    """Connect from this machine, send words and their end, and return what arrives meanwhile and afterwards."""
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            sending = asyncio.create_task(send(writer, words))
            answer = await reader.read()
            await sending
        finally:
            writer.close()
    return answer


async def send(writer: asyncio.StreamWriter, words: bytes) -> None:
    writer.write(words)
    writer.write_eof()
    await writer.drain()


@asynccontextmanager
async def served(answer: Callable[[bytes], bytes] | bytes) -> AsyncIterator[int]:
    """Serve on a port of this machine: a text, or what a function makes of each piece."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(answer, bytes):
            writer.write(answer)
        else:
            while piece := await reader.read(2**16):
                writer.write(answer(piece))
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_containers_use_the_same_port_and_reach_only_their_own_server(shells: list[AsyncShell]) -> None:
    one, two = shells
    assert await start(one, "serve", PORT, "one") == PORT
    assert [await get(one, "127.0.0.1", PORT), await get(two, "127.0.0.1", PORT)] == ["one", "ECONNREFUSED"]
    assert await start(two, "serve", PORT, "two") == PORT
    assert [await get(shell, "localhost", PORT) for shell in shells] == ["one", "two"]
    forwards = [await shell.forward(local_port=0, remote_port=PORT) for shell in shells]
    assert [await exchange(forward.local_port, b"") for forward in forwards] == [b"one", b"two"]


async def test_container_reaches_neither_this_machine_nor_the_emulator_nor_another_network(
    emulator: Emulator, shell: AsyncShell
) -> None:
    async with served(b"reached") as port:
        assert await exchange(port, b"") == b"reached"
        for reachable in (port, int(emulator.url.rpartition(":")[2])):
            assert await get(shell, "127.0.0.1", reachable) == "ECONNREFUSED"
    assert await get(shell, "192.0.2.1", 80) == "ENETUNREACH"
    assert (await shell.run("wc -l </proc/net/dev")).stdout.strip() == "3"


async def test_server_in_a_container_is_not_on_this_machine(shell: AsyncShell) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        await start(shell, "serve", port, "inside")
        with pytest.raises(ConnectionRefusedError):
            await exchange(port, b"")


async def test_ten_megabytes_return_unchanged_through_a_forwarded_port(shell: AsyncShell) -> None:
    content = os.urandom(10_000_000)
    forward = await shell.forward(local_port=0, remote_port=await start(shell, "echo", 0))
    assert await exchange(forward.local_port, content) == content


async def test_ten_megabytes_return_unchanged_through_a_port_of_the_container(
    shell: AsyncShell, tmp_path: Path
) -> None:
    content = os.urandom(10_000_000)
    (tmp_path / "content").write_bytes(content)
    await shell.upload(tmp_path / "content", "content")
    async with served(bytes) as port:
        forward = await shell.reverse_forward(remote_port=0, local_port=port)
        done = await shell.run(inside("exchange", "127.0.0.1", forward.remote_port, "content", "returned"))
    assert (done.stdout, done.stderr) == ("", "")
    await shell.download("returned", tmp_path / "returned")
    assert (tmp_path / "returned").read_bytes() == content


async def test_end_of_one_direction_leaves_the_other_open(shell: AsyncShell) -> None:
    forward = await shell.forward(local_port=0, remote_port=await start(shell, "shout", 0))
    assert await exchange(forward.local_port, b"x" * 300_000) == b"X" * 300_000
    assert await exchange(forward.local_port, b"") == b""


async def test_containers_forward_the_same_port_to_different_servers(shells: list[AsyncShell]) -> None:
    async with served(b"first") as first, served(b"second") as second:
        for shell, port in zip(shells, (first, second), strict=True):
            forward = await shell.reverse_forward(remote_port=PORT, local_port=port)
            assert forward.remote_port == PORT
        assert [await get(shell, "127.0.0.1", PORT) for shell in shells] == ["first", "second"]


async def test_connection_to_a_closed_port_is_refused(gpu: AsyncRentGPU) -> None:
    async with login(port_of(await rent(gpu))) as connection:
        for host in ("localhost", "127.0.0.1"):
            with pytest.raises(asyncssh.ChannelOpenError, match=r"Connect call failed|Connection refused"):
                await connection.open_connection(host, PORT)
        assert (await connection.run("echo usable")).stdout == "usable\n"


async def test_port_in_use_in_the_container_cannot_be_forwarded(shell: AsyncShell) -> None:
    await start(shell, "serve", PORT, "mine")
    with pytest.raises(SSHError, match="cannot be forwarded"):
        await shell.reverse_forward(remote_port=PORT, local_port=1)
    assert await get(shell, "127.0.0.1", PORT) == "mine"
    first = await shell.reverse_forward(remote_port=0, local_port=1)
    with pytest.raises(SSHError, match="cannot be forwarded"):
        await shell.reverse_forward(remote_port=first.remote_port, local_port=1)


async def test_closed_forward_frees_the_port_of_the_container(shell: AsyncShell) -> None:
    forward = await shell.reverse_forward(remote_port=PORT, local_port=1)
    await forward.close()
    assert await start(shell, "serve", PORT, "mine") == PORT


async def test_both_addresses_of_localhost_are_forwarded(gpu: AsyncRentGPU) -> None:
    async with login(port_of(await rent(gpu))) as connection, served(b"reached") as port:
        listener = await connection.forward_remote_port("localhost", 0, "127.0.0.1", port)
        hosts = ["127.0.0.1", "::1"] if (await connection.run("cat /proc/net/if_inet6")).stdout else ["127.0.0.1"]
        for host in hosts:
            done = await connection.run(inside("exchange", host, listener.get_port()))
            assert done.stdout == "reached"
            reader, writer = await connection.open_connection(host, listener.get_port())
            assert await reader.read() == b"reached"
            writer.close()


async def test_client_that_disconnects_right_behind_its_answer_leaves_no_connection_to_a_forwarded_port(
    gpu: AsyncRentGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forgets(connection: Any, *_: Any) -> Any:
        connection.abort()
        await connection.wait_closed()
        raise AssertionError  # as asyncssh does with an answer whose channel it has forgotten

    container = await rent(gpu)
    monkeypatch.setattr(asyncssh.SSHServerConnection, "create_connection", forgets)
    async with gpu.ssh(container) as shell, login(port_of(container)) as connection:
        await connection.forward_remote_port("localhost", PORT, "127.0.0.1", 1)
        # The client of the port waits for the end of its connection.
        assert await get(shell, "127.0.0.1", PORT) in ("", "ECONNRESET")


async def test_port_of_the_container_is_free_once_the_client_has_disconnected(gpu: AsyncRentGPU) -> None:
    container = await rent(gpu)
    async with login(port_of(container)) as connection:
        await connection.forward_remote_port("localhost", PORT, "127.0.0.1", 1)
    async with gpu.ssh(container) as shell:
        assert await start(shell, "serve", PORT, "mine") == PORT


async def test_restarted_container_keeps_its_network_without_processes_and_listeners(
    emulator: Emulator, gpu: AsyncRentGPU
) -> None:
    container = await rent(gpu)
    async with login(port_of(container)) as connection:
        before = (await connection.run("readlink /proc/self/ns/net")).stdout
        await connection.forward_remote_port("localhost", PORT, "127.0.0.1", 1)
        process = await connection.create_process(LASTING)
        pid = int(await process.stdout.readline())
        await gpu.containers.stop(container.id)
        await connection.wait_closed()
    await until(lambda: not is_running(pid))
    assert len(holders(os.getpid())) == 1
    await gpu.containers.restart(container.id)
    async with gpu.ssh(await gpu.containers.get(container.id)) as shell:
        assert (await shell.run("readlink /proc/self/ns/net")).stdout == before
        assert await start(shell, "serve", PORT, "mine") == PORT


@pytest.mark.parametrize("how", ["delete", "reset", "the end"])
async def test_deleted_container_leaves_neither_a_process_nor_the_holder_of_its_network(how: str, clock: Any) -> None:
    require_isolation()
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(Emulator(boot_seconds=0, ssh=True, isolated=True, clock=clock))
        gpu = await stack.enter_async_context(AsyncRentGPU(emulator.token, base_url=emulator.url))
        container = await rent(gpu)
        (holder,) = holders(os.getpid())
        async with login(port_of(container)) as connection:
            await connection.run(f"setsid sh -c '{LASTING}' >pid </dev/null 2>&1 & while ! test -s pid; do :; done")
            pids = [int((await connection.run("cat pid")).stdout)]
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
        # The holder is no zombie either, because the emulator has waited for it.
        assert not Path(f"/proc/{holder}").exists()
        await until(lambda: not any(map(is_running, pids)))
        if how == "reset":
            async with login(port_of(await rent(gpu))) as connection:
                assert (await connection.run("echo again")).stdout == "again\n"
    assert holders(os.getpid()) == set()


async def test_command_starts_as_it_does_without_isolation(gpu: AsyncRentGPU, clock: Any) -> None:
    """Covers Python's own changes to its signals and environment, which the command must not inherit."""
    command = (
        "grep -E 'Sig(Blk|Ign)|NoNewPrivs|Groups' /proc/self/status; env | cut -d= -f1 | sort; ls /proc/self/fd; id; umask;"
        " printf '%s|' \"$ODD\"; pwd | sed 's/-[^-]*$//'"
    )
    odd = {"ODD": "a\nb=\u2603"}
    async with (
        Emulator(boot_seconds=0, ssh=True, clock=clock) as shared,
        AsyncRentGPU(shared.token, base_url=shared.url) as other,
        login(port_of(await rent(gpu))) as isolated,
        login(port_of(await rent(other))) as usual,
    ):
        for terminal in (None, "dumb"):
            expected = await usual.run(command, env=odd, term_type=terminal)
            done = await isolated.run(command, env=odd, term_type=terminal)
            assert (done.stdout, done.stderr, done.exit_status) == (expected.stdout, expected.stderr, 0)


async def test_job_goes_on_without_a_connection_and_is_stopped(gpu: AsyncRentGPU) -> None:
    container = await rent(gpu)
    async with gpu.ssh(container) as shell:
        await start(shell, "serve", PORT, "still-there")
    async with gpu.ssh(container) as shell:
        assert await get(shell, "127.0.0.1", PORT) == "still-there"
        (job,) = await shell.jobs()
        await job.stop()
        await job.wait()
        assert await get(shell, "127.0.0.1", PORT) == "ECONNREFUSED"


async def test_commands_and_forwards_say_that_the_network_is_gone(gpu: AsyncRentGPU) -> None:
    async with login(port_of(await rent(gpu))) as connection:
        (holder,) = holders(os.getpid())
        os.kill(holder, 9)
        await until(lambda: not is_running(holder))
        done = await connection.run("echo ran")
        assert (done.stdout, done.exit_status) == ("", 125)
        assert done.stderr.startswith("could not enter the container's network namespace: ")
        with pytest.raises(asyncssh.ChannelOpenError, match="network namespace has ended"):
            await connection.open_connection("127.0.0.1", PORT)
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 1)


def test_isolation_without_ssh_is_an_error() -> None:
    with pytest.raises(ValueError, match="isolated=True needs ssh=True"):
        Emulator(isolated=True)


def test_system_without_network_namespaces_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(NotImplementedError, match=r"need Linux's network namespaces.*; leave out isolated=True"):
        Emulator(ssh=True, isolated=True)
