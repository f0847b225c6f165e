"""Faults of SSH connections: refused, dropped, frozen and slow connections, refused forwards and killed supervisors."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import canaries
import pytest
from ssh_client import login, port_of, rent, shout
from until import is_running, until

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.emulator import Clock, Emulator, Fault

asyncssh = pytest.importorskip("asyncssh")

pytestmark = pytest.mark.usefixtures("temporary_folder")

BANNER = b"SSH-2.0-"
# A command whose process is a supervisor. The colon keeps the shell from replacing itself by `sleep`.
SUPERVISOR = "exec sh -c 'echo $$; sleep 1000; :' {name} job"


@pytest.fixture
async def emulator(clock: Any) -> AsyncIterator[Emulator]:
    async with Emulator(seed=7, boot_seconds=0, ssh=True, token=canaries.TOKEN, clock=clock) as emulator:
        yield emulator


@pytest.fixture
async def port(gpu: AsyncRentGPU) -> int:
    """The port of a container."""
    return port_of(await rent(gpu))


@contextmanager
def caller(port: int) -> Iterator[socket.socket]:
    """Connect to a port without SSH."""
    with closing(socket.create_connection(("127.0.0.1", port))) as connected:
        connected.settimeout(0)
        yield connected


async def receive(connected: socket.socket) -> bytes:
    """Receive until the connection ends."""
    received = bytearray()
    async with asyncio.timeout(60):
        try:
            while piece := await asyncio.get_running_loop().sock_recv(connected, 65_536):
                received += piece
        except ConnectionResetError:
            pass
    return bytes(received)


async def first_bytes(connected: socket.socket, size: int) -> bytes:
    """Receive so many bytes."""
    received = b""
    async with asyncio.timeout(60):
        while len(received) < size:
            received += await asyncio.get_running_loop().sock_recv(connected, size - len(received))
    return received


async def banner(port: int) -> bytes:
    """Return the beginning of the banner on a new connection; empty if the server closes the connection."""
    with caller(port) as connected:
        async with asyncio.timeout(60):
            return await asyncio.get_running_loop().sock_recv(connected, len(BANNER))


async def check_open_and_silent(connected: socket.socket, port: int) -> None:
    """Check that a connection stays open and passes nothing while another connection goes on."""
    receiving = asyncio.create_task(receive(connected))
    async with login(port) as other:
        assert (await other.run("head -c 100000 /dev/zero | wc -c")).stdout.strip() == "100000"
    assert not receiving.done()
    receiving.cancel()
    await asyncio.wait({receiving})


def descriptors() -> int:
    """Return the number of open file descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_refused_connection_is_closed_before_the_banner(emulator: Emulator, port: int) -> None:
    emulator.faults.add(Fault("ssh refuse", nth=2, times=2))
    assert [await banner(port), await banner(port)] == [BANNER, b""]
    with pytest.raises((asyncssh.ConnectionLost, ConnectionResetError)):
        await login(port)
    async with login(port) as connection:
        assert (await connection.run("echo hello")).stdout == "hello\n"


@pytest.mark.parametrize("after_bytes", [0, 5, 200])
async def test_dropped_connection_passes_exactly_its_bytes(emulator: Emulator, port: int, after_bytes: int) -> None:
    """The bytes of both directions count together."""
    emulator.faults.add(Fault("ssh drop", after_bytes=after_bytes, nth=2))
    assert await banner(port) == BANNER
    with caller(port) as connected:
        greeting = b"SSH-2.0-x\r\n" if after_bytes > 100 else b""
        connected.send(greeting)
        received = await receive(connected)
    assert len(greeting + received) == after_bytes
    assert received.startswith(BANNER[:after_bytes])


async def test_dropped_connection_is_reset(emulator: Emulator, port: int) -> None:
    emulator.faults.add(Fault("ssh drop", after_bytes=5))
    with caller(port) as connected:
        assert await first_bytes(connected, 5) == BANNER[:5]
        with pytest.raises(ConnectionResetError):
            await first_bytes(connected, 1)


