"""Detaching a rental while its task is cancelled, its client closes, or its shell reconnects."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from rented import IMAGE
from until import until

from netmind_rentgpu import AsyncRentGPU, ClientStateError, RentalRecord, RentGPUError
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.rentals.ledger.clocks import read_clocks
from netmind_rentgpu.rentals.ledger.store import Ledger


async def test_rental_whose_detach_is_cancelled_is_detached(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async def body() -> None:
        async with gpu.rent(image=IMAGE) as rental:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
            await rental.detach()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(body())
    (record,) = await gpu.rentals.list()
    assert record.stage == "detached"
    assert len(emulator.running) == 1
    async with gpu.rentals.attach(record):
        pass
    emulator.assert_nothing_rented()


async def test_rental_whose_detach_is_cancelled_does_not_expire_in_this_process(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    detach = Ledger.detach

    async def cancel_and_detach(self: Ledger, record: RentalRecord) -> RentalRecord:
        using.cancel()
        return await detach(self, record)

    monkeypatch.setattr(Ledger, "detach", cancel_and_detach)

    async def use() -> RentalRecord:
        async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=3)) as rental:
            expires_at = rental.expires_at
            assert expires_at is not None
            with pytest.raises(asyncio.CancelledError):
                await rental.detach()
            using.uncancel()
            # Its expiry passes without an end, because the detached rental is the reaper's.
            await until(lambda: read_clocks().wall > expires_at)
            await asyncio.sleep(0)
            assert len(emulator.running) == 1
        (record,) = await gpu.rentals.list()
        return record

    using = asyncio.create_task(use())
    record = await using
    assert (record.stage, record.owner) == ("detached", None)
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


async def test_detach_during_a_close_of_the_client_fails_and_the_container_is_deleted(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    detach = Ledger.detach

    async def close_client_and_detach(self: Ledger, record: RentalRecord) -> RentalRecord:
        monkeypatch.undo()
        await gpu.close()
        return await detach(self, record)

    rental = await gpu.rent(image=IMAGE).__aenter__()
    monkeypatch.setattr(Ledger, "detach", close_client_and_detach)
    with pytest.raises(ClientStateError, match="closed"):
        await rental.detach()
    emulator.assert_nothing_rented()


async def test_shell_that_reconnects_during_detach_leaves_no_connection(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rental = await gpu.rent(image=IMAGE).__aenter__()
    first = rental.shell
    await gpu.containers.restart(rental.container.id)
    await until(lambda: first.lost)
    await gpu.containers.wait_ready(rental.container.id, timeout=20)
    log_in, go_on = gpu._credentials.log_in, asyncio.Event()
    connections: list[Any] = []

    async def log_in_slowly(*arguments: Any, **keywords: Any) -> Any:
        connections.append(await log_in(*arguments, **keywords))
        await go_on.wait()
        return connections[0]

    monkeypatch.setattr(gpu._credentials, "log_in", log_in_slowly)
    running = asyncio.create_task(rental.run("true"))
    await until(lambda: bool(connections))
    record = await rental.detach()
    go_on.set()
    with pytest.raises(RentGPUError, match="detached"):
        await running
    assert connections[0].is_closed()
    monkeypatch.undo()
    async with gpu.rentals.attach(record):
        pass
    emulator.assert_nothing_rented()
