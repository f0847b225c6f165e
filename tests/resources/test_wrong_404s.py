"""404s that are not true: where a call would conclude from one that a container is gone, the list has to agree."""

from __future__ import annotations

import asyncio
import re

import pytest
from bare_client import create
from hostile import Hostile, answer
from responses import Responses
from until import until

from netmind_rentgpu import AsyncRentGPU, ContainerGoneError, NotFoundError, conditions
from netmind_rentgpu.emulator import Clock, Emulator, Fault

# What gateways answer with.
BODIES = [
    (b"<html><head><title>404 Not Found</title></head><body>nginx</body></html>", "text/html"),
    (b"default backend - 404", "text/plain"),
    (b"", "text/plain"),
    (b'{"detail": "Not Found"}', "application/json"),
]


@pytest.mark.parametrize(("body", "content_type"), BODIES)
async def test_deletion_that_a_gateway_answers_with_404_raises_not_found(
    gpu: AsyncRentGPU, emulator: Emulator, body: bytes, content_type: str
) -> None:
    container = await create(gpu)
    listed = [f"{emulator.url}/v1/rentgpu/containers/?", f"{emulator.url}/v1/rentgpu/containers/ "]
    with Responses(passthrough=listed) as responses:
        responses.delete(
            re.compile(r".*/containers/\d+$"), status=404, body=body, content_type=content_type, repeat=True
        )
        with pytest.raises(NotFoundError):
            await gpu.containers.delete(container.id, missing_ok=True)
    assert len(emulator.running) == 1
    assert emulator.requests.of("list_containers")


async def test_deletion_of_a_container_that_is_gone_returns_none(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    container = await create(gpu)
    await gpu.request("DELETE", f"containers/{container.id}")
    assert await gpu.containers.delete(container.id, missing_ok=True) is None
    assert len(emulator.requests.of("list_containers")) == 1
    with pytest.raises(NotFoundError):
        await gpu.containers.delete(container.id)
    # Without `missing_ok` nothing is concluded, and so nothing asked for.
    assert len(emulator.requests.of("list_containers")) == 1


async def test_second_deletion_by_the_same_client_needs_no_list(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    container = await create(gpu)
    await gpu.containers.delete(container.id)
    assert await gpu.containers.delete(container.id, missing_ok=True) is None
    assert not emulator.requests.of("list_containers")


async def test_deletions_share_one_walk(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    await asyncio.gather(*(gpu.containers.delete(10_000 + number, missing_ok=True) for number in range(50)))
    assert len(emulator.requests.of("list_containers")) <= 3


async def test_deletion_whose_list_cannot_be_read_raises_not_found(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="list_containers", status=403))
    with pytest.raises(NotFoundError):
        await gpu.containers.delete(10_000, missing_ok=True)
    assert await gpu.containers.delete(10_000, missing_ok=True) is None


async def test_lost_answer_followed_by_a_wrong_404_raises_not_found(emulator: Emulator) -> None:
    async with AsyncRentGPU(emulator.token, base_url=emulator.url, retries=1) as gpu:
        container = await create(gpu)
        emulator.faults.add(Fault("status", call="delete_container", status=502))
        emulator.faults.add(Fault("status", call="delete_container", status=404, nth=2))
        with pytest.raises(NotFoundError):
            await gpu.containers.delete(container.id)
        assert len(emulator.running) == 1


async def test_get_raises_not_found_as_the_service_does(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    container = await create(gpu)
    emulator.faults.add(Fault("status", call="get_container", status=404))
    with pytest.raises(NotFoundError):
        await gpu.containers.get(container.id)
    assert not emulator.requests.of("list_containers")


async def test_list_with_an_unreadable_item_does_not_agree_with_a_404() -> None:
    not_found = answer({"detail": "Not Found"}, 404)
    async with (
        Hostile([not_found, answer([{"name": "no id"}]), answer([])]) as server,
        AsyncRentGPU("t", base_url=server.url, retries=0) as gpu,
    ):
        with pytest.raises(NotFoundError):
            await gpu.containers.delete(1, missing_ok=True)


# Waits.


async def test_wait_goes_on_where_the_list_shows_what_a_404_denies(clock: Clock) -> None:
    async with (
        Emulator(seed=7, boot_seconds=10, clock=clock) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url, retries=0) as gpu,
    ):
        container = await create(gpu)
        emulator.faults.add(Fault("status", call="get_container", status=404, times="all"))
        waiting = asyncio.create_task(gpu.containers.wait(container.id, until=conditions.has_ssh))
        gone = asyncio.create_task(gpu.containers.wait(container.id, until=conditions.gone))
        await until(lambda: len(emulator.requests.of("list_containers")) > 1)
        clock.advance(20)
        assert (await waiting).ssh_endpoint is not None
        assert not gone.done()
        await gpu.request("DELETE", f"containers/{container.id}")
        assert (await gone).id == container.id


async def test_wait_for_a_container_that_is_gone_ends_once_the_list_agrees(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    container = await create(gpu)
    await gpu.request("DELETE", f"containers/{container.id}")
    with pytest.raises(ContainerGoneError):
        await gpu.containers.wait(container.id, until=conditions.has_ssh)
    assert len(emulator.requests.of("list_containers")) == 1


async def test_wait_ends_once_the_list_can_be_read(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    await create(gpu, "another")
    emulator.faults.add(Fault("status", call="list_containers", status=503, times=3))
    with pytest.raises(ContainerGoneError):
        await gpu.containers.wait(10_000, until=conditions.has_ssh)
    assert len(emulator.requests.of("list_containers")) >= 4


async def test_wait_for_what_this_client_has_deleted_needs_no_list(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    container = await create(gpu)
    await gpu.containers.delete(container.id)
    await gpu.containers.wait_all([container.id], until=conditions.gone)
    assert len(emulator.requests.of("list_containers")) <= 1