async def test_only_the_chosen_connection_is_dropped_amid_a_transfer(emulator: Emulator, port: int) -> None:
    emulator.faults.add(Fault("ssh drop", nth=2))
    async with login(port) as first, login(port) as second, login(port) as third:
        processes = [await connection.create_process("cat", encoding=None) for connection in (first, second, third)]
        for process in processes:
            process.stdin.write(b"x" * 100_000)
            process.stdin.write_eof()
        outputs = [await process.stdout.read() for process in processes if process is not processes[1]]
        assert [len(output) for output in outputs] == [100_000, 100_000]
        await second.wait_closed()
        with pytest.raises((asyncssh.Error, OSError)):
            await second.run("true", check=True)
        assert (await first.run("echo on")).stdout == "on\n"


@pytest.mark.parametrize("option", [{"after_bytes": 5}, {"after_bytes": 5, "seconds": 1e9}])
async def test_frozen_connection_passes_only_its_bytes_and_stays_open(
    emulator: Emulator, port: int, option: Any
) -> None:
    emulator.faults.add(Fault("ssh freeze", **option))
    with caller(port) as connected:
        assert await first_bytes(connected, 5) == BANNER[:5]
        await check_open_and_silent(connected, port)


@pytest.mark.parametrize("option", [{"seconds": 0}, {"seconds": 0.0, "after_bytes": 100}])
async def test_connection_that_freezes_at_once_gets_no_banner(emulator: Emulator, port: int, option: Any) -> None:
    emulator.faults.add(Fault("ssh freeze", **option))
    with caller(port) as connected:
        await check_open_and_silent(connected, port)


async def test_connection_goes_on_until_its_seconds_are_over(emulator: Emulator, port: int) -> None:
    emulator.faults.add(Fault("ssh freeze", seconds=0.3))
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks()
    started = loop.time()
    with caller(port) as connected:
        await until(lambda: asyncio.all_tasks() > tasks)
        # A frozen connection has no task any more that reads from the client.
        await until(lambda: not any("Relay" in repr(task) for task in asyncio.all_tasks()))
        assert loop.time() - started >= 0.3
        await check_open_and_silent(connected, port)


async def test_default_freeze_lets_a_login_pass(emulator: Emulator, port: int) -> None:
    emulator.faults.add(Fault("ssh freeze", nth=2))
    async with login(port) as first, login(port) as second:
        running = asyncio.create_task(second.run("head -c 100000 /dev/zero"))
        assert len((await first.run("head -c 100000 /dev/zero")).stdout) == 100_000
        assert not running.done()
        assert not second.is_closed()
        second.abort()
        await asyncio.gather(running, return_exceptions=True)


async def test_forwarding_is_refused_in_both_directions_on_one_connection(
    emulator: Emulator, port: int, echo: int
) -> None:
    emulator.faults.add(Fault("ssh no forwarding"))
    async with login(port) as connection, login(port) as other:
        with pytest.raises(asyncssh.ChannelOpenError) as refused:
            await connection.open_connection("127.0.0.1", echo)
        assert refused.value.code == asyncssh.constants.OPEN_ADMINISTRATIVELY_PROHIBITED
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", echo)
        assert (await connection.run("echo hello")).stdout == "hello\n"
        assert await shout(*await other.open_connection("127.0.0.1", echo)) == b"HELLO\n"
        async with other.forward_remote_port("127.0.0.1", 0, "127.0.0.1", echo) as listener:
            assert await shout(*await asyncio.open_connection("127.0.0.1", listener.get_port())) == b"HELLO\n"


async def test_latency_delays_each_direction_and_keeps_the_order(emulator: Emulator, port: int) -> None:
    emulator.faults.add(Fault("ssh latency", seconds=0.05))
    loop = asyncio.get_running_loop()
    async with login(port) as connection:
        started = loop.time()
        done = await connection.run("seq 30000")
        # To open the channel and to run the command, a message passes there and back.
        assert loop.time() - started >= 4 * 0.045
    assert done.stdout.split() == [str(number) for number in range(1, 30_001)]


