"""Worlds that mislead: altered names, answers about another container, ids given again, deletions that take no effect."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest

from netmind_rentgpu import AsyncRentGPU, NotFoundError
from netmind_rentgpu.emulator import Clock, Emulator, World


@asynccontextmanager
async def served(**switches: Any) -> AsyncIterator[tuple[Emulator, AsyncRentGPU, Any]]:
    """Serve a world whose clock stands still; give a function that creates a container of a name."""
    world = attrs.evolve(World(), **switches)
    async with (
        Emulator(seed=7, boot_seconds=0, world=world, clock=Clock(scale=0)) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url, retries=0) as gpu,
    ):
        auth = await gpu.auths.create("a-password")
        machine = max(await gpu.machines.list(), key=lambda machine: machine.gpu_count or 0)

        async def create(name: str) -> Any:
            return await gpu.containers.create(
                name=name, auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type=0
            )

        yield emulator, gpu, create


@pytest.mark.parametrize(
    ("switches", "shown"),
    [
        ({}, "rg-abc"),
        ({"altered_names": "upper case"}, "RG-ABC"),
        ({"altered_names": "prefix"}, "u7-rg-abc"),
        ({"altered_names": "suffix"}, "rg-abc-u7"),
    ],
)
async def test_container_is_shown_by_its_altered_name(switches: dict[str, str], shown: str) -> None:
    async with served(**switches) as (_, gpu, create):
        container = await create("rg-abc")
        assert container.name == shown
        assert (await gpu.containers.get(container.id)).name == shown
        assert [each.name async for each in gpu.containers.list()] == [shown]


async def test_altered_name_is_cut_after_it_was_altered() -> None:
    async with served(altered_names="prefix", long_names="cut at 24") as (_, _, create):
        assert (await create("rg-" + "x" * 30)).name == "u7-rg-" + "x" * 18


async def test_create_is_answered_with_another_container_once_there_is_one() -> None:
    async with served(create_answer="another") as (emulator, _, create):
        first, second = await create("first"), await create("second")
        assert (first.name, second.name) == ("first", "first")
        assert [charge.name for charge in emulator.running] == ["first", "second"]


async def test_id_of_a_deleted_container_is_given_again() -> None:
    async with served(ids="reused") as (emulator, gpu, create):
        first, second = await create("first"), await create("second")
        await gpu.containers.delete(first.id)
        third = await create("third")
        assert third.id == first.id
        assert (await gpu.containers.get(first.id)).name == "third"
        assert [each.id async for each in gpu.containers.list()] == [first.id, second.id]
        assert [(charge.name, charge.running) for charge in emulator.charges] == [
            ("first", False),
            ("second", True),
            ("third", True),
        ]
        await gpu.containers.delete(third.id)
        with pytest.raises(NotFoundError):
            await gpu.containers.delete(third.id)
        assert (await create("fourth")).id == first.id


async def test_late_deletion_takes_effect_after_20_seconds() -> None:
    async with served(delete_lag="20 s") as (emulator, gpu, create):
        container = await create("late")
        assert (await gpu.containers.delete(container.id)).name == "late"
        emulator.clock.advance(19)
        # A second deletion changes nothing.
        await gpu.containers.delete(container.id)
        assert (await gpu.containers.get(container.id)).name == "late"
        assert len(emulator.running) == 1
        emulator.clock.advance(1)
        with pytest.raises(NotFoundError):
            await gpu.containers.get(container.id)
        emulator.assert_nothing_rented()


async def test_deletion_that_takes_no_effect_leaves_the_container_running() -> None:
    async with served(delete_lag="forever") as (emulator, gpu, create):
        container = await create("lasting")
        await gpu.containers.delete(container.id)
        emulator.clock.advance(3600)
        assert (await gpu.containers.get(container.id)).ssh_endpoint is not None
        assert len(emulator.running) == 1


async def test_deleted_container_stays_listed_and_costs_nothing() -> None:
    async with served(deleted="listed") as (emulator, gpu, create):
        container = await create("listed")
        await gpu.containers.delete(container.id)
        assert [each.name async for each in gpu.containers.list()] == ["listed"]
        assert (await gpu.containers.get(container.id)).ssh_endpoint is None
        emulator.assert_nothing_rented()
        for call in (gpu.containers.stop, gpu.containers.restart, gpu.containers.delete):
            with pytest.raises(NotFoundError):
                await call(container.id)
        assert (await create("next")).id != container.id
