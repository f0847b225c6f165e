"""A rental whose connection is lost: its jobs and forwarded ports go on over another one."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from rented import client
from short_forms import thinned
from until import until

from netmind_rentgpu import (
    AsyncRental,
    AsyncRentGPU,
    ClientStateError,
    InvalidArgumentError,
    RentalEndedError,
    RentalExpiredError,
    RentGPU,
    SSHError,
)
from netmind_rentgpu.emulator import Emulator, Fault

WANTED = {"image": "PyTorch 2.4", "gpu_name": "RTX 4090"}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(seed=7, boot_seconds=0.02, ssh=True) as emulator:
        yield emulator


@pytest.fixture
async def gpu(emulator: Emulator, tmp_path: Path) -> AsyncIterator[AsyncRentGPU]:
    async with client(emulator, tmp_path / "state.sqlite3") as gpu:
        yield gpu


@pytest.fixture
async def rental(gpu: AsyncRentGPU) -> AsyncIterator[AsyncRental]:
    async with gpu.rent(**WANTED) as rental:
        yield rental


async def cut(rental: AsyncRental) -> None:
    """Break the connection of a rental, and wait until that is known."""
    connection = rental.shell._connection
    connection.connected().abort()
    await until(lambda: connection.lost)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[int]:
    """Serve a port of this machine; break off what is still connected at the end."""
    connected: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connected[task] = writer
        with suppress(OSError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for writer in connected.values():
            writer.transport.abort()
        if connected:
            await asyncio.wait(connected)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Return each line, with a word before it."""
    while line := await reader.readline():
        writer.write(b"echo " + line)
        await writer.drain()
    writer.write(b"bye")


async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Return all bytes as they are."""
    while piece := await reader.read(65_536):
        writer.write(piece)
        await writer.drain()


async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send bytes without end."""
    while True:
        writer.write(bytes(65_536))
        await writer.drain()


async def ask(port: int, text: bytes = b"hello\n") -> bytes:
    """Send a line to a port, and return all that comes back until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(60):
            writer.write(text)
            writer.write_eof()
            return await reader.read()
    finally:
        writer.close()


async def answers(port: int) -> bool:
    try:
        return await ask(port) == b"echo hello\nbye"
    except OSError:
        return False


async def test_port_of_this_machine_stays_open_while_the_connection_is_lost(rental: AsyncRental) -> None:
    async with serving(echo) as there, await rental.forward(local_port=0, remote_port=there) as forward:
        for _ in range(3):
            assert await ask(forward.port) == b"echo hello\nbye"
            former = rental.shell
            await cut(rental)
            # A client that comes at once waits for the new connection.
            assert await ask(forward.port) == b"echo hello\nbye"
            await until(lambda former=former: rental.shell is not former)  # type: ignore[misc]  # mypy cannot infer it
        assert not forward.closed
        assert repr(forward).endswith("open>")
    assert forward.closed
    with pytest.raises(OSError, match=r"refused|failed"):
        await ask(forward.port)


async def test_rental_connects_again_by_itself_while_a_port_is_forwarded(rental: AsyncRental) -> None:
    async with serving(echo) as here, await rental.reverse_forward(remote_port=0, local_port=here) as forward:
        port = forward.remote_port
        assert await answers(port)
        for _ in range(3):
            await cut(rental)
            # Nothing uses the rental meanwhile.
            await until(lambda: answers(port))
        assert forward.remote_port == port
    await until(lambda: refuses(port))
    await cut(rental)
    assert rental.shell.lost
    assert (await rental.run("echo on")).stdout == "on\n"
    assert await refuses(port)


async def refuses(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return True
    writer.close()
    return False


def is_free(port: int) -> bool:
    """Return whether a port can be bound, without a connection that would have to be closed."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


async def test_large_streams_pass_a_forwarded_port_whole(rental: AsyncRental) -> None:
    data = bytes(range(256)) * 20_000

    async with serving(mirror) as there, await rental.forward(local_port=0, remote_port=there) as forward:
        assert await asyncio.gather(*(ask(forward.port, data) for _ in range(3))) == [data] * 3


