"""Create attempts whose answer is lost, and containers that the service creates late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from lifecycle import (
    UNCERTAIN,
    create_again,
    end_uncertainty,
    end_uncertainty_on_record,
    most_gpus_first,
    put_as_it_is,
    refuse_deletes,
    set_clock,
    set_limits,
)
from rented import IMAGE, client
from until import until

from netmind_rentgpu import APIConnectionError, AsyncRentGPU, ReleaseError, ServerError, Timeouts
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.rentals.ledger.container_index import ContainerIndex
from netmind_rentgpu.rentals.ledger.store import Ledger


@pytest.fixture
async def uncertain_client(emulator: Emulator, state: Path) -> AsyncIterator[AsyncRentGPU]:
    """Open a client whose first create is uncertain and, once it is not any more, is searched for without a pause."""
    async with client(emulator, state, UNCERTAIN) as gpu:
        set_limits(gpu, between_walks=0)
        emulator.faults.add(Fault("drop", call="create_container", when="after"))
        yield gpu


@pytest.mark.parametrize(
    "fault", [Fault("drop", call="create_container", when="after"), Fault("late commit", seconds=0.1)], ids=str
)
async def test_create_with_a_lost_answer_is_found_and_used(gpu: AsyncRentGPU, emulator: Emulator, fault: Fault) -> None:
    emulator.faults.add(fault)
    async with gpu.rent(image=IMAGE) as rental:
        assert [charge.container_id for charge in emulator.running] == [rental.container.id]
        assert (await rental.run("true")).ok
    emulator.assert_nothing_rented()
    assert len(emulator.requests.of("create_container")) == 1


async def test_container_created_late_is_deleted_while_another_is_used(emulator: Emulator, state: Path) -> None:
    # The first create commits after the list lag, so that a second follows, and within the create lag, because no
    # search follows later.
    emulator.faults.add(Fault("late commit", seconds=3600))
    async with client(emulator, state, UNCERTAIN) as gpu, gpu.rent(image=IMAGE) as rental:
        assert len(emulator.requests.of("create_container")) == 2
        assert {record.stage for record in await gpu.rentals.list()} == {"ready", "intended"}
        emulator.clock.advance(3600)
        end_uncertainty(rental)
        await until(lambda: bool(emulator.requests.of("delete_container")))
        assert [charge.container_id for charge in emulator.running] == [rental.container.id]
        assert (await rental.run("true")).ok
    emulator.assert_nothing_rented()
    async with client(emulator, state) as gpu:
        assert await gpu.rentals.list() == []


async def test_rental_left_while_a_create_is_uncertain_stays_on_record(
    emulator: Emulator, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with client(emulator, state, UNCERTAIN) as gpu:
        emulator.faults.add(Fault("late commit", seconds=3600))
        async with gpu.rent(image=IMAGE):
            pass
        (record,) = await gpu.rentals.list()
        assert (record.stage, record.container_id, record.owner) == ("abandoned", None, None)
        assert "may still come to exist" in caplog.text
        assert [doubtful.name for doubtful in (await gpu.rentals.reap()).doubtful] == [record.name]
        emulator.clock.advance(3600)
        await end_uncertainty_on_record(gpu)
        report = await gpu.rentals.reap()
        assert report.clean
        assert report.deleted == (record.name,)
    emulator.assert_nothing_rented()


async def test_two_uncertain_creates_are_followed_by_no_third(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="create_container", status=502, times="all"))
    with pytest.raises(ServerError):
        await gpu.rent(image=IMAGE).__aenter__()
    assert len(emulator.requests.of("create_container")) == 2
    assert (await gpu.rentals.reap(wait=True)).clean


async def test_uncertain_create_with_a_failing_search_is_followed_by_no_other(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    emulator.faults.add(Fault("drop", call="create_container", when="after"))
    emulator.faults.add(Fault("status", call="list_containers", status=500, times="all"))
    rental = gpu.rent(image=IMAGE)
    entering = asyncio.create_task(rental.__aenter__())
    await until(lambda: len(emulator.requests.of("list_containers")) > 2)
    entering.cancel()
    # A second cancellation ends the wait for the search.
    await until(lambda: rental._ending is not None)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert len(emulator.requests.of("create_container")) == 1
    emulator.faults.clear()
    assert (await gpu.rentals.reap(wait=True)).deleted == (emulator.charges[0].name,)
    emulator.assert_nothing_rented()


async def test_container_without_a_readable_name_keeps_the_create_uncertain(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = ContainerIndex._walk

    async def walk_without_names(self: ContainerIndex) -> Any:
        listed = await walk(self)
        return attrs.evolve(listed, containers=[attrs.evolve(each, name=None) for each in listed.containers])

    monkeypatch.setattr(ContainerIndex, "_walk", walk_without_names)
    set_limits(gpu, failed_search=0.1)
    emulator.faults.add(Fault("drop", call="create_container", when="after"))
    with pytest.raises(APIConnectionError):
        await gpu.rent(image=IMAGE).__aenter__()
    assert len(emulator.requests.of("create_container")) == 1
    assert len((await gpu.rentals.reap()).failed) == 1
    monkeypatch.undo()
    assert (await gpu.rentals.reap(wait=True)).clean
    emulator.assert_nothing_rented()


async def test_failed_search_is_not_repeated_at_once(emulator: Emulator, state: Path) -> None:
    emulator.faults.add(Fault("stock-out"))
    async with client(emulator, state, UNCERTAIN) as gpu, gpu.rent(image=IMAGE) as rental:
        set_limits(gpu, between_walks=3600)
        emulator.faults.add(Fault("status", call="list_containers", status=403, times="all"))
        end_uncertainty(rental)
        await until(lambda: bool(emulator.requests.of("list_containers")))
        assert (await rental.run("sleep 0.3")).ok
        assert len(emulator.requests.of("list_containers")) == 1
        emulator.faults.clear()
    emulator.assert_nothing_rented()


async def test_search_that_hangs_ends_with_the_rental(
    uncertain_client: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = uncertain_client
    rental = gpu.rent(image=IMAGE)
    async with asyncio.timeout(20), rental:
        monkeypatch.setattr(gpu._context.container_index, "_timeouts", Timeouts(total=None, read=None))
        earlier = len(emulator.requests.of("list_containers"))
        emulator.faults.add(Fault("hang", call="list_containers"))
        end_uncertainty(rental)
        await until(lambda: len(emulator.requests.of("list_containers")) > earlier)
        searching = rental._expiry._looking
        assert searching is not None
    # Leaving does not wait for the search, and leaves no task behind.
    assert searching.done()
    emulator.assert_nothing_rented()


async def test_uncertain_create_is_searched_for_until_it_is_certain(
    uncertain_client: AsyncRentGPU, emulator: Emulator
) -> None:
    gpu = uncertain_client
    async with gpu.rent(image=IMAGE) as rental:
        assert rental._provisioner.certain_at is not None
        end_uncertainty(rental)
        await until(lambda: rental._provisioner.certain_at is None)
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


async def test_clock_set_forward_does_not_make_a_create_certain(emulator: Emulator, state: Path) -> None:
    async with client(emulator, state, UNCERTAIN) as gpu:
        emulator.faults.add(Fault("late commit", seconds=3600))
        async with gpu.rent(image=IMAGE):
            set_clock(gpu, timedelta(hours=3))
        set_clock(gpu, timedelta(hours=-3))
        (record,) = await gpu.rentals.list()
        emulator.clock.advance(3600)
        await end_uncertainty_on_record(gpu)
        assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("attached", [False, True])
async def test_uncertain_create_outlives_its_detached_rental(emulator: Emulator, state: Path, attached: bool) -> None:
    async with client(emulator, state, UNCERTAIN) as gpu:
        emulator.faults.add(Fault("drop", call="create_container", when="after"))
        async with gpu.rent(image=IMAGE, key=most_gpus_first) as rental:
            record = await rental.detach()
        if attached:
            async with gpu.rentals.attach(record):
                pass
        else:
            # The record is now as a killed process leaves it.
            await put_as_it_is(gpu, attrs.evolve(record, expires_at=record.intended_at))
            assert [doubtful.name for doubtful in (await gpu.rentals.reap()).doubtful] == [record.name]
        emulator.assert_nothing_rented()
        # The service acts on the create once more.
        await create_again(gpu, rental.name, rental.machine.node_name)
        await end_uncertainty_on_record(gpu)
        assert (await gpu.rentals.reap()).deleted == (record.name,)
        assert await gpu.rentals.list() == []
    emulator.assert_nothing_rented()


async def test_refused_create_that_the_service_acted_on_is_reported_as_it_is(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    emulator.faults.add(Fault("status", call="create_container", when="after", status=409))
    refuse_deletes(emulator, "all")
    set_limits(gpu, deletion=0.2)
    with pytest.raises(ReleaseError, match=r"it is on record, and rentals.reap\(\) will delete it: .*503") as raised:
        async with gpu.rent(image=IMAGE):
            pass
    assert "twice" not in str(raised.value)
    emulator.faults.clear()
    assert (await gpu.rentals.reap(wait=True)).clean
    emulator.assert_nothing_rented()


async def test_search_for_late_containers_ends_where_leaving_cancels_it(
    emulator: Emulator, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client(emulator, state, UNCERTAIN) as gpu:
        emulator.faults.add(Fault("status", call="create_container", status=409, times=2))
        async with gpu.rent(image=IMAGE) as rental:
            close, closed = Ledger.close, list[str]()

            async def note_and_close(self: Ledger, name: str, *arguments: Any, containers: Any = ()) -> None:
                closed.append(name)
                assert rental._expiry._looking is not None
                rental._expiry._looking.cancel()
                await close(self, name, *arguments, containers=containers)

            monkeypatch.setattr(Ledger, "close", note_and_close)
            end_uncertainty(rental)
            await until(lambda: rental._expiry._looking is not None)
            searching = rental._expiry._looking
            assert searching is not None
            await asyncio.wait({searching})
            assert searching.cancelled()
            # The record that was being closed is closed, and the search does not go on to the other one.
            assert len(closed) == 1
            monkeypatch.undo()
    emulator.assert_nothing_rented()
    assert len(await gpu.rentals.list()) <= 1