async def test_several_latencies_add_up(emulator: Emulator, port: int) -> None:
    for _ in range(2):
        emulator.faults.add(Fault("ssh latency", seconds=0.15))
    started = asyncio.get_running_loop().time()
    assert await banner(port) == BANNER
    assert asyncio.get_running_loop().time() - started >= 0.29


async def test_bandwidth_bounds_each_direction(emulator: Emulator, port: int) -> None:
    emulator.faults.add(Fault("ssh bandwidth", bytes_per_second=200_000))
    loop = asyncio.get_running_loop()
    async with login(port) as connection:
        started = loop.time()
        assert len((await connection.run("head -c 100000 /dev/zero")).stdout) == 100_000
        downloaded = loop.time()
        assert (await connection.run("wc -c", input="x" * 100_000)).stdout.split() == ["100000"]
        assert downloaded - started >= 0.49
        assert loop.time() - downloaded >= 0.49


async def test_sender_waits_for_a_narrow_connection(emulator: Emulator, port: int) -> None:
    emulator.faults.add(Fault("ssh bandwidth", bytes_per_second=1))
    with caller(port) as connected:
        sent = idle_rounds = 0
        while idle_rounds < 1000 and sent < 64 * 2**20:
            try:
                sent += connected.send(bytes(2**20))
                idle_rounds = 0
            except BlockingIOError:
                idle_rounds += 1
            await asyncio.sleep(0)
        assert sent < 64 * 2**20


