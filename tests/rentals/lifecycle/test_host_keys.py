"""Host keys of rented containers: kept as long as the container, and no longer."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import attrs
import canaries
import pytest
from lifecycle import create_again, put_as_it_is, refuse_deletes, set_limits
from rented import IMAGE, client

from netmind_rentgpu import AsyncRentGPU, ReleaseError, SSHError
from netmind_rentgpu.emulator import Emulator, Fault, World

OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2Ik4ifx0l6NvAYR3wFh0jqB0pC1mVZ0mVm3C5m7h2x"


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    world = World(ids="reused")
    async with Emulator(seed=7, boot_seconds=0, token=canaries.TOKEN, ssh=True, world=world) as emulator:
        yield emulator


def pinned(state: Path) -> list[int]:
    """Return the ids of the containers whose host keys are in the state file."""
    with closing(sqlite3.connect(state)) as connection:
        return [row[0] for row in connection.execute("SELECT container_id FROM host_keys ORDER BY container_id")]


async def test_host_key_goes_with_a_rental_that_is_left(gpu: AsyncRentGPU, state: Path) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        assert pinned(state) == [rental.container.id]
    assert pinned(state) == []


async def test_host_key_goes_with_a_rental_that_is_reaped(gpu: AsyncRentGPU, state: Path) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    await put_as_it_is(gpu, attrs.evolve(record, expires_at=record.intended_at))
    assert pinned(state) == [record.container_id]
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    assert pinned(state) == []


async def test_host_key_stays_where_the_deletion_is_not_verified(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    set_limits(gpu, deletion=0)
    refuse_deletes(emulator, "all")
    with pytest.raises(ReleaseError):
        async with gpu.rent(image=IMAGE) as rental:
            pass
    assert pinned(state) == [rental.container.id]
    emulator.faults.clear()
    assert (await gpu.rentals.reap()).clean
    assert pinned(state) == []


async def test_host_key_of_another_container_with_the_id_stays(gpu: AsyncRentGPU, state: Path) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        await gpu.request("DELETE", f"containers/{rental.container.id}")
        other = await create_again(gpu, "a stranger's", rental.machine.node_name)
        assert other.id == rental.container.id
    assert pinned(state) == [other.id]
    await gpu.containers.delete(other.id)


async def test_host_key_of_a_kept_rental_stays(gpu: AsyncRentGPU, state: Path) -> None:
    async with gpu.rent(image=IMAGE, keep=True) as rental:
        pass
    assert pinned(state) == [rental.container.id]
    async with gpu.ssh(rental.container.id) as shell:
        assert (await shell.run("true")).ok
    await gpu.containers.delete(rental.container.id)


@pytest.mark.parametrize("fault", [None, Fault("drop", call="create_container", when="after")], ids=["plain", "lost"])
async def test_rental_whose_id_an_earlier_container_had_is_logged_into(
    emulator: Emulator, state: Path, fault: Fault | None
) -> None:
    async with client(emulator, state) as gpu:
        async with gpu.rent(image=IMAGE) as rental:
            container_id = rental.container.id
        await gpu._state.pin_host_key(container_id, OTHER_KEY, replace=True)
    async with client(emulator, state) as gpu:
        if fault is not None:
            emulator.faults.add(fault)
        for _ in range(3):
            async with gpu.rent(image=IMAGE) as rental:
                assert rental.container.id == container_id
                assert (await rental.run("true")).ok


async def test_changed_host_key_of_an_attached_rental_is_refused(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    await gpu._state.pin_host_key(record.container_id or 0, OTHER_KEY, replace=True)
    with pytest.raises(SSHError) as refused:
        await gpu.rentals.attach(record).__aenter__()
    assert refused.value.stage == "host key"
    await gpu.containers.delete(record.container_id or 0)