async def test_client_of_a_port_where_nothing_listens_is_disconnected(rental: AsyncRental) -> None:
    async with serving(echo) as free:
        pass
    async with await rental.forward(local_port=0, remote_port=free) as forward:
        for _ in range(2):
            with pytest.raises(OSError, match=r".*"):
                assert await ask(forward.port) == b""
                raise ConnectionResetError("the connection was closed")
        assert not forward.closed


async def test_client_that_disconnects_early_harms_no_other(rental: AsyncRental) -> None:
    async with serving(echo) as there, await rental.forward(local_port=0, remote_port=there) as forward:
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", forward.port)
            writer.transport.abort()
        assert await ask(forward.port) == b"echo hello\nbye"


async def test_closed_forward_leaves_its_clients_connected(rental: AsyncRental) -> None:
    async with serving(echo) as there:
        forward = await rental.forward(local_port=0, remote_port=there)
        reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
        writer.write(b"one\n")
        assert await reader.readline() == b"echo one\n"
        await forward.close()
        await forward.close()
        writer.write(b"two\n")
        assert await reader.readline() == b"echo two\n"
        # The port is free again.
        async with await rental.forward(local_port=forward.port, remote_port=there) as again:
            assert await ask(again.port) == b"echo hello\nbye"
        writer.close()


async def test_client_sees_a_lost_connection_as_a_broken_one(rental: AsyncRental) -> None:
    async with serving(echo) as there, await rental.forward(local_port=0, remote_port=there) as forward:
        reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
        writer.write(b"one\n")
        assert await reader.readline() == b"echo one\n"
        await cut(rental)
        # An end of file would look like the end of what the server has sent.
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_client_that_does_not_read_is_disconnected_at_the_end(gpu: AsyncRentGPU) -> None:
    async with serving(flood) as there, gpu.rent(**WANTED) as rental:
        forward = await rental.forward(local_port=0, remote_port=there)
        reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
        assert await reader.readexactly(1_000_000) == bytes(1_000_000)
        await rental.close()
        with pytest.raises(ConnectionResetError):
            while await reader.read(65_536):
                pass
        writer.close()
    gc.collect()


@pytest.mark.parametrize("steps", thinned(range(16), every=3))
async def test_cancelled_forward_leaves_no_port_open(steps: int, rental: AsyncRental) -> None:
    async with serving(echo) as there:
        for is_local in (False, True):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            forwarding = asyncio.create_task(
                rental.forward(local_port=port, remote_port=there)
                if is_local
                else rental.reverse_forward(remote_port=port, local_port=there)
            )
            for _ in range(steps):
                await asyncio.sleep(0)
            forwarding.cancel()
            await asyncio.wait([forwarding])
            if not forwarding.cancelled():
                await forwarding.result().close()
            # The port may be opened a moment later, and is closed then.
            await until(lambda: not any("open_once" in repr(task) for task in asyncio.all_tasks()))
            await until(lambda port=port: is_free(port))  # type: ignore[misc]  # mypy cannot infer it


async def test_end_of_the_rental_closes_its_forwards_and_disconnects_their_clients(gpu: AsyncRentGPU) -> None:
    async with serving(echo) as there, gpu.rent(**WANTED) as rental:
        forwards = [
            await rental.forward(local_port=0, remote_port=there),
            await rental.reverse_forward(remote_port=0, local_port=there),
        ]
        reader, writer = await asyncio.open_connection("127.0.0.1", forwards[0].port)
        writer.write(b"one\n")
        assert await reader.readline() == b"echo one\n"
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    for forward in forwards:
        assert forward.closed
        await until(lambda forward=forward: refuses(forward.port))  # type: ignore[misc]  # mypy cannot infer it
    with pytest.raises(ClientStateError):
        await rental.forward(local_port=0, remote_port=there)
    gc.collect()


