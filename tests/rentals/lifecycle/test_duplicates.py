"""Containers that the service creates twice from one create attempt."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import pytest
from lifecycle import create_again, most_gpus_first, put_as_it_is, set_limits
from rented import IMAGE

from netmind_rentgpu import APIConnectionError, AsyncRentGPU, Container, PermissionDeniedError, ReleaseError
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.requests import NewContainer


def create_twice(gpu: AsyncRentGPU) -> None:
    """Replace a client's create with one that creates two containers and loses the answer."""
    create = gpu.containers._create

    async def create_two(new: NewContainer, **options: Any) -> Any:
        await create(new, **options)
        await create(new, **options)
        raise APIConnectionError("it broke", maybe_processed=True)

    gpu.containers._create = create_two  # type: ignore[method-assign]  # only this client's create is replaced


async def test_duplicate_is_deleted_before_the_rental_starts(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    create_twice(gpu)
    emulator.faults.add(Fault("status", call="delete_container", status=500))
    async with gpu.rent(image=IMAGE, key=most_gpus_first) as rental:
        assert (await rental.run("true")).ok
        assert [charge.container_id for charge in emulator.running] == [rental.container.id]
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("gives_way", [True, False])
async def test_duplicate_that_cannot_be_deleted_at_once_ends_the_entry(
    gpu: AsyncRentGPU, emulator: Emulator, gives_way: bool
) -> None:
    set_limits(gpu, deletion=0.3)
    create_twice(gpu)
    times = 1 if gives_way else "all"
    emulator.faults.add(Fault("status", call="delete_container", path="*/1002", status=403, times=times))
    with pytest.raises(PermissionDeniedError) as raised:
        await gpu.rent(image=IMAGE, key=most_gpus_first).__aenter__()
    # The first container is deleted whatever becomes of the second.
    assert [charge.container_id for charge in emulator.running] == ([] if gives_way else [1002])
    assert bool(getattr(raised.value, "__notes__", ())) is not gives_way
    emulator.faults.clear()
    assert (await gpu.rentals.reap(wait=True)).clean
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


@pytest.mark.parametrize("answered", [False, True])
async def test_duplicate_created_during_the_rental_is_deleted_on_leaving(
    gpu: AsyncRentGPU, emulator: Emulator, answered: bool
) -> None:
    create = gpu.containers._create
    late: list[asyncio.Task[Container]] = []
    go_on = asyncio.Event()

    async def create_and_repeat_later(new: NewContainer, **options: Any) -> Container:
        async def again() -> Container:
            await go_on.wait()
            return await create(new, **options)

        late.append(asyncio.create_task(again()))
        container = await create(new, **options)
        if answered:
            return container
        raise APIConnectionError("it broke", maybe_processed=True)

    gpu.containers._create = create_and_repeat_later  # type: ignore[method-assign]  # only this client's create is replaced
    async with gpu.rent(image=IMAGE, key=most_gpus_first):
        go_on.set()
        await late[0]
        assert len(emulator.running) == 2
    emulator.assert_nothing_rented()
    assert (await gpu.rentals.reap(wait=True)).clean


async def test_duplicate_that_cannot_be_deleted_on_leaving_stays_on_record(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    set_limits(gpu, deletion=0.1)
    with pytest.raises(ReleaseError, match="made it twice"):
        async with gpu.rent(image=IMAGE, key=most_gpus_first) as rental:
            duplicate = await create_again(gpu, rental.name, rental.machine.node_name)
            # The deletion of the first container succeeds, all others fail.
            emulator.faults.add(Fault("status", call="delete_container", status=503, nth=2, times="all"))
    assert [charge.container_id for charge in emulator.running] == [duplicate.id]
    emulator.faults.clear()
    (record,) = await gpu.rentals.list()
    assert (record.stage, record.container_id) == ("abandoned", None)
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


async def test_duplicate_left_by_a_killed_process_is_reaped_too(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE, key=most_gpus_first) as rental:
        record = await rental.detach()
        await create_again(gpu, record.name, record.node_name)
    await put_as_it_is(gpu, attrs.evolve(record, expires_at=record.intended_at))
    assert (await gpu.rentals.reap()).clean
    emulator.assert_nothing_rented()
