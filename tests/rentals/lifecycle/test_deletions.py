"""Deletions that are proven: what is deleted bears the rental's name, and an acknowledged deletion has taken effect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import canaries
import pytest
from lifecycle import create_again, most_gpus_first, put_as_it_is, set_clock, set_limits
from rented import IMAGE, PROFILE, client
from until import until

from netmind_rentgpu import (
    AsyncRentGPU,
    Container,
    ContainerGoneError,
    ReleaseError,
    RentalEndedError,
    UnexpectedResponseError,
)
from netmind_rentgpu.emulator import Clock, Emulator, Fault, World
from netmind_rentgpu.rentals.ledger.container_index import ContainerIndex, ListedContainers
from netmind_rentgpu.rentals.ledger.names import new_name
from netmind_rentgpu.rentals.lifecycle.attempt import Fate
from netmind_rentgpu.rentals.lifecycle.reaper import reap


@asynccontextmanager
async def served(
    state: Path, *, scale: float = 1, profile: dict[str, Any] | None = None, **switches: Any
) -> AsyncIterator[tuple[Emulator, AsyncRentGPU]]:
    """Serve a world, and open a client of it."""
    world = attrs.evolve(World(), **switches)
    assumed = attrs.evolve(PROFILE, **(profile or {}))
    async with (
        Emulator(
            seed=7, boot_seconds=0, token=canaries.TOKEN, ssh=True, world=world, clock=Clock(scale=scale)
        ) as emulator,
        client(emulator, state, assumed) as gpu,
    ):
        yield emulator, gpu


async def stranger(gpu: AsyncRentGPU, node_name: str, name: str = "a stranger's") -> Container:
    """Create a container that is no rental's."""
    return await create_again(gpu, name, node_name)


def calls(emulator: Emulator, since: int = 0) -> list[str]:
    """Return the names of the calls that were made, in order."""
    return [request.call or request.path for request in list(emulator.requests)[since:]]


# An acknowledged deletion.


async def test_release_costs_a_get_a_delete_a_get_and_one_walk(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE):
        before = len(emulator.requests)
    assert calls(emulator, before) == ["get_container", "delete_container", "get_container", "list_containers"]


async def test_container_that_is_shown_for_a_while_after_its_deletion_is_waited_for(state: Path) -> None:
    # The emulator's 20 seconds pass in 0.2 s of the test.
    async with served(state, scale=100, delete_lag="20 s", profile={"delete_lag": 60}) as (emulator, gpu):
        async with gpu.rent(image=IMAGE):
            pass
        emulator.assert_nothing_rented()
        assert calls(emulator).count("delete_container") == 1
        assert await gpu.rentals.list() == []


@pytest.mark.parametrize("answer", ["object", "null", "empty", "204"])
async def test_deletion_without_effect_is_repeated_once_and_then_reported(state: Path, answer: str) -> None:
    switches = {"delete_lag": "forever", "delete_answer": answer}
    async with served(state, **switches) as (emulator, gpu):
        with pytest.raises(ReleaseError, match="is still shown") as raised:
            async with gpu.rent(image=IMAGE) as rental:
                pass
        assert raised.value.container_id == rental.container.id
        assert calls(emulator).count("delete_container") == 2
        (record,) = await gpu.rentals.list()
        assert (record.name, record.stage) == (rental.name, "abandoned")
        report = await gpu.rentals.reap()
        assert [name for name, _ in report.failed] == [rental.name]
        assert not report.clean
        assert len(emulator.running) == 1
        emulator.reset()


async def test_deletion_that_took_effect_late_is_closed_by_the_next_reap(state: Path) -> None:
    async with served(state, scale=0, delete_lag="20 s") as (emulator, gpu):
        with pytest.raises(ReleaseError, match="is still shown"):
            async with gpu.rent(image=IMAGE):
                emulator.clock.advance(1)
        emulator.clock.advance(20)
        emulator.assert_nothing_rented()
        assert (await gpu.rentals.reap(wait=True)).clean
        assert await gpu.rentals.list() == []


