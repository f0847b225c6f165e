"""Leaving, detaching, closing and reaping while the service, the state file or somebody's patience fails."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from rented import IMAGE, PROFILE, cancel_twice, client, until

from netmind_rentgpu import (
    APIConnectionError,
    AsyncRental,
    AsyncRentGPU,
    ClientStateError,
    Container,
    ContainerGoneError,
    LedgerError,
    ReleaseError,
    RentalRecord,
    RentGPUError,
    Timeouts,
)
from netmind_rentgpu.emulator import Clock, Emulator, Fault, World
from netmind_rentgpu.rentals import desk, doubts, ends, reaper, term
from netmind_rentgpu.rentals.ledger import Ledger
from netmind_rentgpu.rentals.market import Roll
from netmind_rentgpu.rentals.names import new_name
from netmind_rentgpu.rentals.owners import see_process, this_process
from netmind_rentgpu.state import State
from netmind_rentgpu.wire.caller import Caller


def refuse_deletes(emulator: Emulator, times: Any) -> None:
    emulator.faults.add(Fault("status", call="delete_container", status=503, times=times))


async def create_again(gpu: AsyncRentGPU, name: str, node_name: str) -> Container:
    """Do as a gateway does that sends a create twice."""
    return await gpu.containers.create(name=name, auth_id=1, node_name=node_name, image_template_id=1, payment_type=0)


async def leave(gpu: AsyncRentGPU, entered: asyncio.Event) -> None:
    async with gpu.rent(image=IMAGE):
        entered.set()


# Patience.


@pytest.mark.parametrize("by_timeout", [False, True])
async def test_who_is_cancelled_once_while_leaving_waits_for_a_service_that_recovers(
    gpu: AsyncRentGPU, emulator: Emulator, by_timeout: bool
) -> None:
    # Each attempt is a call, which is repeated itself.
    refuse_deletes(emulator, 10)
    leaving = asyncio.create_task(leave(gpu, asyncio.Event()))
    await until(lambda: bool(emulator.requests.of("delete_container")))
    if by_timeout:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await leaving
    else:
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    emulator.assert_nothing_rented()
    assert await gpu.rentals.open() == []


@pytest.mark.parametrize("body", [False, True], ids=["twice while leaving", "in the block, and while leaving"])
async def test_who_is_cancelled_twice_leaves_it_on_record(gpu: AsyncRentGPU, emulator: Emulator, body: bool) -> None:
    refuse_deletes(emulator, "all")
    entered = asyncio.Event()

    async def rent() -> None:
        async with gpu.rent(image=IMAGE):
            entered.set()
            if body:
                await asyncio.Event().wait()

    renting = asyncio.create_task(rent())
    await entered.wait()
    if body:
        renting.cancel()
    await until(lambda: bool(emulator.requests.of("delete_container")))
    if body:
        renting.cancel()
    else:
        await cancel_twice(renting)
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await renting
    assert "could not be deleted" in cancelled.value.__notes__[0]
    emulator.faults.clear()
    (record,) = await gpu.rentals.open()
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


async def test_what_is_cancelled_too_often_is_told_and_can_be_reaped_here(
    gpu: AsyncRentGPU, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.faults.add(Fault("hang", call="delete_container", times="all"))
    others = asyncio.all_tasks()
    leaving = asyncio.create_task(leave(gpu, asyncio.Event()))
    await until(lambda: bool(emulator.requests.of("delete_container")))
    # As a program does that cancels what is left until nothing is, but for what serves here.
    while not leaving.done():
        for task in asyncio.all_tasks() - others:
            if "Hold" in str(task) or task is leaving:
                task.cancel()
        await asyncio.sleep(0.02)
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await leaving
    assert "cancelled too often" in cancelled.value.__notes__[0]
    assert "cancelled too often" in caplog.text
    emulator.faults.clear()
    (record,) = await gpu.rentals.open()
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


async def test_closing_a_client_can_be_given_up_and_says_what_is_left(
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


async def test_reaping_can_be_given_up(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    await gpu.rentals._desk.ledger.put(attrs.evolve(record, expires_at=record.intended_at))
    refuse_deletes(emulator, "all")
    reaping = asyncio.create_task(gpu.rentals.reap())
    await until(lambda: bool(emulator.requests.of("delete_container")))
    reaping.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError):
            await reaping
    # Nor does whoever rents wait for that more than once.
    async with asyncio.timeout(20):
        with pytest.raises(RentGPUError):
            await gpu.rent(image="there is none").__aenter__()
    emulator.faults.clear()
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


async def test_a_look_that_hangs_is_given_up(emulator: Emulator, state: Path) -> None:
    emulator.faults.add(Fault("drop", call="create_container", when="after"))
    emulator.faults.add(Fault("hang", call="list_containers", times="all"))
    async with AsyncRentGPU(
        emulator.token, base_url=emulator.url, state=state, profile=PROFILE, timeout=300, retries=0
    ) as gpu:
        entering = asyncio.create_task(gpu.rent(image=IMAGE).__aenter__())
        await until(lambda: bool(emulator.requests.of("list_containers")))
        await cancel_twice(entering)
        async with asyncio.timeout(20):
            with pytest.raises(asyncio.CancelledError):
                await entering
        emulator.faults.clear()
        assert (await gpu.rentals.reap(wait=True)).clean
    emulator.assert_nothing_rented()


@pytest.fixture
async def doubtful(emulator: Emulator, state: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncRentGPU]:
    """Give a client whose first create is in doubt for some seconds, and looked for at once when that is over."""
    monkeypatch.setattr(term, "_PAUSE", timedelta(0))
    async with client(emulator, state, attrs.evolve(PROFILE, create_lag=timedelta(seconds=3))) as gpu:
        emulator.faults.add(Fault("drop", call="create_container", when="after"))
        yield gpu


async def test_a_look_that_hangs_ends_with_the_rental(
    doubtful: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = doubtful
    rental = gpu.rent(image=IMAGE)
    async with asyncio.timeout(20), rental:
        monkeypatch.setattr(gpu._desk.roll, "_each", Timeouts(total=None, read=None))
        before = len(emulator.requests.of("list_containers"))
        emulator.faults.add(Fault("hang", call="list_containers"))
        await until(lambda: len(emulator.requests.of("list_containers")) > before)
        looking = rental._term._looking
        assert looking is not None
    # Who leaves does not wait for it, and leaves nothing behind that goes on.
    assert looking.done()
    emulator.assert_nothing_rented()


async def test_a_rental_whose_create_was_in_doubt_is_looked_at_until_it_is_not(
    doubtful: AsyncRentGPU, emulator: Emulator
) -> None:
    gpu = doubtful
    async with gpu.rent(image=IMAGE) as rental:
        assert rental._hold.certain_at is not None
        await until(lambda: rental._hold.certain_at is None)
    emulator.assert_nothing_rented()
    assert await gpu.rentals.open() == []


async def test_who_set_the_clock_back_does_not_keep_who_reaps_waiting(
    gpu: AsyncRentGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "LONGEST_LOCK", -4.0)
    assert timedelta(0) < gpu._desk.longest_create < timedelta(seconds=2)
    today = desk.now()
    record = RentalRecord(
        name=new_name(today),
        stage="abandoned",
        node_name="node",
        gpus=1,
        hourly_price=None,
        intended_at=today + timedelta(days=1),
        expires_at=today + timedelta(days=1),
        certain_at=today + timedelta(days=1),
    )
    await gpu._desk.ledger.put(record)
    async with asyncio.timeout(20):
        assert (await gpu.rentals.reap(wait=True)).doubtful == (record,)


# What cannot be believed.


async def test_two_404s_do_not_end_what_is_still_listed(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE):
        emulator.faults.add(Fault("status", call="delete_container", status=404))
        emulator.faults.add(Fault("status", call="get_container", status=404))
    emulator.assert_nothing_rented()
    assert await gpu.rentals.open() == []


async def test_404s_to_what_no_list_shows_yet_are_not_believed(state: Path) -> None:
    # The emulator's lag of 20 seconds passes in two of ours.
    world = World(list_lag="20 s")
    async with (
        Emulator(seed=7, boot_seconds=0.02, ssh=True, world=world, clock=Clock(scale=10)) as emulator,
        client(emulator, state, attrs.evolve(PROFILE, list_lag=timedelta(seconds=2))) as gpu,
    ):
        entering = asyncio.create_task(gpu.rent(image=IMAGE).__aenter__())
        await until(lambda: bool(emulator.charges))
        # All say that it is not there, as those do that have not heard of it yet.
        for call in ("delete_container", "get_container"):
            emulator.faults.add(Fault("status", call=call, status=404, times=3))
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        emulator.assert_nothing_rented()
        assert await gpu.rentals.open() == []


@pytest.mark.parametrize("answered", [False, True])
async def test_what_the_service_makes_again_later_is_deleted_too(
    gpu: AsyncRentGPU, emulator: Emulator, answered: bool
) -> None:
    create = gpu.containers.create
    late: list[asyncio.Task[Container]] = []
    go_on = asyncio.Event()

    async def twice(**wanted: Any) -> Container:
        async def again() -> Container:
            await go_on.wait()
            return await create(**wanted)

        late.append(asyncio.create_task(again()))
        container = await create(**wanted)
        if answered:
            return container
        raise APIConnectionError("it broke", maybe_processed=True)

    gpu.containers.create = twice  # type: ignore[method-assign]
    async with gpu.rent(image=IMAGE, key=lambda offer: -(offer.machine.gpu_count or 0)):
        go_on.set()
        await late[0]
        assert len(emulator.running) == 2
    emulator.assert_nothing_rented()
    assert (await gpu.rentals.reap(wait=True)).clean


async def test_what_a_killed_process_left_twice_is_deleted_twice(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE, key=lambda offer: -(offer.machine.gpu_count or 0)) as rental:
        record = await rental.detach()
        await create_again(gpu, record.name, record.node_name)
    await gpu.rentals._desk.ledger.put(attrs.evolve(record, expires_at=record.intended_at))
    assert (await gpu.rentals.reap()).clean
    emulator.assert_nothing_rented()


async def test_who_sets_the_clock_does_not_end_a_doubt(
    emulator: Emulator, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client(emulator, state, attrs.evolve(PROFILE, create_lag=timedelta(seconds=2))) as gpu:
        emulator.faults.add(Fault("late commit", seconds=1))
        async with gpu.rent(image=IMAGE):
            today = doubts.now()
            for module in (doubts, ends):
                monkeypatch.setattr(module, "now", lambda: today + timedelta(hours=1))
        monkeypatch.undo()
        assert len(await gpu.rentals.open()) == 1
        assert (await gpu.rentals.reap(wait=True)).clean
    emulator.assert_nothing_rented()


async def test_one_strange_container_does_not_blind_who_reaps_by_name(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    offers = await gpu.offers()
    await create_again(gpu, "somebody's", offers[1].machine.node_name)
    ask = Caller.call

    async def strange(self: Caller, request: Any, *arguments: Any, **keywords: Any) -> Any:
        reply = await ask(self, request, *arguments, **keywords)
        if request.method == "GET" and request.path.endswith("containers/"):
            for item in reply.payload:
                item["id"] = "c-7f" if item["name"] == "somebody's" else item["id"]
        return reply

    later = reaper.now() + timedelta(days=2)
    monkeypatch.setattr(reaper, "now", lambda: later)
    monkeypatch.setattr(Caller, "call", strange)
    report = await gpu.rentals.reap(by_name=True)
    monkeypatch.undo()
    assert report.deleted == (record.name,)
    assert report.failed
    assert all("is not a whole number" in str(error) for _, error in report.failed)
    assert [charge.name for charge in emulator.running] == ["somebody's"]
    assert await gpu.rentals.open() == [record]
    for charge in emulator.running:
        await gpu.containers.delete(charge.container_id)


async def test_a_twin_that_cannot_be_deleted_is_told_and_on_record(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "_LONGEST_DELETION", 0.1)
    with pytest.raises(ReleaseError, match="made it twice"):
        async with gpu.rent(image=IMAGE, key=lambda offer: -(offer.machine.gpu_count or 0)) as rental:
            twin = await create_again(gpu, rental.name, rental.machine.node_name)
            # But the first one.
            emulator.faults.add(Fault("status", call="delete_container", status=503, nth=2, times="all"))
    assert [charge.container_id for charge in emulator.running] == [twin.id]
    emulator.faults.clear()
    (record,) = await gpu.rentals.open()
    assert (record.stage, record.container_id) == ("abandoned", None)
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("attached", [False, True])
async def test_a_doubt_outlives_who_had_it(emulator: Emulator, state: Path, attached: bool) -> None:
    async with client(emulator, state, attrs.evolve(PROFILE, create_lag=timedelta(seconds=2))) as gpu:
        emulator.faults.add(Fault("drop", call="create_container", when="after"))
        async with gpu.rent(image=IMAGE, key=lambda offer: -(offer.machine.gpu_count or 0)) as rental:
            record = await rental.detach()
        if attached:
            async with gpu.rentals.attach(record):
                pass
        else:
            # As one that was killed left it.
            await gpu.rentals._desk.ledger.put(attrs.evolve(record, expires_at=record.intended_at))
            assert [one.name for one in (await gpu.rentals.reap()).doubtful] == [record.name]
        emulator.assert_nothing_rented()
        # The service acts on it once more.
        await create_again(gpu, rental.name, rental.machine.node_name)
        assert (await gpu.rentals.reap(wait=True)).deleted == (record.name,)
        assert await gpu.rentals.open() == []
    emulator.assert_nothing_rented()


async def test_what_is_kept_is_handed_over_once_it_is_certain_that_it_is_the_only_one(
    emulator: Emulator, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client(emulator, state, attrs.evolve(PROFILE, create_lag=timedelta(seconds=2))) as gpu:
        ready = gpu.containers.wait_ready

        async def made_again(container_id: int, **keywords: Any) -> Container:
            container = await ready(container_id, **keywords)
            await create_again(gpu, container.name, emulator.charges[0].node_name)
            return container

        monkeypatch.setattr(gpu.containers, "wait_ready", made_again)
        emulator.faults.add(Fault("drop", call="create_container", when="after"))
        async with gpu.rent(image=IMAGE, keep=True, key=lambda offer: -(offer.machine.gpu_count or 0)) as rental:
            assert [charge.container_id for charge in emulator.running] == [rental.container.id]
        assert await gpu.rentals.open() == []
        assert [charge.container_id for charge in emulator.running] == [rental.container.id]
        await gpu.containers.delete(rental.container.id)


async def test_who_closes_the_client_does_not_hurry_what_is_released_already(emulator: Emulator, state: Path) -> None:
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


async def test_who_has_deleted_it_leaves_at_once(emulator: Emulator, state: Path) -> None:
    async with client(emulator, state, attrs.evolve(PROFILE, list_lag=timedelta(hours=1))) as gpu:
        async with asyncio.timeout(20):
            async with gpu.rent(image=IMAGE) as rental:
                await gpu.containers.delete(rental.container.id)
        assert await gpu.rentals.open() == []
    emulator.assert_nothing_rented()


# The state file.


async def test_what_was_closed_while_it_was_detached_is_not_detached(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Ledger.put

    async def closed_meanwhile(self: Ledger, record: RentalRecord) -> None:
        if record.stage == "detached":
            monkeypatch.undo()
            await gpu.close()
        await put(self, record)

    rental = await gpu.rent(image=IMAGE).__aenter__()
    monkeypatch.setattr(Ledger, "put", closed_meanwhile)
    with pytest.raises(ClientStateError, match="closed"):
        await rental.detach()
    emulator.assert_nothing_rented()


def test_a_loop_that_stops_while_it_attaches_leaves_it_detached(state: Path) -> None:
    with Emulator(seed=7, boot_seconds=0.02, ssh=True) as emulator:

        async def detach(gpu: AsyncRentGPU) -> RentalRecord:
            async with gpu, gpu.rent(image=IMAGE) as rental:
                return await rental.detach()

        record = asyncio.run(detach(client(emulator, state)))
        program = subprocess.run(
            [sys.executable, "-c", STOPS_WHILE_ATTACHING, emulator.url, emulator.token, str(state), record.name],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert program.returncode == 0, program.stderr
        assert len(emulator.running) == 1
        assert asyncio.run(open_and_reaped(client(emulator, state), record))
        emulator.assert_nothing_rented()


STOPS_WHILE_ATTACHING = """
import asyncio, sys
from netmind_rentgpu import AsyncRentGPU

