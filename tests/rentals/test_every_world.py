"""Rentals in every world that the documentation leaves open."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import attrs
import canaries
import pytest
from rented import IMAGE, PROFILE, client
from short_forms import thinned

from netmind_rentgpu import NoMachineError, WaitTimeoutError
from netmind_rentgpu.emulator import Clock, Emulator, Fault, World, preset_names, preset_world


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    thinned(preset_names(), every=6),
)
async def test_rental_with_lost_create_answer_and_detached_rental_are_deleted_in_every_world(
    name: str, state: Path
) -> None:
    world = preset_world(name)
    unreadable = world.ssh == "other text"
    # The world's lag of 20 seconds passes in a fifth of a second.
    clock = Clock(scale=100)
    profile = attrs.evolve(PROFILE, authorization=world.token, list_lag=timedelta(seconds=0.6))
    async with (
        Emulator(seed=7, boot_seconds=1, token=canaries.TOKEN, ssh=True, world=world, clock=clock) as emulator,
        client(emulator, state, profile) as gpu,
    ):
        # The container is found in the list by the uncut part of its name, and no second one is created.
        emulator.faults.add(Fault("drop", call="create_container", when="after"))
        rental = gpu.rent(image=IMAGE, gpus=2, max_price=Decimal(2), timeout=0.5 if unreadable else 60)
        if unreadable:
            with pytest.raises(WaitTimeoutError):
                await rental.__aenter__()
        else:
            async with rental:
                (charge,) = emulator.running
                assert charge.container_id == rental.container.id
                assert (await rental.run("echo hello")).stdout == "hello\n"
        emulator.assert_nothing_rented()
        assert len(emulator.requests.of("create_container")) == 1
        # The record stays until the lags are over, because the service may still act on the create.
        assert (await gpu.rentals.reap(wait=True)).clean
        assert await gpu.rentals.list() == []

        # A detached rental that has expired is deleted by its record.
        if not unreadable:
            async with gpu.rent(image=IMAGE) as rental:
                await rental.detach()
            with sqlite3.connect(state) as connection:
                connection.execute("UPDATE rentals SET expires_at = intended_at")
            connection.close()
            report = await gpu.rentals.reap(wait=True)
            assert report.clean
            assert report.deleted == (rental.name,)
            # A second deletion finds it gone, in whichever way this world says so.
            await gpu.containers.delete(rental.container.id, missing_ok=True)
        emulator.assert_nothing_rented()


async def test_rent_without_a_free_machine_raises_with_every_refusal(state: Path) -> None:
    async with (
        Emulator(seed=7, machines=3, token=canaries.TOKEN, faults=[Fault("stock-out", times="all")]) as emulator,
        client(emulator, state) as gpu,
    ):
        with pytest.raises(NoMachineError) as none:
            await gpu.rent(image=IMAGE).__aenter__()
        assert len(none.value.refusals) == 3
        assert isinstance(emulator.world, World)
