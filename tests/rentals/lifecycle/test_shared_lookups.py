"""Lookups that several callers wait for and share."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rented import IMAGE, PROFILE
from until import until

from netmind_rentgpu import AsyncRentGPU, PermissionDeniedError
from netmind_rentgpu.emulator import Emulator, Fault


async def test_rentals_waiting_for_the_image_list_share_its_failure(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="list_images", status=403, times="all"))
    rentals = [gpu.rent(image=IMAGE) for _ in range(20)]
    outcomes = await asyncio.gather(*(rental.__aenter__() for rental in rentals), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {PermissionDeniedError}
    assert len(emulator.requests.of("list_images")) <= 3


async def test_callers_waiting_for_a_list_share_its_failure(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="list_containers", status=403, times="all"))
    outcomes = await asyncio.gather(*(gpu._context.container_index.read() for _ in range(20)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {PermissionDeniedError}
    assert len(emulator.requests.of("list_containers")) <= 2
    emulator.faults.add(Fault("status", call="list_machines", status=403, times="all"))
    outcomes = await asyncio.gather(*(gpu.offers() for _ in range(20)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {PermissionDeniedError}
    assert len(emulator.requests.of("list_machines")) <= 2


async def test_waiters_walk_the_list_again_when_the_first_caller_is_cancelled(emulator: Emulator, state: Path) -> None:
    emulator.faults.add(Fault("hang", call="list_containers"))
    # The hanging request has time, so that nothing but the cancellation ends it.
    async with AsyncRentGPU(emulator.token, base_url=emulator.url, state=state, profile=PROFILE) as gpu:
        read = gpu._context.container_index.read
        first = asyncio.create_task(read())
        await until(lambda: bool(emulator.requests.of("list_containers")))
        async with gpu.rent(image=IMAGE) as rental:
            others = [asyncio.create_task(read()) for _ in range(2)]
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait({first})
            others[0].cancel()
            # The remaining waiter sees the container, because it walks the list itself.
            assert [container.id for container in (await others[1]).containers] == [rental.container.id]