async def test_expiry_closes_forwards_whose_connection_is_lost(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with serving(echo) as there:
        with pytest.raises(RentalExpiredError):
            async with gpu.rent(**WANTED, ttl=timedelta(seconds=3), timeout=2.5) as rental:
                forward = await rental.forward(local_port=0, remote_port=there)
                emulator.faults.add(Fault("ssh refuse", times="all"))
                await cut(rental)
                await asyncio.sleep(1000)
        assert forward.closed
        assert await refuses(forward.port)


async def test_port_that_cannot_be_forwarded_says_why(rental: AsyncRental) -> None:
    async with serving(echo) as taken:
        with pytest.raises(SSHError, match=f"port {taken} cannot be forwarded"):
            await rental.forward(local_port=taken, remote_port=1)
        with pytest.raises(SSHError, match="of the container cannot be forwarded"):
            await rental.reverse_forward(remote_port=taken, local_port=1)
    with pytest.raises(InvalidArgumentError, match=r"^local_port:"):
        await rental.forward(local_port=-1, remote_port=1)
    with pytest.raises(InvalidArgumentError, match=r"^remote_port:"):
        await rental.forward(local_port=0, remote_port=0)


async def test_job_of_a_rental_is_followed_over_a_lost_connection(rental: AsyncRental) -> None:
    job = await rental.start("for n in 1 2 3 4 5; do echo $n; sleep 0.4; done", name="count")
    seen = []
    async for line in job.logs(follow=True):
        seen.append(line.text)
        if line.text in "13" and not rental.shell.lost:
            await cut(rental)
    assert seen == ["1", "2", "3", "4", "5"]
    assert [each.name for each in await rental.jobs()] == ["count"]
    assert (await (await rental.job("count")).wait()).ok


async def test_bytes_pass_a_rental_over_a_new_connection(rental: AsyncRental, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    await cut(rental)
    with (tmp_path / "copy").open("wb") as file:
        done = await rental.pipe("cat", stdin=data, stdout=file)
    assert done.ok
    assert (tmp_path / "copy").read_bytes() == data


async def test_job_of_a_rental_that_is_over_raises_the_cause(gpu: AsyncRentGPU) -> None:
    with pytest.raises(RentalExpiredError):
        async with gpu.rent(**WANTED, ttl=timedelta(seconds=3), timeout=2.5) as rental:
            job = await rental.start("sleep 1000")
            waiting = asyncio.create_task(job.wait())
            await asyncio.sleep(1000)
    with pytest.raises(RentalExpiredError):
        await waiting
    for use in (job.status(), rental.jobs(), rental.start("true"), rental.forward(local_port=0, remote_port=1)):
        with pytest.raises(RentalExpiredError):
            await use


async def test_job_of_a_rental_whose_container_is_gone_raises_that(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(**WANTED) as rental:
        job = await rental.start("sleep 1000")
        await gpu.containers.delete(rental.container.id)
        with pytest.raises(RentalEndedError):
            await job.wait()


def test_synchronous_rental_has_jobs_bytes_and_ports(tmp_path: Path) -> None:
    with Emulator(seed=7, boot_seconds=0, ssh=True) as emulator:
        gpu = RentGPU(emulator.token, base_url=emulator.url, state=tmp_path / "state.sqlite3")
        with gpu, gpu.rent(image="PyTorch 2.4") as rental:
            job = rental.start("echo one; echo two >&2; exit 3", name="mine")
            assert [line.text for line in job.logs(follow=True)] == ["one", "two"]
            assert job.wait().exit_status == job.status().exit_status == 3
            assert rental.job("mine").id == rental.jobs()[0].id == job.id
            assert job.stop().exit_status == 3
            job.remove()
            assert rental.jobs() == []
            assert rental.pipe("cat", stdin=b"\0\xff").stdout == "\0\N{REPLACEMENT CHARACTER}"
            with rental.forward(local_port=0, remote_port=1) as forward:
                assert forward.port > 0
            assert forward.closed
            assert repr(job).startswith("<Job mine")