async def test_deleted_container_that_stays_listed_counts_as_deleted_by_the_answer(state: Path) -> None:
    profile = {"deleted_stay_listed": True, "delete_lag": 3600}
    async with served(state, deleted="listed", profile=profile) as (emulator, gpu):
        async with gpu.rent(image=IMAGE) as rental:
            pass
        emulator.assert_nothing_rented()
        assert await gpu.rentals.list() == []
        # The rest is for a record whose container was deleted elsewhere.
        async with gpu.rent(image=IMAGE) as rental:
            record = await rental.detach()
        async with client(emulator, state, gpu.profile) as elsewhere:
            await elsewhere.containers.delete(record.container_id or 0)
        await put_as_it_is(gpu, attrs.evolve(record, expires_at=record.intended_at))
        assert (await gpu.rentals.reap(wait=True)).clean
        assert await gpu.rentals.list() == []


async def test_get_that_fails_after_a_deletion_is_repeated(state: Path) -> None:
    async with served(state, profile={"delete_lag": 60}) as (emulator, gpu):
        async with gpu.rent(image=IMAGE):
            emulator.faults.add(Fault("status", call="get_container", status=403, nth=2, times=2))
        emulator.assert_nothing_rented()
        assert calls(emulator).count("delete_container") == 1
        assert await gpu.rentals.list() == []


