"""Faults of containers: containers that never start, die, vanish, move or cannot be reached, and their charges."""

import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from bare_client import ONCE, create

from netmind_rentgpu import APIConnectionError, AsyncRentGPU, NotFoundError, RentGPUError, ServerError
from netmind_rentgpu.emulator import Emulator, Fault


@pytest.fixture
async def gpu(emulator: Emulator) -> AsyncIterator[AsyncRentGPU]:
    async with AsyncRentGPU(emulator.token, base_url=emulator.url, retries=ONCE) as gpu:
        yield gpu


async def test_container_that_never_starts_stays_pending_until_a_restart(
    emulator: Emulator, gpu: AsyncRentGPU, clock: Any
) -> None:
    emulator.faults.add(Fault("never starts"))
    container = await create(gpu)
    clock.advance(1e6)
    assert (await gpu.containers.get(container.id)).status == container.status == 0
    assert (await gpu.containers.get(container.id)).ssh_endpoint is None
    await gpu.containers.restart(container.id)
    clock.advance(20)
    assert (await gpu.containers.get(container.id)).ssh_endpoint is not None


async def test_container_that_is_never_reachable_has_a_closed_port(
    emulator: Emulator, gpu: AsyncRentGPU, clock: Any
) -> None:
    emulator.faults.add(Fault("never reachable"))
    container = await create(gpu)
    other = await create(gpu, "other")
    clock.advance(20)
    seen, usual = await gpu.containers.get(container.id), await gpu.containers.get(other.id)
    assert seen.status == usual.status
    assert seen.ssh_endpoint is not None
    assert usual.ssh_endpoint is not None
    assert (seen.ssh_endpoint.host, seen.ssh_endpoint.port) == ("127.0.0.1", 1)
    assert usual.ssh_endpoint.port != 1
    with socket.socket() as caller:
        assert caller.connect_ex((seen.ssh_endpoint.host, seen.ssh_endpoint.port)) != 0


async def test_container_that_dies_while_starting_is_still_charged(
    emulator: Emulator, gpu: AsyncRentGPU, clock: Any
) -> None:
    emulator.faults.add(Fault("dies"))
    container = await create(gpu)
    statuses = []
    for _ in range(8):
        statuses.append((await gpu.containers.get(container.id)).status)
        clock.advance(2)
    assert statuses in ([0, 0, 0, 3, 3, 3, 3, 3], [0, 0, 3, 3, 3, 3, 3, 3])
    assert (await gpu.containers.get(container.id)).ssh_endpoint is None
    assert [charge.seconds for charge in emulator.running] == [16]
    await gpu.containers.delete(container.id)
    emulator.assert_nothing_rented()


async def test_container_that_vanishes_is_charged_until_then(emulator: Emulator, gpu: AsyncRentGPU, clock: Any) -> None:
    emulator.faults.add(Fault("vanishes", seconds=60))
    free = len(await gpu.machines.list(gpu=1))
    container = await create(gpu)
    clock.advance(20)
    assert (await gpu.containers.get(container.id)).ssh_endpoint is not None
    clock.advance(100)
    with pytest.raises(NotFoundError):
        await gpu.containers.get(container.id)
    assert [listed async for listed in gpu.containers.list()] == []
    assert len(await gpu.machines.list(gpu=1)) == free
    with pytest.raises(NotFoundError):
        await gpu.containers.delete(container.id)
    # The charge ends at the vanishing: after 7.5 to 12.5 s of start and 60 s of running.
    (charge,) = emulator.charges
    assert not charge.running
    assert 67.5 <= charge.seconds <= 72.5


async def test_stopped_or_deleted_container_does_not_vanish(emulator: Emulator, gpu: AsyncRentGPU, clock: Any) -> None:
    emulator.faults.add(Fault("vanishes", seconds=60, times=2))
    stopped, deleted = await create(gpu), await create(gpu, "other")
    clock.advance(20)
    await gpu.containers.stop(stopped.id)
    await gpu.containers.delete(deleted.id)
    clock.advance(1000)
    assert (await gpu.containers.get(stopped.id)).status == 2
    assert [(charge.running, charge.seconds) for charge in emulator.charges] == [(True, 1020), (False, 20)]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("what", ["never starts", "dies"])
async def test_container_that_never_runs_does_not_vanish(
    emulator: Emulator, gpu: AsyncRentGPU, clock: Any, order: int, what: Any
) -> None:
    for fault in [Fault(what), Fault("vanishes")][::order]:
        emulator.faults.add(fault)
    container = await create(gpu)
    clock.advance(1000)
    assert (await gpu.containers.get(container.id)).status == (3 if what == "dies" else 0)


async def test_container_that_moves_has_a_new_port_from_then_on(
    emulator: Emulator, gpu: AsyncRentGPU, clock: Any
) -> None:
    emulator.faults.add(Fault("moves", nth=2))
    container = await create(gpu)
    ports = []
    for _ in range(4):
        clock.advance(20)
        endpoint = (await gpu.containers.get(container.id)).ssh_endpoint
        assert endpoint is not None
        ports.append(endpoint.port)
        await gpu.containers.restart(container.id)
    assert ports == [21001, 21001, 21002, 21002]


async def test_create_meets_an_answer_fault_and_a_container_fault_together(
    emulator: Emulator, gpu: AsyncRentGPU, clock: Any
) -> None:
    emulator.faults.add(Fault("dies"))
    emulator.faults.add(Fault("status", status=502, when="after", call="create_container"))
    emulator.faults.add(Fault("drop", call="create_container"))
    with pytest.raises(ServerError):
        await create(gpu)
    # The third fault waited, because one answer meets one fault.
    with pytest.raises(APIConnectionError):
        await create(gpu)
    assert [request.fault for request in emulator.requests.of("create_container")] == ["status, dies", "drop"]
    clock.advance(20)
    assert [container.status async for container in gpu.containers.list()] == [3]


async def test_container_fault_waits_for_a_create_that_starts_a_container(
    emulator: Emulator, gpu: AsyncRentGPU, clock: Any
) -> None:
    """A refused create starts no container, so that the fault happens to the next container."""
    emulator.faults.add(Fault("dies"))
    emulator.faults.add(Fault("stock-out"))
    emulator.faults.add(Fault("drop", call="create_container", nth=2))
    for _ in range(2):
        with pytest.raises(RentGPUError):
            await create(gpu)
    container = await create(gpu)
    assert [request.fault for request in emulator.requests.of("create_container")] == ["stock-out", "drop", "dies"]
    clock.advance(20)
    assert (await gpu.containers.get(container.id)).status == 3
