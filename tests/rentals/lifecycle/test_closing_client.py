"""Closing a client that still has rentals."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from lifecycle import refuse_deletes
from rented import IMAGE, cancel_twice, client
from until import until

from netmind_rentgpu import ClientStateError
from netmind_rentgpu.emulator import Emulator, Fault


async def test_closed_client_deletes_its_rentals_and_refuses_new_ones(emulator: Emulator, state: Path) -> None:
    gpu = client(emulator, state)
    rental = await gpu.rent(image=IMAGE).__aenter__()
    # Otherwise it may be ready before the next look.
    emulator.faults.add(Fault("never starts"))
    late = gpu.rent(image=IMAGE)
    entering = asyncio.create_task(late.__aenter__())
    await until(lambda: len(emulator.requests.of("create_container")) == 2)
    await gpu.close()
    emulator.assert_nothing_rented()
    with pytest.raises(ClientStateError):
        await entering
    with pytest.raises(ClientStateError, match="it was closed"):
        await rental.run("true")
    await rental.__aexit__(None, None, None)
    with pytest.raises(ClientStateError, match="closed"):
        await gpu.rent(image=IMAGE).__aenter__()


async def test_client_close_that_is_cancelled_once_still_deletes_its_rental(emulator: Emulator, state: Path) -> None:
    gpu = client(emulator, state)
    emulator.faults.add(Fault("slow", call="create_container", seconds=0.3, when="after"))
    emulator.faults.add(Fault("never starts"))
    entering = asyncio.create_task(gpu.rent(image=IMAGE).__aenter__())
    await until(lambda: bool(emulator.requests.of("create_container")))
    closing = asyncio.create_task(gpu.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(ClientStateError):
        await entering
    emulator.assert_nothing_rented()


async def test_client_close_that_is_cancelled_twice_says_which_containers_are_left(
    emulator: Emulator, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = client(emulator, state)
    await gpu.rent(image=IMAGE).__aenter__()
    refuse_deletes(emulator, "all")
    closing = asyncio.create_task(gpu.close())
    await until(lambda: bool(emulator.requests.of("delete_container")))
    await cancel_twice(closing)
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await closing
    assert "could not be deleted" in cancelled.value.__notes__[0]
    emulator.faults.clear()
    async with client(emulator, state) as other:
        assert len((await other.rentals.reap()).deleted) == 1
    emulator.assert_nothing_rented()


async def test_client_close_does_not_cut_short_a_deletion_under_way(emulator: Emulator, state: Path) -> None:
    gpu = client(emulator, state)
    emulator.faults.add(Fault("never reachable"))
    refuse_deletes(emulator, 10)
    entering = asyncio.create_task(gpu.rent(image=IMAGE).__aenter__())
    await until(lambda: bool(emulator.running))
    entering.cancel()
    await until(lambda: bool(emulator.requests.of("delete_container")))
    await gpu.close()
    with pytest.raises(asyncio.CancelledError):
        await entering
    emulator.assert_nothing_rented()


async def test_rental_that_a_closing_client_refused_can_be_closed(emulator: Emulator, state: Path) -> None:
    gpu = client(emulator, state)
    await gpu.rent(image=IMAGE).__aenter__()
    refuse_deletes(emulator, "all")
    closing = asyncio.create_task(gpu.close())
    await until(lambda: gpu._context.closing)
    late = gpu.rent(image=IMAGE)
    with pytest.raises(ClientStateError, match="being closed"):
        await late.__aenter__()
    emulator.faults.clear()
    async with asyncio.timeout(60):
        await late.close()
    await closing
    emulator.assert_nothing_rented()