async def test_deletion_that_no_get_can_confirm_stays_on_record(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    with pytest.raises(ReleaseError):
        async with gpu.rent(image=IMAGE):
            emulator.faults.add(Fault("status", call="get_container", status=403, times="all"))
    emulator.assert_nothing_rented()
    assert [record.stage for record in await gpu.rentals.list()] == ["abandoned"]
    emulator.faults.clear()
    assert (await gpu.rentals.reap()).clean
    assert await gpu.rentals.list() == []


async def test_wrong_404_does_not_count_where_deleted_containers_stay_listed(state: Path) -> None:
    async with served(state, deleted="listed", profile={"deleted_stay_listed": True}) as (emulator, gpu):
        async with gpu.rent(image=IMAGE):
            emulator.faults.add(Fault("status", call="delete_container", status=404))
        emulator.assert_nothing_rented()
        assert calls(emulator).count("delete_container") == 2


async def test_list_with_an_unreadable_item_does_not_prove_a_container_gone(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_limits(gpu, deletion=0)

    async def walk_without_ids(_: ContainerIndex) -> ListedContainers:
        item = UnexpectedResponseError("no id", status=200, method="GET", path="/v1/rentgpu/containers/")
        return ListedContainers((), (item,))

    with pytest.raises(ReleaseError):
        async with gpu.rent(image=IMAGE) as rental:
            monkeypatch.setattr(ContainerIndex, "_walk", walk_without_ids)
            emulator.faults.add(Fault("status", call="delete_container", status=404, times="all"))
            emulator.faults.add(Fault("status", call="get_container", status=404, times="all"))
    monkeypatch.undo()
    emulator.faults.clear()
    assert (await gpu.rentals.reap(wait=True)).deleted == (rental.name,)
    emulator.assert_nothing_rented()


async def test_clock_set_back_does_not_prolong_a_release(state: Path) -> None:
    async with served(state) as (emulator, gpu):
        emulator.faults.add(Fault("never starts"))
        rental = gpu.rent(image=IMAGE)
        entering = asyncio.create_task(rental.__aenter__())
        await until(lambda: bool(emulator.charges))
        set_clock(gpu, timedelta(hours=-1))
        await gpu.request("DELETE", f"containers/{emulator.charges[0].container_id}")
        entering.cancel()
        async with asyncio.timeout(30):
            with pytest.raises(asyncio.CancelledError):
                await entering
        emulator.assert_nothing_rented()


async def test_rental_goes_on_where_the_list_shows_what_a_404_denies(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        emulator.faults.add(Fault("status", call="get_container", status=404))
        assert (await rental._connections.examine(rental._state.had)).id == rental.container.id
        assert (await rental.run("true")).ok
    emulator.assert_nothing_rented()


# Another container's object or id.


async def test_create_answered_with_another_container_leaves_that_alone(state: Path) -> None:
    async with served(state, create_answer="another") as (emulator, gpu):
        async with gpu.rent(image=IMAGE, gpus=2, key=most_gpus_first) as first:
            # What the create of the second is answered with is the first.
            async with gpu.rent(image=IMAGE, gpus=2, key=most_gpus_first) as second:
                assert second.container.id != first.container.id
                assert second.container.name == second.name
                assert (await second.run("true")).ok
            assert [charge.container_id for charge in emulator.running] == [first.container.id]
            assert (await first.run("true")).ok
        emulator.assert_nothing_rented()
        assert calls(emulator).count("create_container") == 2


@pytest.mark.parametrize("name", ["a stranger's", None], ids=["a stranger's", "another rental's"])
async def test_id_that_was_given_to_another_container_is_not_deleted(state: Path, name: str | None) -> None:
    async with served(state, ids="reused") as (emulator, gpu):
        async with gpu.rent(image=IMAGE) as rental:
            await gpu.request("DELETE", f"containers/{rental.container.id}")
            other = await stranger(gpu, rental.machine.node_name, name or new_name(rental.expires_at))
            assert other.id == rental.container.id
        assert [charge.name for charge in emulator.running] == [other.name]
        assert await gpu.rentals.list() == []
        await gpu.containers.delete(other.id)


async def test_rental_whose_id_is_another_containers_is_deleted_by_its_name(state: Path) -> None:
    async with served(state) as (emulator, gpu):
        async with gpu.rent(image=IMAGE, key=most_gpus_first) as rental:
            other = await stranger(gpu, rental.machine.node_name)
            (tracked,) = rental._provisioner._attempts.values()
            wrong = attrs.evolve(tracked.attempt.record, container_id=other.id)
            tracked.attempt = attrs.evolve(tracked.attempt, record=wrong, containers={other.id: Fate.RUNNING})
        assert [charge.container_id for charge in emulator.running] == [other.id]
        assert await gpu.rentals.list() == []
        await gpu.containers.delete(other.id)


@pytest.mark.parametrize("shown", [None, "rg-"], ids=["unknown", "cut short"])
async def test_reaper_leaves_another_container_of_the_recorded_id_alone(state: Path, shown: str | None) -> None:
    async with served(state) as (emulator, gpu):
        async with gpu.rent(image=IMAGE, key=most_gpus_first) as rental:
            record = await rental.detach()
        other = await stranger(gpu, record.node_name)
        wrong = attrs.evolve(record, container_id=other.id, shown_name=shown, expires_at=record.intended_at)
        await put_as_it_is(gpu, wrong)
        report = await gpu.rentals.reap()
        assert report.clean
        assert [charge.container_id for charge in emulator.running] == [other.id]
        await gpu.containers.delete(other.id)


async def test_container_replaced_while_it_starts_is_not_handed_over(state: Path) -> None:
    async with served(state, ids="reused") as (emulator, gpu):
        rental = gpu.rent(image=IMAGE)
        replaced: list[Container] = []
        wait_ready = gpu.containers.wait_ready

        async def replace_and_wait(container_id: int, **keywords: Any) -> Container:
            if not replaced:
                await gpu.request("DELETE", f"containers/{container_id}")
                replaced.append(await stranger(gpu, rental.machine.node_name))
            return await wait_ready(container_id, **keywords)

        gpu.containers.wait_ready = replace_and_wait  # type: ignore[method-assign]  # the moment between two calls
        async with rental:
            assert rental.container.id != replaced[0].id
        (refusal,) = rental._source.failed.by_node.values()
        assert isinstance(refusal.error, ContainerGoneError)
        assert "now belongs to a stranger's" in str(refusal)
        assert [charge.name for charge in emulator.running] == [replaced[0].name]
        # It was not logged into, so that the password was not told to another's server.
        assert await gpu._state.host_key(replaced[0].id) is None
        await gpu.containers.delete(replaced[0].id)


async def test_rental_whose_container_was_replaced_has_ended(state: Path) -> None:
    async with served(state, ids="reused") as (emulator, gpu):
        async with gpu.rent(image=IMAGE) as rental:
            await gpu.request("DELETE", f"containers/{rental.container.id}")
            other = await stranger(gpu, rental.machine.node_name)
            with pytest.raises(RentalEndedError, match="is gone"):
                await rental.run("true")
        assert [charge.name for charge in emulator.running] == [other.name]
        await gpu.containers.delete(other.id)


@pytest.mark.parametrize("status", [403, 500])
async def test_get_that_fails_holds_back_no_deletion_of_what_this_process_created(state: Path, status: int) -> None:
    async with served(state, profile={"delete_lag": 60}) as (emulator, gpu):
        async with gpu.rent(image=IMAGE):
            before = len(emulator.requests)
            emulator.faults.add(Fault("status", call="get_container", status=status, times=4))
        assert calls(emulator, before).count("delete_container") == 1
        emulator.assert_nothing_rented()
        assert await gpu.rentals.list() == []


@pytest.mark.parametrize("status", [403, 500])
async def test_get_that_fails_holds_back_the_deletion_of_what_another_process_created(
    gpu: AsyncRentGPU, emulator: Emulator, status: int
) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    await put_as_it_is(gpu, attrs.evolve(record, expires_at=record.intended_at))
    emulator.faults.add(Fault("status", call="get_container", status=status, times="all"))
    async with client(emulator, gpu._parts.settings.state) as other:
        report = await reap(other._context, patient=False)
    assert [name for name, _ in report.failed] == [record.name]
    assert not emulator.requests.of("delete_container")
    emulator.faults.clear()
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


# Altered names.

ALTERED = ["no", "upper case", "prefix", "suffix"]


@pytest.mark.parametrize("long_names", ["kept", "cut at 24"])
@pytest.mark.parametrize("altered", ALTERED)
async def test_lost_create_is_found_by_its_altered_name(state: Path, altered: str, long_names: str) -> None:
    async with served(state, altered_names=altered, long_names=long_names) as (emulator, gpu):
        emulator.faults.add(Fault("drop", call="create_container", when="after"))
        async with gpu.rent(image=IMAGE) as rental:
            assert [charge.container_id for charge in emulator.running] == [rental.container.id]
        assert calls(emulator).count("create_container") == 1
        emulator.assert_nothing_rented()


@pytest.mark.parametrize("altered", ALTERED)
async def test_rental_of_an_altered_name_is_detached_attached_and_reaped(state: Path, altered: str) -> None:
    async with served(state, altered_names=altered) as (emulator, gpu):
        async with gpu.rent(image=IMAGE) as rental:
            record = await rental.detach()
        async with gpu.rentals.attach(record) as again:
            assert (await again.run("true")).ok
            record = await again.detach()
        await put_as_it_is(gpu, attrs.evolve(record, container_id=None, expires_at=record.intended_at))
        assert (await gpu.rentals.reap(wait=True)).deleted == (record.name,)
        emulator.assert_nothing_rented()


async def test_nonce_on_another_machine_is_another_container(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    first, second, *_ = sorted(await gpu.machines.list(), key=lambda machine: -(machine.gpu_count or 0))
    async with gpu.rent(image=IMAGE, key=most_gpus_first) as rental:
        assert rental.machine.node_name == first.node_name
        # A copy of a rental's name on another machine is another container.
        other = await stranger(gpu, second.node_name, f"copy-of-{rental.name}")
    assert [charge.container_id for charge in emulator.running] == [other.id]
    await gpu.containers.delete(other.id)


@pytest.mark.parametrize(
    ("altered", "reaped"), [("no", True), ("upper case", True), ("prefix", False), ("suffix", False)]
)
async def test_reaping_by_name_demands_the_whole_name_in_any_case(state: Path, altered: str, reaped: bool) -> None:
    async with served(state, altered_names=altered) as (emulator, gpu):
        async with gpu.rent(image=IMAGE, ttl=timedelta(hours=1)) as rental:
            record = await rental.detach()
        (machine, *_) = await gpu.machines.list()
        expired = new_name(record.intended_at - timedelta(hours=1))
        await stranger(gpu, machine.node_name, expired)
        report = await gpu.rentals.reap(by_name=True)
        assert len(report.deleted) == reaped
        assert len(emulator.running) == 2 - reaped
        emulator.reset()
