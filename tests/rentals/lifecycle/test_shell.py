"""The shell of a rental: lost, closed, or never opened."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rented import IMAGE
from until import until

from netmind_rentgpu import AsyncRentGPU, Container, ContainerGoneError, NoMachineError, RentalEndedError
from netmind_rentgpu.emulator import Emulator


async def test_lost_shell_is_opened_again_while_the_container_runs(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        first = rental.shell
        await gpu.containers.restart(rental.container.id)
        await until(lambda: first.lost)
        await gpu.containers.wait_ready(rental.container.id, timeout=10)
        assert (await rental.run("echo again")).stdout == "again\n"
        assert rental.shell is not first
        await gpu.containers.stop(rental.container.id)
        await until(lambda: rental.shell.lost)
        with pytest.raises(RentalEndedError, match="cannot be logged in to again"):
            await rental.run("true")
    emulator.assert_nothing_rented()


async def test_closed_shell_is_replaced_by_a_new_one(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        shell = rental.shell
        await shell.close()
        assert (await rental.run("echo in")).stdout == "in\n"
        assert rental.shell is not shell


async def test_container_deleted_before_its_first_shell_is_a_failed_start(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = gpu.containers.wait_ready

    async def wait_and_delete(container_id: int, **keywords: Any) -> Container:
        container = await ready(container_id, **keywords)
        await gpu.containers.delete(container_id)
        return container

    monkeypatch.setattr(gpu.containers, "wait_ready", wait_and_delete)
    async with asyncio.timeout(20):
        with pytest.raises(NoMachineError, match="before a shell on it could be opened") as none:
            await gpu.rent(image=IMAGE).__aenter__()
    gone = none.value.__cause__
    assert isinstance(gone, ContainerGoneError)
    assert list(gone.pending) == [gone.container_id]
    emulator.assert_nothing_rented()