url, token, state, name = sys.argv[1:]

async def main():
    global gpu, entering
    gpu = AsyncRentGPU(token, base_url=url, state=state)
    gpu.containers.get = lambda *_, **__: asyncio.Event().wait()
    entering = asyncio.create_task(gpu.rentals.attach(name).__aenter__())
    while [record.stage for record in await gpu.rentals.open()] != ["ready"]:
        await asyncio.sleep(0.01)
    asyncio.get_running_loop().stop()
    await asyncio.Event().wait()

loop = asyncio.new_event_loop()
task = loop.create_task(main())
loop.run_forever()
"""


async def open_and_reaped(gpu: AsyncRentGPU, record: RentalRecord) -> bool:
    async with gpu:
        stages = [one.stage for one in await gpu.rentals.open()]
        async with gpu.rentals.attach(record):
            return stages == ["detached"]


def test_a_loop_that_stops_while_it_writes_does_not_hold_up_the_next(state: Path) -> None:
    kept = State(state)
    gate = threading.Event()
    first = asyncio.new_event_loop()
    writing = first.create_task(kept.write(lambda _: gate.wait(20)))
    first.call_later(0.05, first.stop)
    first.run_forever()

    async def write() -> int:
        return await asyncio.wait_for(kept.write(lambda _: 1), 20)

    gate.set()
    assert asyncio.run(write()) == 1
    first.run_until_complete(asyncio.wait({writing}))
    first.close()
    kept.close()


async def test_what_was_to_be_kept_is_on_record_again_where_it_is_not_handed_over(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Ledger.close

    async def cancelled(self: Ledger, names: Any) -> None:
        entering.cancel()
        await close(self, names)

    monkeypatch.setattr(Ledger, "close", cancelled)
    monkeypatch.setattr(ends, "_LONGEST_DELETION", 0.1)
    refuse_deletes(emulator, "all")
    entering = asyncio.create_task(gpu.rent(image=IMAGE, keep=True).__aenter__())
    with pytest.raises(asyncio.CancelledError) as raised:
        await entering
    monkeypatch.undo()
    assert "it is on record" in raised.value.__notes__[0]
    emulator.faults.clear()
    (record,) = await gpu.rentals.open()
    assert record.name.startswith("kept-")
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


async def test_who_cannot_attach_for_now_can_later(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()

    async def broken(*_: Any) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(Ledger, "take", broken)
    with pytest.raises(LedgerError, match="full"):
        await gpu.rentals.attach(record).__aenter__()
    monkeypatch.undo()
    async with gpu.rentals.attach(record) as attached:
        assert attached.name == record.name
    emulator.assert_nothing_rented()


async def test_who_is_cancelled_while_detaching_has_detached_and_nothing_else(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Ledger.put

    async def cancelled(self: Ledger, record: RentalRecord) -> None:
        if record.stage == "detached":
            using.cancel()
        await put(self, record)

    monkeypatch.setattr(Ledger, "put", cancelled)

    async def use() -> RentalRecord:
        async with gpu.rent(image=IMAGE, ttl=timedelta(seconds=3)) as rental:
            expires_at = rental.expires_at
            assert expires_at is not None
            with pytest.raises(asyncio.CancelledError):
                await rental.detach()
            using.uncancel()
            # It does not end with its time any more.
            await until(lambda: reaper.now() > expires_at)
            await asyncio.sleep(0)
            assert len(emulator.running) == 1
        (record,) = await gpu.rentals.open()
        return record

    using = asyncio.create_task(use())
    record = await using
    assert (record.stage, record.owner) == ("detached", None)
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


async def test_the_state_file_is_read_while_all_threads_of_the_loop_are_busy(gpu: AsyncRentGPU) -> None:
    loop, go_on = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    busy = loop.run_in_executor(None, go_on.wait, 30)
    async with asyncio.timeout(20):
        assert await gpu.rentals.open() == []
    go_on.set()
    await busy


# Owners.


@pytest.mark.parametrize("found", [False, True])
async def test_who_lives_may_still_create_what_is_on_record(gpu: AsyncRentGPU, emulator: Emulator, found: bool) -> None:
    """An owner that was stopped between its intent and its create, and wakes when its time is up."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            owner = attrs.evolve(this_process(), process_id=process.pid, started=str(see_process(process.pid)))
            async with gpu.rent(image=IMAGE) as rental:
                record = await rental.detach()
            if not found:
                await gpu.containers.delete(rental.container.id)
            long_ago = record.intended_at - timedelta(hours=1)
            record = attrs.evolve(
                record, stage="intended", container_id=None, expires_at=long_ago, certain_at=long_ago, owner=owner
            )
            await gpu.rentals._desk.ledger.put(record)
            report = await gpu.rentals.reap(wait=True)
            # Its time is up; but what it was about to create may come yet.
            assert report.clean
            assert report.deleted == ((record.name,) if found else ())
            assert await gpu.rentals.open() == [record]
            emulator.assert_nothing_rented()
        finally:
            process.kill()
    assert (await gpu.rentals.reap()).gone == (record.name,)
    assert await gpu.rentals.open() == []


