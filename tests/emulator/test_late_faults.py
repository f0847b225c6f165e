"""Requests that are slow or commit late: when the service acts, pending creates, resets, and stopping meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from bare_client import ONCE, BareClient, create, wanted
from until import until

from netmind_rentgpu import APIConnectionError, APIStatusError, APITimeoutError, AsyncRentGPU, PaymentType
from netmind_rentgpu.emulator import Emulator, Fault


@pytest.fixture
async def gpu(emulator: Emulator) -> AsyncIterator[AsyncRentGPU]:
    async with AsyncRentGPU(emulator.token, base_url=emulator.url, retries=ONCE) as gpu:
        yield gpu


async def test_slow_service_acts_although_the_caller_left(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("slow", call="create_container", seconds=2))
    with pytest.raises(APITimeoutError):
        await gpu.containers.create(**{**body, "payment_type": PaymentType.USD}, timeout=1)
    assert emulator.running == []
    await until(lambda: emulator.running)


async def test_late_create_commits_after_its_connection_broke(
    emulator: Emulator, gpu: AsyncRentGPU, clock: Any
) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("late commit", seconds=5))
    assert (await BareClient(emulator).ask("POST", "containers/", body))[0] is None
    clock.advance(4)
    assert emulator.running == []
    assert [container async for container in gpu.containers.list()] == []
    clock.advance(11)
    # The charge begins at the commit, not at the first request after it.
    assert [charge.seconds for charge in emulator.running] == [10]
    assert [container.name async for container in gpu.containers.list()] == ["mine"]


@pytest.mark.parametrize("call", ["create_auth", "create_image", "stop_container", "delete_container"])
async def test_late_call_changes_the_state_only_at_its_commit(
    emulator: Emulator, gpu: AsyncRentGPU, clock: Any, call: Any
) -> None:
    container = await create(gpu)
    clock.advance(20)
    emulator.faults.add(Fault("late commit", call=call, seconds=5))
    calls = {
        "create_auth": lambda: gpu.auths.create("other-password"),
        "create_image": lambda: gpu.images.create(name="a", image_name="b", image_tag="c", image_label="d"),
        "stop_container": lambda: gpu.containers.stop(container.id),
        "delete_container": lambda: gpu.containers.delete(container.id),
    }

    async def state() -> Any:
        return (
            len([auth async for auth in gpu.auths.list()]),
            len([image async for image in gpu.images.list(image_type=2)]),
            [(shown.id, shown.status) async for shown in gpu.containers.list()],
        )

    before = await state()
    with pytest.raises(APIConnectionError):
        await calls[call]()
    assert await state() == before
    clock.advance(5)
    assert await state() != before


async def test_late_create_that_the_service_refuses_charges_nothing(
    emulator: Emulator, gpu: AsyncRentGPU, clock: Any
) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("late commit", times=3))
    client = BareClient(emulator)
    assert (await client.ask("POST", "containers/", {**body, "node_name": "nowhere"}))[0] is None
    assert (await client.ask("POST", "containers/", []))[0] == 422
    emulator.assert_nothing_rented()
    clock.advance(100)
    assert emulator.charges == []
    async with AsyncRentGPU("another-token", base_url=emulator.url, retries=ONCE) as stranger:
        with pytest.raises(APIStatusError):
            await stranger.containers.create(**{**body, "payment_type": PaymentType.USD})
    assert emulator.charges == []


async def test_late_create_counts_as_a_leak_before_its_commit(
    emulator: Emulator, gpu: AsyncRentGPU, clock: Any
) -> None:
    emulator.faults.add(Fault("late commit", seconds=5))
    with pytest.raises(APIConnectionError):
        await create(gpu)
    (pending,) = emulator.pending_creates
    clock.advance(2)
    with pytest.raises(AssertionError) as caught:
        emulator.assert_nothing_rented()
    price = f"{pending.hourly_price} USD an hour"
    assert str(caught.value) == (
        f"1 still to be rented, for {price}:\n  mine: 1 GPU on {pending.node_name}, {price}, by 'late commit' in 3.0 s"
    )
    emulator.assert_nothing_rented(apart_from=[pending])
    clock.advance(3)
    assert (emulator.pending_creates, [charge.number for charge in emulator.running]) == ([], [pending.number])
    emulator.assert_nothing_rented(apart_from=[pending])
    with pytest.raises(AssertionError, match=r"^1 still rented, for"):
        emulator.assert_nothing_rented()
    await gpu.containers.delete(1001)
    emulator.assert_nothing_rented()


async def test_late_create_that_can_only_be_refused_is_not_pending(clock: Any) -> None:
    faults = [Fault("late commit", seconds=60, times="all")]
    async with Emulator(clock=clock, boot_seconds=0, balance=Decimal("0.01"), faults=faults) as emulator:
        client = BareClient(emulator)
        async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
            machine = (await gpu.machines.list())[0]
        body = {
            "name": "x",
            "auth_id": 1,
            "gpu": 1,
            "node_name": machine.node_name,
            "image_template_id": 1,
            "payment_type": 0,
        }
        # The auth of the first may be created in time; the second wants more GPUs than the machine has.
        await client.ask("POST", "containers/", body)
        await client.ask("POST", "containers/", {**body, "gpu": (machine.gpu_count or 0) + 1})
        assert emulator.pending_creates == []
        emulator.faults.clear()
        await client.ask("POST", "auths/", {"value": "a-password"})
        assert [pending.name for pending in emulator.pending_creates] == ["x"]
        await client.ask("POST", "containers/", {**body, "name": "dear"})
        emulator.assert_nothing_rented(apart_from=[*emulator.running, *emulator.pending_creates])
        clock.advance(59)
        assert len(emulator.pending_creates) == 1
        clock.advance(1)
        assert (emulator.pending_creates, len(emulator.running)) == ([], 2)
        clock.advance(36000)
        emulator.faults.add(Fault("late commit"))
        await client.ask("POST", "containers/", body)
        assert emulator.pending_creates == []


async def test_late_refusal_uses_no_container_fault_up(emulator: Emulator, gpu: AsyncRentGPU, clock: Any) -> None:
    body = await wanted(gpu)
    client = BareClient(emulator)
    for fault in (Fault("dies"), Fault("late commit", times=2)):
        emulator.faults.add(fault)
    await client.ask("POST", "containers/", {**body, "node_name": "nowhere"})
    clock.advance(5)
    assert emulator.requests[-1].fault == "late commit"
    await client.ask("POST", "containers/", body)
    assert emulator.requests[-1].fault == "late commit"
    clock.advance(5)
    assert len(emulator.running) == 1
    # The container fault is chosen and recorded when the container starts.
    assert emulator.requests[-1].fault == "late commit, dies"
    clock.advance(20)
    assert (await gpu.containers.get(1001)).status == 3


async def test_slow_create_counts_as_a_leak_before_its_commit(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("slow", call="create_container", seconds=600))
    emulator.faults.add(Fault("slow", call="create_container", seconds=600))
    asking = [
        asyncio.create_task(BareClient(emulator).ask("POST", "containers/", content))
        for content in (body, {**body, "gpu": 0})
    ]
    await until(lambda: len(emulator.requests.of("create_container")) == 2 and emulator.requests[-1].fault is not None)
    (pending,) = emulator.pending_creates
    with pytest.raises(AssertionError, match=r"^1 still to be rented, .*\n  mine: 1 GPU on .* an hour, by 'slow'$"):
        emulator.assert_nothing_rented()
    emulator.assert_nothing_rented(apart_from=[pending])
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    assert emulator.pending_creates == [pending]


async def test_slow_create_keeps_its_number_in_the_bill(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("slow", call="create_container", seconds=0))
    assert (await BareClient(emulator).ask("POST", "containers/", body))[0] == 200
    assert emulator.pending_creates == []
    assert [charge.number for charge in emulator.charges] == [1]


async def test_reset_discards_a_create_in_flight(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("slow", call="create_container", seconds=0.2))
    asking = asyncio.create_task(BareClient(emulator).ask("POST", "containers/", body))
    await until(lambda: emulator.requests.of("create_container"))
    faults = emulator.faults
    emulator.reset()
    await gpu.auths.create("a-password")
    assert (await asking)[0] == 200
    assert emulator.charges == []
    faults.add(Fault("status", status=503, call="get_auth"))
    assert (await BareClient(emulator).ask("GET", "auths/1"))[0] == 503


async def test_stopping_waits_for_no_hanging_or_slow_request() -> None:
    faults = [Fault("hang"), Fault("slow", seconds=600, nth=2), Fault("slow", seconds=600, nth=3, when="after")]
    async with Emulator(faults=faults) as emulator:
        before = asyncio.all_tasks()
        waiting = [asyncio.create_task(BareClient(emulator).ask("GET", "machines")) for _ in range(3)]
        await until(lambda: len(emulator.requests) == 3)
    # The last request was answered, too early, because the service had acted already.
    assert sorted([(await task)[0] or 0 for task in waiting]) == [0, 0, 200]
    assert asyncio.all_tasks() <= before
