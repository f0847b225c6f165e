"""The reaper: which records it deletes, spares and reports, and how it is cancelled."""

from __future__ import annotations

import asyncio
import platform
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from full_disk import disk_full
from lifecycle import create_again, most_gpus_first, put_as_it_is, refuse_deletes, set_clock, set_limits
from rented import IMAGE, cancel_twice, client
from until import until

from netmind_rentgpu import AsyncRentGPU, RentalRecord, RentGPUError, StateFileError, UnexpectedResponseError
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.rentals.ledger import process_identity
from netmind_rentgpu.rentals.ledger.clocks import read_clocks
from netmind_rentgpu.rentals.ledger.container_index import ContainerIndex
from netmind_rentgpu.rentals.ledger.names import new_name
from netmind_rentgpu.rentals.ledger.process_identity import ProcessIdentity, look_up_process, this_process
from netmind_rentgpu.rentals.ledger.store import Ledger
from netmind_rentgpu.rentals.lifecycle.state import EndReason
from netmind_rentgpu.wire.caller import Caller


async def test_detached_rental_is_reaped_once_it_has_expired(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE, ttl=timedelta(hours=1)) as rental:
        record = await rental.detach()
    assert (await gpu.rentals.reap()).deleted == ()
    await put_as_it_is(gpu, attrs.evolve(record, expires_at=record.intended_at))
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


