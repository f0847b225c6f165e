"""Attaching to a detached rental."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs import FOLDER
from rented import IMAGE, client
from until import until

from netmind_rentgpu import (
    AsyncRentGPU,
    ClientStateError,
    NotFoundError,
    RentalEndedError,
    RentalInUseError,
    RentalNotFoundError,
    RentalRecord,
    StateFileError,
    WaitTimeoutError,
)
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.rentals.ledger.store import Ledger


async def test_rental_that_one_404_denies_stays_detached(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    emulator.faults.add(Fault("status", call="get_container", status=404))
    with pytest.raises(NotFoundError):
        await gpu.rentals.attach(record).__aenter__()
    assert [detached.stage for detached in await gpu.rentals.list()] == ["detached"]
    async with gpu.rentals.attach(record) as attached:
        assert (await attached.run("true")).ok
    emulator.assert_nothing_rented()


async def test_detached_rental_is_attached_by_another_client_and_deleted(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
        with pytest.raises(ClientStateError, match="detached"):
            await rental.run("true")
        with pytest.raises(ClientStateError, match="detached"):
            await rental.detach()
    assert [charge.name for charge in emulator.running] == [record.name]
    assert (await gpu.rentals.reap(wait=True)).deleted == ()
    async with client(emulator, state) as other:
        (found,) = await other.rentals.list()
        assert (found.name, found.stage, found.owner) == (record.name, "detached", None)
        async with other.rentals.attach(found) as attached:
            assert (await attached.run("true")).ok
            assert attached.expires_at == rental.expires_at
            assert attached.machine.node_name == rental.machine.node_name
            # The first client can neither attach nor reap the rental meanwhile.
            with pytest.raises(RentalInUseError, match="is in use: this process uses it"):
                await gpu.rentals.attach(record.name).__aenter__()
            assert (await gpu.rentals.reap()).deleted == ()
            assert (await attached.run("true")).ok
    emulator.assert_nothing_rented()
    with pytest.raises(RentalNotFoundError, match=r"no rental .* is on record"):
        await gpu.rentals.attach(record).__aenter__()


async def test_rental_that_cannot_be_attached_stays_detached(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    await gpu.containers.stop(rental.container.id)
    with pytest.raises(WaitTimeoutError):
        await gpu.rentals.attach(record, timeout=0.5).__aenter__()
    attaching = asyncio.create_task(gpu.rentals.attach(record).__aenter__())
    await until(lambda: emulator.requests[-1].call == "get_container" and len(emulator.requests) > 3)
    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching
    (found,) = await gpu.rentals.list()
    assert found.stage == "detached"
    assert len(emulator.running) == 1
    await gpu.containers.restart(rental.container.id)
    async with gpu.rentals.attach(record):
        pass
    emulator.assert_nothing_rented()


async def test_attach_to_a_deleted_container_raises_rental_ended(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    async with client(emulator, state) as elsewhere:
        await elsewhere.containers.delete(rental.container.id)
    with pytest.raises(RentalEndedError, match="is gone"):
        await gpu.rentals.attach(record).__aenter__()
    # The record stays until it is reaped.
    assert [open_record.stage for open_record in await gpu.rentals.list()] == ["detached"]
    with sqlite3.connect(state) as connection:
        connection.execute("UPDATE rentals SET expires_at = intended_at")
    connection.close()
    assert (await gpu.rentals.reap()).gone == (record.name,)
    assert await gpu.rentals.list() == []
    emulator.assert_nothing_rented()


async def test_attach_to_a_rental_in_use_changes_nothing(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        for _ in range(2):
            with pytest.raises(RentalInUseError, match="is in use: this process uses it"):
                await gpu.rentals.attach(rental.name).__aenter__()
        assert [record.stage for record in await gpu.rentals.list()] == ["ready"]
        assert (await gpu.rentals.reap()).deleted == ()
        assert (await rental.run("true")).ok
    emulator.assert_nothing_rented()


async def test_attach_after_a_failed_claim_succeeds(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()

    async def fail(*_: Any, **__: Any) -> None:
        raise StateFileError("the disk is full")

    monkeypatch.setattr(Ledger, "claim_detached", fail)
    with pytest.raises(StateFileError, match="full"):
        await gpu.rentals.attach(record).__aenter__()
    monkeypatch.undo()
    async with gpu.rentals.attach(record) as attached:
        assert attached.name == record.name
    emulator.assert_nothing_rented()


def test_event_loop_stopped_during_attach_leaves_the_rental_detached(state: Path) -> None:
    with Emulator(seed=7, boot_seconds=0.02, ssh=True) as emulator:

        async def detach(gpu: AsyncRentGPU) -> RentalRecord:
            async with gpu, gpu.rent(image=IMAGE) as rental:
                return await rental.detach()

        record = asyncio.run(detach(client(emulator, state)))
        program = subprocess.run(
            [
                sys.executable,
                FOLDER / "stop_while_attaching.py",
                *(emulator.url, emulator.token, str(state), record.name),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert program.returncode == 0, program.stderr
        assert len(emulator.running) == 1
        assert asyncio.run(attach_and_leave(client(emulator, state), record)) == ["detached"]
        emulator.assert_nothing_rented()


async def attach_and_leave(gpu: AsyncRentGPU, record: RentalRecord) -> list[str]:
    """Attach to a rental and delete it; return the stages of the records before that."""
    async with gpu:
        stages = [open_record.stage for open_record in await gpu.rentals.list()]
        async with gpu.rentals.attach(record):
            return stages
