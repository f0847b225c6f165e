"""Rentals that wait for a machine: one list of the machines for all of them, events, and the end of the wait."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal

import pytest
from rented import IMAGE
from until import until

from netmind_rentgpu import (
    AsyncRentGPU,
    AuthenticationError,
    ClientStateError,
    NoMachineError,
    RentalEvent,
)
from netmind_rentgpu.emulator import Emulator, Fault

LONG = timedelta(hours=2)
# No machine is as cheap.
NOTHING = Decimal("0.000001")


async def only_one(gpu: AsyncRentGPU) -> list[str]:
    """Return the nodes of all machines but one that has one GPU."""
    offers = await gpu.offers()
    kept = next(offer.machine.node_name for offer in offers if offer.machine.gpu_count == 1)
    return [offer.machine.node_name for offer in offers if offer.machine.node_name != kept]


async def test_rental_waits_until_another_has_given_its_machine_back(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    others = await only_one(gpu)
    events: list[RentalEvent] = []
    first = await gpu.rent(image=IMAGE, exclude=others).open()
    with pytest.raises(NoMachineError):
        await gpu.rent(image=IMAGE, exclude=others).open()
    second = gpu.rent(image=IMAGE, exclude=others, label="mine", wait_for_stock=LONG, on_event=events.append)
    waiting = asyncio.create_task(second.open())
    await until(lambda: events)
    assert [event.kind for event in events] == ["out_of_stock"]
    (event,) = events
    assert (event.name, event.node_name, event.intended_at, event.label) == (None, None, None, "mine")
    assert event.reason
    assert str(event).startswith("no machine is available: ")
    assert "the machines are listed again and again until " in str(event)
    assert event.to_dict(json=True)["name"] is None
    await first.close()
    # The refusal of a machine counts for a minute, and another list shows whether it is free.
    gpu._context.catalog._refused.clear()
    await waiting
    assert second.machine.node_name == first.machine.node_name
    assert [event.kind for event in events].count("out_of_stock") == 1
    assert [event.kind for event in events][-1] == "ready"
    await second.close()
    emulator.assert_nothing_rented()


async def test_two_hundred_that_wait_cost_one_list_each_tick(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    rentals = [gpu.rent(image=IMAGE, max_price=NOTHING, wait_for_stock=LONG) for _ in range(200)]
    watch, ticks = gpu._context.catalog._stock, 0
    list_machines = watch._list_machines

    async def counting(currency: str) -> list[object]:
        nonlocal ticks
        ticks += 1
        return await list_machines(currency)  # type: ignore[return-value]  # as it is

    watch._list_machines = counting  # type: ignore[assignment]  # counts
    waiting = [asyncio.create_task(rental.open()) for rental in rentals]
    await until(lambda: ticks >= 1)
    # One list showed each of them that there is none.
    first = len(emulator.requests.of("list_machines"))
    assert first <= 2
    await until(lambda: ticks >= 4)
    assert len(emulator.requests.of("list_machines")) - first <= ticks
    assert len(emulator.requests.of("create_container")) == 0
    for task in waiting:
        task.cancel()
    assert {type(end) for end in await asyncio.gather(*waiting, return_exceptions=True)} == {asyncio.CancelledError}
    # Nothing asks on.
    assert all(tick.task is None or tick.task.done() for tick in watch._ticks.values())


async def test_machines_that_come_in_stock_go_to_those_that_wait_and_none_is_asked_twice(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    emulator.faults.add(Fault("stock-out", times="all"))
    events: list[str] = []
    rentals = [
        gpu.rent(
            image=IMAGE, gpu_name="RTX 4090", wait_for_stock=LONG, on_event=lambda event: events.append(event.kind)
        )
        for _ in range(2)
    ]
    waiting = [asyncio.create_task(rental.open()) for rental in rentals]
    await until(lambda: events.count("out_of_stock") == 2)
    emulator.faults.clear()
    gpu._context.catalog._refused.clear()
    await asyncio.gather(*waiting)
    assert len(emulator.running) == 2
    await asyncio.gather(*(rental.close() for rental in rentals))
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("stock", [None, timedelta(seconds=6)])
async def test_rental_that_waits_in_vain_says_so(gpu: AsyncRentGPU, stock: timedelta | None) -> None:
    text = "none of the .* machines on offer will do" + ("" if stock is None else r".*; none was available within 6 s")
    with pytest.raises(NoMachineError, match=text):
        await gpu.rent(image=IMAGE, max_price=NOTHING, wait_for_stock=stock).open()


async def test_wait_for_stock_does_not_count_in_the_time_of_the_start(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    others = await only_one(gpu)
    first = await gpu.rent(image=IMAGE, exclude=others).open()
    # As long as a busy machine may need for the start.
    timeout, now = 8.0, asyncio.get_running_loop().time
    second = gpu.rent(image=IMAGE, exclude=others, wait_for_stock=LONG, timeout=timeout)
    waiting = asyncio.create_task(second.open())
    end = now() + timeout + 1
    await until(lambda: now() > end)
    assert not waiting.done()
    await first.close()
    gpu._context.catalog._refused.clear()
    await waiting
    await second.close()
    emulator.assert_nothing_rented()


async def test_errors_of_the_list_are_waited_out_or_raised(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    rental = gpu.rent(image=IMAGE, max_price=NOTHING, wait_for_stock=LONG)
    waiting = asyncio.create_task(rental.open())
    await until(lambda: len(emulator.requests.of("list_machines")) >= 2)
    for fault in ("drop", "html"):
        emulator.faults.add(Fault(fault, call="list_machines", times=1))  # type: ignore[arg-type]  # names of faults
    emulator.faults.add(Fault("status", call="list_machines", status=503, times=5))
    await until(lambda: not emulator.faults.unmet)
    assert not waiting.done()
    emulator.revoke_token(emulator.token)
    with pytest.raises(AuthenticationError):
        await waiting


async def test_closing_the_client_ends_the_wait(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    waiting = asyncio.create_task(gpu.rent(image=IMAGE, max_price=NOTHING, wait_for_stock=LONG).open())
    await until(lambda: len(emulator.requests.of("list_machines")) >= 2)
    await gpu.close()
    with pytest.raises(ClientStateError):
        await waiting
    ticks = gpu._context.catalog._stock._ticks.values()
    assert all(tick.task is None or tick.task.done() for tick in ticks)


async def test_machine_that_did_not_start_is_no_reason_to_wait(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("never starts", times="all"))
    with pytest.raises(NoMachineError, match="3 machines did not start"):
        await gpu.rent(image=IMAGE, wait_for_stock=LONG, start_timeout=1).open()
    emulator.assert_nothing_rented()


async def test_gpu_that_has_gone_from_the_list_is_still_waited_for(gpu: AsyncRentGPU) -> None:
    name = next(offer.machine.gpu_name for offer in await gpu.offers() if offer.machine.gpu_name)
    request = gpu._renting.request(
        gpu_name=name,
        gpus=1,
        regions=None,
        max_price=None,
        min_memory=None,
        min_gpu_memory=None,
        min_disk=None,
        min_cuda=None,
        nvlink=None,
        labels=(),
        exclude=(),
        key=None,
        payment_type="USD",
    )
    assert gpu._renting._ranked_of([], request)[1] == "no machine is on offer"