async def test_rental_detached_after_the_reaper_read_its_record_is_not_deleted(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rental = await gpu.rent(image=IMAGE).__aenter__()
    ledger = gpu._context.ledger
    # It may be reaped until it is detached.
    (record,) = await gpu.rentals.list()
    await put_as_it_is(gpu, attrs.evolve(record, expires_at=record.intended_at))
    read_open = ledger.read_open

    async def read_open_and_detach() -> Any:
        records = await read_open()
        if rental._state.reason is None:
            detached = await rental.detach()
            await put_as_it_is(gpu, attrs.evolve(detached, expires_at=record.expires_at))
        return records

    monkeypatch.setattr(ledger, "read_open", read_open_and_detach)
    assert (await gpu.rentals.reap()).deleted == ()
    assert rental._state.reason is EndReason.DETACHED
    assert len(emulator.running) == 1
    (record,) = await gpu.rentals.list()
    async with gpu.rentals.attach(record):
        pass
    emulator.assert_nothing_rented()


def test_rental_of_a_closed_event_loop_is_reaped(state: Path) -> None:
    with Emulator(seed=7, boot_seconds=0.02, ssh=True) as emulator:

        async def leave_open() -> None:
            gpu = client(emulator, state)
            rental = await gpu.rent(image=IMAGE).__aenter__()
            # Otherwise Python warns of the connection in any later test.
            connection = rental.shell._connection._connection
            assert connection is not None
            connection.abort()
            await connection.wait_closed()
            await gpu._caller.close()
            gpu._state.close()

        async def reap() -> int:
            async with client(emulator, state) as gpu:
                return len((await gpu.rentals.reap()).deleted)

        asyncio.run(leave_open())
        assert asyncio.run(reap()) == 1
        emulator.assert_nothing_rented()


def damage_record(state: Path, name: str) -> None:
    """Change a record in the state file to what cannot be read."""
    with closing(sqlite3.connect(state)) as connection:
        connection.execute("UPDATE rentals SET expires_at = 'soon' WHERE name = ?", (name,))
        connection.commit()


async def test_unreadable_record_is_reported_and_keeps_nothing_from_being_reaped_or_rented(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with gpu.rent(image=IMAGE) as first, gpu.rent(image=IMAGE) as second:
        damaged, orphan = await first.detach(), await second.detach()
    await put_as_it_is(gpu, attrs.evolve(orphan, expires_at=orphan.intended_at))
    damage_record(state, damaged.name)
    report = await gpu.rentals.reap()
    assert report.deleted == (orphan.name,)
    assert [name for name, _ in report.failed] == [damaged.name]
    assert isinstance(report.failed[0][1], StateFileError)
    assert not report.clean
    async with client(emulator, state) as other, other.rent(image=IMAGE) as rental:
        assert [record.name for record in await other.rentals.list()] == [rental.name]
    assert f"could not read the record of rental {damaged.name}" in caplog.text
    assert [charge.name for charge in emulator.running] == [damaged.name]
    await gpu.containers.delete(emulator.running[0].container_id)


async def test_rentals_of_the_dead_are_reaped_while_the_disk_is_full(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as first, gpu.rent(image=IMAGE) as second:
        orphan, expired = await first.detach(), await second.detach()
    dead = attrs.evolve(this_process(), process_id=2**22 + 1)
    await put_as_it_is(gpu, attrs.evolve(orphan, stage="ready", owner=dead))
    await put_as_it_is(gpu, attrs.evolve(expired, expires_at=expired.intended_at))
    with disk_full():
        report = await gpu.rentals.reap()
    assert report.deleted == (orphan.name,)
    assert {name for name, _ in report.failed} == {orphan.name, expired.name}
    assert all(isinstance(error, StateFileError) for _, error in report.failed)
    # No process could have said that it has attached to the expired one.
    assert [charge.name for charge in emulator.running] == [expired.name]
    assert (await gpu.rentals.reap()).deleted == (expired.name,)
    assert await gpu.rentals.list() == []


async def test_unreadable_item_of_the_list_keeps_no_container_from_being_found(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = ContainerIndex._walk

    async def walk_with_an_unreadable_item(self: ContainerIndex) -> Any:
        item = UnexpectedResponseError("no id", status=200, method="GET", path="/v1/rentgpu/containers/")
        return attrs.evolve(await walk(self), unreadable=(item,))

    monkeypatch.setattr(ContainerIndex, "_walk", walk_with_an_unreadable_item)
    emulator.faults.add(Fault("drop", call="create_container", when="after"))
    async with gpu.rent(image=IMAGE) as rental:
        assert len(emulator.running) == 1
        record = await rental.detach()
    unknown = attrs.evolve(
        record, stage="abandoned", container_id=None, certain_at=record.intended_at, expires_at=record.intended_at
    )
    absent = attrs.evolve(unknown, name=new_name(record.expires_at))
    await put_as_it_is(gpu, unknown)
    await put_as_it_is(gpu, absent)
    report = await gpu.rentals.reap()
    assert report.deleted == (record.name,)
    # The unreadable item may be the container of the other record.
    assert [name for name, _ in report.failed] == [absent.name]
    emulator.assert_nothing_rented()


def identity_on(
    monkeypatch: pytest.MonkeyPatch, *, host: str, boot: str | None = None, process_id: int
) -> ProcessIdentity:
    """Return the identity of a process on a host that has this machine's id."""
    here = this_process()
    with monkeypatch.context() as patch:
        patch.setattr(platform, "node", lambda: host)
        machine = process_identity._machine()
    return attrs.evolve(here, machine=machine, boot=here.boot if boot is None else boot, process_id=process_id)


NO_PROCESS = 2**22 + 1


async def test_rental_of_another_host_with_this_machines_id_is_left_until_its_time_is_up(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gpu.rent(image=IMAGE, ttl=timedelta(hours=1)) as rental:
        record = await rental.detach()
    owner = identity_on(monkeypatch, host="clone", boot="another", process_id=NO_PROCESS)
    await put_as_it_is(gpu, attrs.evolve(record, stage="ready", owner=owner))
    assert (await gpu.rentals.reap()).deleted == ()
    assert len(emulator.running) == 1
    await put_as_it_is(gpu, attrs.evolve(record, stage="ready", owner=owner, expires_at=record.intended_at))
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("boot", [None, "the one before"])
async def test_rental_of_a_dead_process_of_this_machine_is_reaped_whatever_its_boot_and_name(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, boot: str | None
) -> None:
    async with gpu.rent(image=IMAGE, ttl=timedelta(hours=1)) as rental:
        record = await rental.detach()
    # The host may be renamed within a boot, as DHCP does; after a boot its name tells it from its clones.
    owner = identity_on(
        monkeypatch, host="renamed" if boot is None else platform.node(), boot=boot, process_id=NO_PROCESS
    )
    await put_as_it_is(gpu, attrs.evolve(record, stage="ready", owner=owner))
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


async def test_rental_of_a_live_process_is_left_after_its_host_was_renamed(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gpu.rent(image=IMAGE, ttl=timedelta(hours=1)) as rental:
        record = await rental.detach()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner = identity_on(monkeypatch, host="renamed", process_id=process.pid)
        owner = attrs.evolve(owner, started=str(look_up_process(process.pid)))
        await put_as_it_is(gpu, attrs.evolve(record, stage="ready", owner=owner))
        assert (await gpu.rentals.reap()).deleted == ()
        process.communicate()
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("found", [False, True])
async def test_record_of_a_living_process_outlives_the_reap(gpu: AsyncRentGPU, emulator: Emulator, found: bool) -> None:
    """Reap an intent of a process that was stopped before its create and may wake at any time."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            owner = attrs.evolve(this_process(), process_id=process.pid, started=str(look_up_process(process.pid)))
            async with gpu.rent(image=IMAGE) as rental:
                record = await rental.detach()
            if not found:
                await gpu.containers.delete(rental.container.id)
            long_ago = record.intended_at - timedelta(hours=1)
            record = attrs.evolve(
                record, stage="intended", container_id=None, expires_at=long_ago, certain_at=long_ago, owner=owner
            )
            await put_as_it_is(gpu, record)
            report = await gpu.rentals.reap(wait=True)
            # The record stays after its expiry, because its owner may still create the container.
            assert report.clean
            assert report.deleted == ((record.name,) if found else ())
            assert await gpu.rentals.list() == [record]
            emulator.assert_nothing_rented()
        finally:
            process.kill()
    assert (await gpu.rentals.reap()).gone == (record.name,)
    assert await gpu.rentals.list() == []


async def test_intent_of_a_killed_process_stays_doubtful_until_it_is_certain(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    async with gpu.rent(image=IMAGE, key=most_gpus_first) as rental:
        record = await rental.detach()
    intent = attrs.evolve(
        record,
        stage="intended",
        container_id=None,
        shown_name=None,
        owner=attrs.evolve(this_process(), process_id=NO_PROCESS),
        certain_at=read_clocks().wall + timedelta(seconds=5),
    )
    await put_as_it_is(gpu, intent)
    report = await gpu.rentals.reap()
    assert report.deleted == (record.name,)
    assert [doubtful.name for doubtful in report.doubtful] == [record.name]
    emulator.assert_nothing_rented()
    # The service acts on the create once more.
    await create_again(gpu, record.name, record.node_name)
    report = await gpu.rentals.reap(wait=True)
    assert (report.deleted, report.gone, report.clean) == ((record.name,), (), True)
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


async def test_clock_set_back_does_not_keep_the_reaper_waiting(gpu: AsyncRentGPU) -> None:
    set_limits(gpu, write=-4.0)
    assert timedelta(0) < gpu._context.longest_create < timedelta(seconds=2)
    moment = read_clocks().wall
    record = RentalRecord(
        name=new_name(moment),
        stage="abandoned",
        node_name="node",
        gpus=1,
        hourly_price=None,
        intended_at=moment + timedelta(days=1),
        expires_at=moment + timedelta(days=1),
        certain_at=moment + timedelta(days=1),
    )
    await put_as_it_is(gpu, record)
    async with asyncio.timeout(20):
        report = await gpu.rentals.reap(wait=True)
    assert (report.gone, report.clean) == ((record.name,), True)
    assert await gpu.rentals.list() == []


async def test_reap_waits_as_long_as_the_killed_clients_own_create_may_take(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    async with gpu.rent(image=IMAGE, key=most_gpus_first) as rental:
        record = await rental.detach()
    # The reaper's own creates take no time at all, by comparison.
    set_limits(gpu, write=-4.4)
    assert gpu._context.longest_create < timedelta(seconds=1)
    intent = attrs.evolve(
        record,
        stage="intended",
        container_id=None,
        owner=attrs.evolve(this_process(), process_id=NO_PROCESS),
        certain_at=record.present(read_clocks()) + timedelta(seconds=3),
        longest_create=timedelta(seconds=3),
    )
    await put_as_it_is(gpu, intent)
    report = await gpu.rentals.reap(wait=True)
    assert (report.deleted, report.doubtful) == ((record.name,), ())
    assert await gpu.rentals.list() == []
    emulator.assert_nothing_rented()


async def test_container_gone_is_reported_once_by_a_reap_that_waits(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    await gpu.containers.delete(rental.container.id)
    moment = read_clocks().wall
    await put_as_it_is(gpu, attrs.evolve(record, expires_at=moment, certain_at=moment + timedelta(seconds=0.5)))
    assert (await gpu.rentals.reap(wait=True)).gone == (record.name,)
    emulator.assert_nothing_rented()


async def test_reap_by_name_spares_a_container_whose_name_has_not_expired(
    gpu: AsyncRentGPU, emulator: Emulator, tmp_path: Path
) -> None:
    async with gpu.rent(image=IMAGE, ttl=timedelta(minutes=1)) as rental:
        await rental.detach()
    async with client(emulator, tmp_path / "another" / "file") as other:
        assert await other.rentals.list() == []
        assert (await other.rentals.reap(by_name=True)).deleted == ()
    assert len(emulator.running) == 1
    await gpu.containers.delete(rental.container.id)


async def test_unreadable_container_does_not_stop_a_reap_by_name(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    offers = await gpu.offers()
    await create_again(gpu, "foreign", offers[1].machine.node_name)
    call = Caller.call

    async def call_with_an_unreadable_id(self: Caller, request: Any, *arguments: Any, **keywords: Any) -> Any:
        reply = await call(self, request, *arguments, **keywords)
        if request.method == "GET" and request.path.endswith("containers/"):
            for item in reply.payload:
                item["id"] = "c-7f" if item["name"] == "foreign" else item["id"]
        return reply

    set_clock(gpu, timedelta(days=3))  # past the ceiling in the name
    monkeypatch.setattr(Caller, "call", call_with_an_unreadable_id)
    report = await gpu.rentals.reap(by_name=True)
    monkeypatch.undo()
    set_clock(gpu, timedelta(days=-3))
    assert report.deleted == (record.name,)
    assert report.failed
    assert all("is not a whole number" in str(error) for _, error in report.failed)
    assert [charge.name for charge in emulator.running] == ["foreign"]
    assert await gpu.rentals.list() == [record]
    for charge in emulator.running:
        await gpu.containers.delete(charge.container_id)


async def test_reap_by_name_counts_the_unreadable_items_that_it_does_not_name(
    gpu: AsyncRentGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Caller.call

    async def call_with_unreadable_items(self: Caller, request: Any, *arguments: Any, **keywords: Any) -> Any:
        reply = await call(self, request, *arguments, **keywords)
        if request.method == "GET" and request.path.endswith("containers/"):
            pages = {None: [{"id": 1}, *[None] * 50, {"id": 2}], "1": [{"id": 2}]}
            return reply._replace(payload=pages.get(request.query.get("marker"), []))
        return reply

    monkeypatch.setattr(Caller, "call", call_with_unreadable_items)
    report = await gpu.rentals.reap(by_name=True)
    *first, (name, _) = report.failed
    assert len(first) == 20
    assert name == "30 more items of the list"


async def test_cancelled_reap_finishes_the_deletion_under_way(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="create_container", status=502, when="after"))
    emulator.faults.add(Fault("status", call="list_containers", status=500, times="all"))
    rental = gpu.rent(image=IMAGE)
    entering = asyncio.create_task(rental.__aenter__())
    await until(lambda: bool(emulator.requests.of("list_containers")))
    await cancel_twice(entering)
    with pytest.raises(asyncio.CancelledError):
        await entering
    emulator.faults.clear()
    emulator.faults.add(Fault("slow", call="delete_container", seconds=0.3))
    reaping = asyncio.create_task(gpu.rentals.reap(wait=True))
    await until(lambda: bool(emulator.requests.of("delete_container")))
    reaping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reaping
    emulator.assert_nothing_rented()
    assert (await gpu.rentals.reap(wait=True)).clean
    assert await gpu.rentals.list() == []


async def test_reap_cancelled_while_deletions_fail_leaves_the_record(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    await put_as_it_is(gpu, attrs.evolve(record, expires_at=record.intended_at))
    refuse_deletes(emulator, "all")
    reaping = asyncio.create_task(gpu.rentals.reap())
    await until(lambda: bool(emulator.requests.of("delete_container")))
    reaping.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError):
            await reaping
    # A new rental, which reaps first, tries the deletion only once.
    async with asyncio.timeout(20):
        with pytest.raises(RentGPUError):
            await gpu.rent(image="there is none").__aenter__()
    emulator.faults.clear()
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("wait", [False, True])
async def test_doubtful_record_is_written_once_and_reported_as_it_is_on_file(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    soon = gpu._context.clock().wall + timedelta(seconds=1.5)
    await put_as_it_is(gpu, attrs.evolve(record, expires_at=record.intended_at, certain_at=soon))
    abandon, written = Ledger.abandon, list[RentalRecord]()

    async def note_and_abandon(self: Ledger, record: RentalRecord, owner: ProcessIdentity | None) -> None:
        written.append(record)
        await abandon(self, record, owner)

    monkeypatch.setattr(Ledger, "abandon", note_and_abandon)
    if not wait:
        (doubtful,) = (await gpu.rentals.reap()).doubtful
        (kept,) = await gpu.rentals.list()
        assert (kept.name, kept.container_id, doubtful.container_id) == (record.name, None, None)
    assert (await gpu.rentals.reap(wait=True)).clean
    assert len(written) == 1
    assert await gpu.rentals.list() == []
    emulator.assert_nothing_rented()


async def test_cancelled_reap_begins_no_further_deletion(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    for number in range(60):
        name = new_name(record.intended_at)
        await put_as_it_is(gpu, attrs.evolve(record, name=name, stage="abandoned", container_id=5000 + number))
    emulator.faults.add(Fault("slow", call="get_container", seconds=0.2, times="all"))
    asked = len(emulator.requests.of("get_container"))
    reaping = asyncio.create_task(gpu.rentals.reap())
    await until(lambda: len(emulator.requests.of("get_container")) >= asked + 20)
    reaping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reaping
    emulator.faults.clear()
    # The twenty under way have ended; all others stay on record.
    assert len(emulator.requests.of("delete_container")) == 20
    assert len(await gpu.rentals.list()) >= 41
    assert (await gpu.rentals.reap()).clean
    await gpu.containers.delete(rental.container.id)