def test_what_a_closed_loop_had_is_nobodys(state: Path) -> None:
    with Emulator(seed=7, boot_seconds=0.02, ssh=True) as emulator:

        async def leave_open() -> None:
            gpu = client(emulator, state)
            await gpu.rent(image=IMAGE).__aenter__()
            await gpu._caller.close()
            gpu._state.close()

        async def reap() -> int:
            async with client(emulator, state) as gpu:
                return len((await gpu.rentals.reap()).deleted)

        asyncio.run(leave_open())
        assert asyncio.run(reap()) == 1
        emulator.assert_nothing_rented()


# The line.


async def test_what_vanishes_before_a_shell_is_opened_is_gone(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = gpu.containers.wait_ready

    async def vanishes(container_id: int, **keywords: Any) -> Container:
        container = await ready(container_id, **keywords)
        await gpu.containers.delete(container_id)
        return container

    monkeypatch.setattr(gpu.containers, "wait_ready", vanishes)
    async with asyncio.timeout(20):
        with pytest.raises(ContainerGoneError, match="before a shell on it could be opened") as gone:
            await gpu.rent(image=IMAGE).__aenter__()
    assert list(gone.value.pending) == [gone.value.container_id]
    emulator.assert_nothing_rented()


async def test_who_reconnects_while_it_is_detached_leaves_no_connection(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rental = await gpu.rent(image=IMAGE).__aenter__()
    first = rental.shell
    await gpu.containers.restart(rental.container.id)
    await until(lambda: first.lost)
    await gpu.containers.wait_ready(rental.container.id, timeout=20)
    log_in, go_on = gpu._access.log_in, asyncio.Event()
    connections: list[Any] = []

    async def slowly(*arguments: Any, **keywords: Any) -> Any:
        connections.append(await log_in(*arguments, **keywords))
        await go_on.wait()
        return connections[0]

    monkeypatch.setattr(gpu._access, "log_in", slowly)
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


# What the service makes twice.


async def test_what_a_process_left_that_was_killed_while_it_created_is_in_doubt_until_its_horizon(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    async with gpu.rent(image=IMAGE, key=lambda offer: -(offer.machine.gpu_count or 0)) as rental:
        record = await rental.detach()
    intent = attrs.evolve(
        record,
        stage="intended",
        container_id=None,
        shown_name=None,
        owner=attrs.evolve(this_process(), process_id=2**22 + 1),
        certain_at=desk.now() + timedelta(seconds=5),
    )
    await gpu.rentals._desk.ledger.put(intent)
    report = await gpu.rentals.reap()
    assert report.deleted == (record.name,)
    assert [one.name for one in report.doubtful] == [record.name]
    emulator.assert_nothing_rented()
    # The service acts on the create once more.
    await create_again(gpu, record.name, record.node_name)
    report = await gpu.rentals.reap(wait=True)
    assert (report.deleted, report.gone, report.clean) == ((record.name,), (), True)
    emulator.assert_nothing_rented()
    assert await gpu.rentals.open() == []


@pytest.mark.parametrize("deletes_fail", [False, True])
async def test_what_is_kept_is_the_only_one_though_nothing_has_failed(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, deletes_fail: bool
) -> None:
    create = gpu.containers.create

    async def twice(**wanted: Any) -> Container:
        made = await create(**wanted)
        await create(**wanted)
        if deletes_fail:
            refuse_deletes(emulator, "all")
        return made

    monkeypatch.setattr(gpu.containers, "create", twice)
    monkeypatch.setattr(ends, "_LONGEST_DELETION", 0.5)
    rental = gpu.rent(image=IMAGE, keep=True, key=lambda offer: -(offer.machine.gpu_count or 0))
    if deletes_fail:
        with pytest.raises(RentGPUError, match="503"):
            await rental.__aenter__()
        emulator.faults.clear()
        assert (await gpu.rentals.reap(wait=True)).clean
        emulator.assert_nothing_rented()
    else:
        async with rental:
            pass
        assert [charge.container_id for charge in emulator.running] == [rental.container.id]
    assert await gpu.rentals.open() == []


@pytest.mark.parametrize("fails", [False, True])
async def test_who_is_cancelled_while_what_is_kept_is_made_certain_leaves_nothing(
    gpu: AsyncRentGPU,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails: bool,
) -> None:
    call = Roll.call

    async def cancelled(self: Roll) -> list[Container]:
        monkeypatch.undo()
        entering.cancel()
        await asyncio.sleep(0.05)
        if fails:
            raise APIConnectionError("it broke")
        return await call(self)

    monkeypatch.setattr(Roll, "call", cancelled)
    entering = asyncio.create_task(gpu.rent(image=IMAGE, keep=True).__aenter__())
    with pytest.raises(asyncio.CancelledError):
        await entering
    emulator.assert_nothing_rented()
    assert await gpu.rentals.open() == []
    gc.collect()
    assert "never retrieved" not in caplog.text


# Who is killed, or in a hurry.


async def test_what_was_to_be_kept_is_on_record_while_it_is_deleted_after_all(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Ledger.close

    async def cancelled(self: Ledger, names: Any) -> None:
        monkeypatch.setattr(Ledger, "close", close)
        entering.cancel()
        await close(self, names)

    delete, on_record = doubts.Doubts.delete, list[RentalRecord]()

    async def seen(self: doubts.Doubts, *arguments: Any) -> Any:
        on_record.extend(await gpu.rentals.open())
        return await delete(self, *arguments)

    monkeypatch.setattr(Ledger, "close", cancelled)
    monkeypatch.setattr(doubts.Doubts, "delete", seen)
    entering = asyncio.create_task(gpu.rent(image=IMAGE, keep=True).__aenter__())
    with pytest.raises(asyncio.CancelledError):
        await entering
    # As whoever is killed while it is deleted leaves it.
    (record,) = on_record
    assert (record.container_id, record.owner) == (emulator.charges[0].container_id, this_process())
    emulator.assert_nothing_rented()
    assert await gpu.rentals.open() == []


async def test_who_is_cancelled_twice_does_not_wait_for_a_create_that_hangs(emulator: Emulator, state: Path) -> None:
    async with AsyncRentGPU(
        emulator.token, base_url=emulator.url, state=state, profile=PROFILE, timeout=300, retries=0
    ) as gpu:
        emulator.faults.add(Fault("hang", call="create_container"))
        entering = asyncio.create_task(gpu.rent(image=IMAGE).__aenter__())
        await until(lambda: bool(emulator.requests.of("create_container")))
        await cancel_twice(entering)
        async with asyncio.timeout(20):
            with pytest.raises(asyncio.CancelledError):
                await entering
        assert len(await gpu.rentals.open()) == 1


# Who uses what is being left.


async def command_of(rental: AsyncRental) -> asyncio.Task[Any]:
    """Return a command that runs until it is ended."""
    running = asyncio.create_task(rental.run("touch begun; exec sleep 1000"))
    while not (await rental.run("test -e begun")).ok:
        await asyncio.sleep(0.01)
    return running


async def test_what_runs_when_it_is_left_is_told_that(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        running = await command_of(rental)
    for use in (running, rental.run("true")):
        with pytest.raises(ClientStateError, match="it was left"):
            await use


async def test_what_runs_when_it_is_closed_is_told_that(gpu: AsyncRentGPU) -> None:
    rental = await gpu.rent(image=IMAGE).__aenter__()
    running = await command_of(rental)
    await rental.close()
    for use in (running, rental.run("true")):
        with pytest.raises(ClientStateError, match="it was closed"):
            await use


async def test_a_shell_that_was_closed_is_not_used_again(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        shell = rental.shell
        await shell.close()
        assert (await rental.run("echo in")).stdout == "in\n"
        assert rental.shell is not shell


# What nobody has thought of.


async def test_an_end_that_breaks_down_is_told_and_leaves_it_to_the_reaper(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("nobody has thought of it")

    with pytest.raises(ReleaseError, match="thought of it") as raised:
        async with gpu.rent(image=IMAGE) as rental:
            monkeypatch.setattr(doubts.Doubts, "delete", broken)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert (await gpu.rentals.reap(wait=True)).deleted == (rental.name,)
    emulator.assert_nothing_rented()


async def test_what_is_gone_is_said_once(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    await gpu.containers.delete(rental.container.id)
    moment = desk.now()
    await gpu.rentals._desk.ledger.put(
        attrs.evolve(record, expires_at=moment, certain_at=moment + timedelta(seconds=0.5))
    )
    assert (await gpu.rentals.reap(wait=True)).gone == (record.name,)
    emulator.assert_nothing_rented()