async def test_supervisor_is_killed_at_its_age_in_its_container_only(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    mine, other = await rent(gpu), await rent(gpu, "other")
    emulator.faults.add(Fault("kill supervisor", seconds=0.3, path=f"*/containers/{mine.id}"))
    loop = asyncio.get_running_loop()
    async with login(port_of(other)) as there, login(port_of(mine)) as here:
        names = ["netmind-job-supervisor", "my-netmind-job-supervisor", "netmind-job-supervisor"]
        others: list[int] = []
        for connection, name in ((there, names[0]), (here, names[1])):
            process = await connection.create_process(SUPERVISOR.format(name=name))
            others.append(int(await process.stdout.readline()))
        started = loop.time()
        process = await here.create_process(SUPERVISOR.format(name=names[2]))
        killed = int(await process.stdout.readline())
        await until(lambda: not is_running(killed))
        # The start of a process is known to a hundredth of a second.
        assert loop.time() - started >= 0.28
        assert all(map(is_running, others))
        await until(lambda: not any("kill_supervisor" in repr(task) for task in asyncio.all_tasks()))


async def test_supervisor_that_is_old_already_is_killed(emulator: Emulator, port: int) -> None:
    async with login(port) as connection:
        process = await connection.create_process(SUPERVISOR.format(name="netmind-job-supervisor"))
        pid = int(await process.stdout.readline())
        emulator.faults.add(Fault("kill supervisor", seconds=0))
        assert is_running(pid)
        await banner(port)
        await until(lambda: not is_running(pid))


FREEZE = Fault("ssh freeze")
LASTING = {
    "frozen": [FREEZE],
    "frozen at once": [Fault("ssh freeze", seconds=0)],
    "late": [Fault("ssh latency", seconds=600)],
    "narrow": [Fault("ssh bandwidth", bytes_per_second=1)],
    "watched": [Fault("kill supervisor")],
    "all": [FREEZE, Fault("ssh latency", seconds=0.01), Fault("ssh bandwidth"), Fault("kill supervisor")],
}


@pytest.mark.parametrize("how", ["stop", "delete", "reset", "the end"])
@pytest.mark.parametrize("faults", LASTING)
async def test_container_that_ends_amid_a_fault_leaves_no_task_or_descriptor(how: str, faults: str, clock: Any) -> None:
    tasks, files = asyncio.all_tasks(), descriptors()
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(Emulator(boot_seconds=0, ssh=True, clock=clock))
        gpu = await stack.enter_async_context(AsyncRentGPU(emulator.token, base_url=emulator.url))
        container = await rent(gpu)
        for fault in LASTING[faults]:
            emulator.faults.add(fault)
        with caller(port_of(container)) as connected:
            connected.send(b"SSH-2.0-x\r\n")
            await until(lambda: emulator.faults.unmet == ())
            if how == "stop":
                await gpu.containers.stop(container.id)
            elif how == "delete":
                await gpu.containers.delete(container.id)
            elif how == "reset":
                emulator.reset()
            else:
                await stack.aclose()
            await receive(connected)
    await until(lambda: asyncio.all_tasks() <= tasks)
    await until(lambda: descriptors() <= files)


async def test_client_that_leaves_a_shaped_connection_ends_its_relay(emulator: Emulator, port: int) -> None:
    for fault in (Fault("ssh latency", seconds=0.01), Fault("ssh bandwidth"), Fault("ssh freeze", after_bytes=10**9)):
        emulator.faults.add(fault)
    tasks, files = asyncio.all_tasks(), descriptors()
    async with login(port) as connection:
        assert (await connection.run("echo hello")).stdout == "hello\n"
    emulator.faults.add(Fault("ssh latency", seconds=0.01))
    with caller(port) as connected:
        await first_bytes(connected, 5)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await until(lambda: asyncio.all_tasks() <= tasks)
    await until(lambda: descriptors() <= files)


def test_emulator_in_a_thread_freezes_and_resets() -> None:
    """After a reset, the first faults count connections from the beginning."""
    with Emulator(boot_seconds=0, ssh=True, clock=Clock(scale=0), faults=[Fault("ssh freeze", nth=2)]) as emulator:

        async def work() -> None:
            async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
                for _ in range(2):
                    port = port_of(await rent(gpu))
                    async with login(port) as first, login(port) as second:
                        running = asyncio.create_task(second.run("head -c 100000 /dev/zero"))
                        assert len((await first.run("head -c 100000 /dev/zero")).stdout) == 100_000
                        assert not running.done()
                        emulator.reset()
                        await second.wait_closed()
                        await asyncio.gather(running, return_exceptions=True)

        asyncio.run(work())


async def test_path_chooses_the_containers(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    mine, other = await rent(gpu), await rent(gpu, "other")
    emulator.faults.add(Fault("ssh refuse", path=f"/v1/rentgpu/containers/{other.id}", times="all"))
    emulator.faults.add(Fault("drop", path=f"/v1/rentgpu/containers/{mine.id}", call="get_container"))
    assert [await banner(port_of(container)) for container in (mine, other, mine, other)] == [BANNER, b"", BANNER, b""]
    assert [fault.what for fault in emulator.faults.unmet] == ["drop"]
    emulator.faults.clear()
    assert [fault.what for fault in emulator.faults.unmet] == ["drop"]
    emulator.reset()


async def test_probability_by_seed_is_repeatable_on_connections(clock: Any) -> None:
    runs = []
    for _ in range(2):
        fault = Fault("ssh refuse", probability=0.5)
        async with (
            Emulator(seed=7, boot_seconds=0, ssh=True, clock=clock, faults=[fault]) as emulator,
            AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu,
        ):
            port = port_of(await rent(gpu))
            runs.append([await banner(port) for _ in range(12)])
    assert runs[0] == runs[1]
    assert set(runs[0]) == {BANNER, b""}


async def test_unmet_fault_of_an_emulator_without_ssh_is_listed_and_cleared_over_http(
    clock: Any,
) -> None:
    async with Emulator(clock=clock) as emulator, AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
        body = {"what": "ssh freeze", "seconds": 3, "nth": 2, "path": "*/7"}
        shown = await gpu.request("POST", "/_emulator/faults", json=body)
        assert shown["faults"] == shown["unmet"] == [{**body, "times": 1}]
        emulator.reset()
    assert not re.search("7", str(emulator.faults.unmet))
