"""`gpu.containers`, against the emulator."""

from decimal import Decimal
from typing import Any

import pytest

from netmind_rentgpu import (
    AsyncRentGPU,
    Container,
    InvalidArgumentError,
    InvalidRequestError,
    Machine,
    NotFoundError,
    PaymentType,
    ServiceProfile,
    SSHEndpoint,
)
from netmind_rentgpu.emulator import Emulator


@pytest.fixture
async def machine(gpu: AsyncRentGPU) -> Machine:
    return (await gpu.machines.list(gpu=4))[0]


@pytest.fixture
async def wanted(gpu: AsyncRentGPU, machine: Machine) -> dict[str, Any]:
    auth = await gpu.auths.create("a-password")
    return {
        "name": "mine",
        "auth_id": auth.id,
        "gpu": 2,
        "node_name": machine.node_name,
        "image_template_id": 1,
        "payment_type": PaymentType.USD,
    }


async def test_container_life_cycle_is_billed_and_ends_deleted(
    emulator: Emulator, gpu: AsyncRentGPU, machine: Machine, wanted: dict[str, Any], clock: Any
) -> None:
    container = await gpu.containers.create(**wanted)
    asked = {name: value for name, value in wanted.items() if name != "payment_type"}
    assert {name: getattr(container, name) for name in asked} == asked
    assert (container.extra, container.ssh, container.ssh_endpoint, container.disk_size) == ({}, "", None, 200)
    assert container.cpu == (machine.cpu_per_gpu or 0) * 2
    assert container.memory == (machine.memory_per_gpu or 0) * 2
    assert container.gpu_name == machine.gpu_id

    clock.advance(13)
    ready = await gpu.containers.get(container.id)
    assert ready.ssh_endpoint == SSHEndpoint("127.0.0.1", 21001, "root")
    assert ready.status != container.status

    stopped = await gpu.containers.stop(container.id)
    assert (stopped.ssh_endpoint, stopped.id) == (None, container.id)
    restarted = await gpu.containers.restart(container.id)
    assert restarted.ssh_endpoint is None
    clock.advance(13)
    assert (await gpu.containers.get(container.id)).ssh_endpoint is not None

    clock.advance(3600 - 26)
    gone = await gpu.containers.delete(container.id)
    assert isinstance(gone, Container)
    assert gone.id == container.id
    assert emulator.running == []
    assert machine.price is not None
    assert emulator.spent == machine.price * 2
    assert emulator.spent > Decimal(0)


async def test_deleted_container_is_not_found_by_any_call(gpu: AsyncRentGPU, wanted: dict[str, Any]) -> None:
    container = await gpu.containers.create(**wanted)
    await gpu.containers.delete(container.id)
    for call in (gpu.containers.get, gpu.containers.stop, gpu.containers.restart, gpu.containers.delete):
        with pytest.raises(NotFoundError):
            await call(container.id)
    assert await gpu.containers.delete(container.id, missing_ok=True) is None
    assert [container async for container in gpu.containers.list()] == []


async def test_stock_falls_with_a_create_and_returns_with_a_delete(
    gpu: AsyncRentGPU, machine: Machine, wanted: dict[str, Any]
) -> None:
    everything = {**wanted, "gpu": machine.gpu_count}
    container = await gpu.containers.create(**everything)
    with pytest.raises(InvalidRequestError, match="0 free GPUs"):
        await gpu.containers.create(**everything)
    assert machine not in await gpu.machines.list()
    await gpu.containers.delete(container.id)
    assert machine in await gpu.machines.list()


async def test_long_list_of_containers_is_walked_page_by_page(gpu: AsyncRentGPU) -> None:
    auth = await gpu.auths.create("a-password")
    made = [
        await gpu.containers.create(
            name=f"c{number}",
            auth_id=auth.id,
            node_name=machine.node_name,
            image_template_id=1,
            payment_type="USD",
        )
        for number, machine in enumerate(await gpu.machines.list())
    ]
    ids = [container.id for container in made]
    assert [container.id async for container in gpu.containers.list()] == ids
    assert [container.id async for container in gpu.containers.list(page_size=7)] == ids
    assert [container.id async for container in gpu.containers.list(marker=ids[49])] == ids[50:]
    async for container in gpu.containers.list(page_size=7):
        await gpu.containers.delete(container.id)
    assert (await gpu.containers.list()).items == ()


async def test_payment_type_is_sent_with_the_number_of_the_profile(wanted: dict[str, Any]) -> None:
    import json

    from hostile import Hostile, answer

    async with Hostile([answer()]) as server:
        for payment_type, profile, number in (
            (PaymentType.USD, None, 0),
            ("CNY", None, 2),
            (7, None, 7),
            (PaymentType.USD, ServiceProfile(payment_types={"USD": 4}), 4),
        ):
            async with AsyncRentGPU("t", base_url=server.url, profile=profile) as gpu:
                await gpu.containers.create(**{**wanted, "payment_type": payment_type})
            assert json.loads(server.seen[-1].body) == {**wanted, "payment_type": number}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"gpu": 0}, "gpu: must be from 1 to 12"),
        ({"gpu": 13}, "gpu: must be from 1 to 12"),
        ({"gpu": 1.0}, "gpu: must be a whole number"),
        ({"name": None}, "name: must be a text"),
        ({"name": "a\udcff"}, "name: holds half a character"),
        ({"auth_id": 2**64}, "auth_id: must fit in 64 bits"),
        ({"auth_id": 10**5000}, "auth_id: must fit in 64 bits"),
        ({"payment_type": 2**70}, "payment_type: must be a number from 0 to 2147483647"),
        ({"auth_id": "1"}, "auth_id: must be a whole number"),
        ({"image_template_id": None}, "image_template_id: must be a whole number"),
        ({"node_name": 7}, "node_name: must be a text"),
        ({"payment_type": "EUR"}, "payment_type: the profile has no number for 'EUR'; it has USD, NMT, CNY"),
    ],
)
async def test_create_arguments_beyond_a_limit_are_refused(
    emulator: Emulator, gpu: AsyncRentGPU, wanted: dict[str, Any], change: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        await gpu.containers.create(**{**wanted, **change})
    assert emulator.charges == []


async def test_container_ids_that_are_no_whole_numbers_are_refused(gpu: AsyncRentGPU) -> None:
    calls: list[Any] = [gpu.containers.get, gpu.containers.stop, gpu.containers.restart, gpu.containers.delete]
    for call in calls:
        for wrong in ("1", 1.0, True, None):
            with pytest.raises(InvalidArgumentError, match="container_id: must be a whole number"):
                await call(wrong)
