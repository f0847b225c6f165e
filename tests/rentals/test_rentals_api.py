"""`client.rentals`: what it lists, how a rental is named, and releases without a login."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from lifecycle import refuse_deletes, set_clock, set_limits
from programs import FOLDER, LONGEST
from rented import IMAGE, PROFILE, client
from until import until

from netmind_rentgpu import (
    AsyncRentGPU,
    InvalidArgumentError,
    NoMachineError,
    ReleaseError,
    RentalEndedError,
    RentalExpiredError,
    RentalInUseError,
    RentalNotFoundError,
    RentGPU,
    TransportError,
)
from netmind_rentgpu.emulator import Emulator, Fault, World
from netmind_rentgpu.rentals.ledger.names import expiry_in
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.lifecycle.finding import matching_records
from netmind_rentgpu.state_schema import MIGRATIONS

LATER = datetime(2026, 11, 1, tzinfo=UTC)
# Long enough for no create in doubt to become certain within a test.
LONG_DOUBT = attrs.evolve(PROFILE, create_lag=timedelta(hours=1))


async def detached(gpu: AsyncRentGPU) -> RentalRecord:
    """Rent a machine, and leave it running."""
    async with gpu.rent(image=IMAGE) as rental:
        return await rental.detach()


async def refused_everywhere(gpu: AsyncRentGPU, emulator: Emulator) -> int:
    """Rent, while each machine refuses; return how many have refused."""
    emulator.faults.add(Fault("stock-out", times="all"))
    with pytest.raises(NoMachineError) as refused:
        async with gpu.rent(image=IMAGE, gpu_name="RTX 4090"):
            pytest.fail("a machine was rented")
    emulator.faults.clear()
    return len(refused.value.refusals)


async def lose_the_answer(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    """Rent, while the answer to the create is lost and the list cannot be read."""
    set_limits(gpu, failed_search=0.5)
    emulator.faults.add(Fault("drop", call="create_container", when="before"))
    emulator.faults.add(Fault("status", call="list_containers", status=500, times="all"))
    with pytest.raises(TransportError):
        async with gpu.rent(image=IMAGE):
            pytest.fail("a machine was rented")


# What is listed.


async def test_refused_creates_are_neither_listed_nor_doubtful(emulator: Emulator, state: Path) -> None:
    async with client(emulator, state, LONG_DOUBT) as gpu:
        count = await refused_everywhere(gpu, emulator)
        assert await gpu.rentals.list() == []
        report = await gpu.rentals.reap()
        assert report.doubtful == ()
        assert report.clean
        # They are on record all the same.
        assert len(await gpu._context.ledger.list_open()) == count >= 1


async def test_container_of_a_refused_create_is_reaped_once_it_turns_up(emulator: Emulator, state: Path) -> None:
    async with client(emulator, state, LONG_DOUBT) as gpu:
        await refused_everywhere(gpu, emulator)
        record, *_ = await gpu._context.ledger.list_open()
        await gpu.containers.create(
            name=record.name,
            auth_id=1,
            node_name=record.node_name,
            image_template_id=1,
            payment_type="USD",
            gpu=record.gpus,
        )
        assert (await gpu.rentals.reap()).deleted == (record.name,)
        # Another may turn up now, since the service has acted on what it refused.
        assert [found.name for found in await gpu.rentals.list()] == [record.name]
    emulator.assert_nothing_rented()


async def test_create_without_an_answer_is_listed_and_doubtful(emulator: Emulator, state: Path) -> None:
    async with client(emulator, state, LONG_DOUBT) as gpu:
        await lose_the_answer(gpu, emulator)
        (record,) = await gpu.rentals.list()
        emulator.faults.clear()
        report = await gpu.rentals.reap()
        assert [doubtful.name for doubtful in report.doubtful] == [record.name]
        assert not report.clean


async def test_file_of_an_earlier_version_is_migrated(emulator: Emulator, state: Path) -> None:
    async with client(emulator, state) as gpu:
        record = await detached(gpu)
    make_earlier(state, version=8)
    async with client(emulator, state) as gpu:
        (old,) = await gpu.rentals.list()
        # Its ceiling is known by the name alone, in whole minutes.
        unknown = dict.fromkeys(("gpu_name", "region", "image", "currency", "created_at", "ready_at"))
        assert old == attrs.evolve(record, extendable_to=expiry_in(record.name), **unknown)
        assert await gpu.rentals.history() == []
        await gpu.rentals.release(record)
        (past,) = await gpu.rentals.history()
        assert (past.name, past.node_name, past.gpu_name, past.cause) == (
            record.name,
            record.node_name,
            None,
            "released",
        )


def make_earlier(state: Path, *, version: int) -> None:
    """Bring a state file back to an earlier version, with what that version would have of its open rentals."""
    with closing(sqlite3.connect(state)) as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute("SELECT * FROM rentals")]
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            connection.execute(f"DROP TABLE {table}")
        for migration in MIGRATIONS[:version]:
            connection.execute(migration)
        columns = [column for _, column, *_ in connection.execute("PRAGMA table_info(rentals)").fetchall()]
        places = ", ".join(f":{column}" for column in columns)
        connection.executemany(f"INSERT INTO rentals ({', '.join(columns)}) VALUES ({places})", rows)
        connection.execute(f"PRAGMA user_version = {version}")
        connection.commit()


# How a rental is named.


async def test_rental_is_found_by_its_label(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with (
        gpu.rent(image=IMAGE, label="sweep-3") as first,
        gpu.rent(image=IMAGE, label="sweep-3") as second,
        gpu.rent(image=IMAGE, label="other") as third,
    ):
        assert (await gpu.rentals.get("other")).name == third.name
        assert [record.label for record in await gpu.rentals.list()] == ["sweep-3", "sweep-3", "other"]
        with pytest.raises(InvalidArgumentError) as ambiguous:
            await gpu.rentals.release("sweep-3")
        assert f"{first.name}, sweep-3 (container {first.container.id})" in str(ambiguous.value)
        assert second.name in str(ambiguous.value)
        # Half a label is none.
        with pytest.raises(RentalNotFoundError, match="other"):
            await gpu.rentals.get("oth")
        assert (await gpu.rentals.extend("other", ttl=timedelta(hours=30))).label == "other"
        await third.detach()
        async with gpu.rentals.attach("other") as attached:
            assert attached.name == third.name
    emulator.assert_nothing_rented()


def test_exact_label_goes_before_an_id_and_before_a_part_of_a_name() -> None:
    def record(name: str, label: str | None, container_id: int | None) -> RentalRecord:
        moment = datetime(2026, 1, 2, tzinfo=UTC)
        return RentalRecord(
            name=name,
            label=label,
            stage="ready",
            container_id=container_id,
            node_name="node",
            gpus=1,
            hourly_price=None,
            intended_at=moment,
            expires_at=moment,
            certain_at=moment,
        )

    records = [record("rg-a2", "3", 7), record("rg-b", "2", 3), record("rg-c", "rg", None), record("2", None, 2)]
    for wanted, names in (
        ("2", ["2"]),
        ("3", ["rg-a2"]),
        ("7", ["rg-a2"]),
        ("rg", ["rg-c"]),
        ("rg-", ["rg-a2", "rg-b", "rg-c"]),
        ("a2", ["rg-a2"]),
        ("None", []),
    ):
        assert [found.name for found in matching_records(records, wanted)] == names


@pytest.mark.parametrize("label", ["", 7, "x" * 101, "a\nb", "\x1b[31m", " "])
def test_label_that_cannot_be_shown_is_refused(label: Any, tmp_path: Path) -> None:
    gpu = AsyncRentGPU("token", state=tmp_path / "state")
    with pytest.raises(InvalidArgumentError, match=r"^label: must be"):
        gpu.rent(image=IMAGE, label=label)


async def test_rental_is_found_by_record_name_part_and_container(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    first, second = await detached(gpu), await detached(gpu)
    assert first.container_id is not None
    for wanted in (first, first.name, first.name[3:-2], first.container_id, str(first.container_id)):
        assert await gpu.rentals.get(wanted) == first
    with pytest.raises(InvalidArgumentError) as ambiguous:
        await gpu.rentals.get("rg-")
    assert first.name in str(ambiguous.value)
    assert second.name in str(ambiguous.value)
    for record in (first, second):
        await gpu.rentals.release(record)


async def test_unknown_rental_is_not_found_and_the_error_names_those_on_record(gpu: AsyncRentGPU) -> None:
    with pytest.raises(RentalNotFoundError, match=r"'rg-unknown' is on record in .*; none is"):
        await gpu.rentals.get("rg-unknown")
    record = await detached(gpu)
    for call in (gpu.rentals.get, gpu.rentals.release):
        with pytest.raises(RentalNotFoundError, match=f"container 77 is on record in .*; on record are {record.name}"):
            await call(77)
    await gpu.rentals.release(record)
    with pytest.raises(RentalNotFoundError):
        await gpu.rentals.release(record)


@pytest.mark.parametrize("wanted", ["", 2**64, None, 1.5, True, b"rg"])
async def test_rental_named_by_no_name_is_refused(gpu: AsyncRentGPU, wanted: object) -> None:
    with pytest.raises(InvalidArgumentError, match="rental"):
        await gpu.rentals.get(wanted)  # type: ignore[arg-type]  # the fault under test
    with pytest.raises(InvalidArgumentError, match="rental"):
        gpu.rentals.attach(wanted)  # type: ignore[arg-type]  # the fault under test


def test_exact_name_wins_over_names_that_hold_it() -> None:
    base = RentalRecord(
        name="rg-1",
        stage="ready",
        container_id=105,
        node_name="n",
        gpus=1,
        hourly_price=None,
        intended_at=LATER,
        expires_at=None,
        certain_at=LATER,
    )
    longer = attrs.evolve(base, name="rg-105", container_id=7)
    refused = attrs.evolve(base, name="rg-9", container_id=None, refused=True)
    records = [base, longer, refused]
    assert matching_records(records, "rg-1") == [base]
    assert matching_records(records, "rg-10") == [longer]
    assert matching_records(records, "105") == [base]
    assert matching_records(records, 105) == [base]
    assert matching_records(records, "rg-9") == []


async def test_rental_of_an_exchanged_token_is_found_and_released(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    record = await detached(gpu)
    token = emulator.add_token()
    async with client(emulator, state, token=token) as other:
        assert await other.rentals.get(record.name) == record
        await other.rentals.release(record.name)
    emulator.assert_nothing_rented()


# Releases.


async def test_release_deletes_a_detached_rental_without_a_login(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    record = await detached(gpu)
    logins = len(emulator.requests.of("get_auth"))
    await gpu.rentals.release(record.name)
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []
    assert len(emulator.requests.of("get_auth")) == logins


async def test_rental_in_use_here_is_released_only_by_force(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    with pytest.raises(RentalEndedError, match="is gone"):
        async with gpu.rent(image=IMAGE) as rental:
            with pytest.raises(RentalInUseError, match="this process uses it") as in_use:
                await gpu.rentals.release(rental.name)
            assert in_use.value.name == rental.name
            assert in_use.value.container_id == rental.container.id
            assert (await rental.run("true")).ok
            await gpu.rentals.release(rental.name, force=True)
            emulator.assert_nothing_rented()
            await rental.run("true")
    assert await gpu.rentals.list() == []


async def test_rental_of_another_living_process_is_released_only_by_force(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    settings = {
        "NETMIND_BASE_URL": emulator.url,
        "NETMIND_API_KEY": emulator.token,
        "NETMIND_RENTGPU_STATE": str(state),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        FOLDER / "rent_until_told.py",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **settings},
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(LONGEST):
            name = (await process.stdout.readline()).decode().strip()
        record = await gpu.rentals.get(name)
        with pytest.raises(RentalInUseError, match=f"process {process.pid} uses it"):
            await gpu.rentals.release(record)
        with pytest.raises(RentalInUseError, match="belongs to a process"):
            await gpu.rentals.attach(record).__aenter__()
        assert len(emulator.running) == 1
        await gpu.rentals.release(record, force=True)
        emulator.assert_nothing_rented()
        assert await gpu.rentals.list() == []
        # The other process leaves its block without an error, and nothing of the rental comes back.
        async with asyncio.timeout(LONGEST):
            output, _ = await process.communicate(b"")
        assert (output, process.returncode) == (b"left\n", 0)
        assert await gpu.rentals.list() == []
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_release_that_fails_says_so_and_stays_on_record(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    record = await detached(gpu)
    set_limits(gpu, deletion=0.3)
    refuse_deletes(emulator, "all")
    with pytest.raises(ReleaseError, match="could not be deleted") as problem:
        await gpu.rentals.release(record)
    assert problem.value.container_id == record.container_id
    assert [found.stage for found in await gpu.rentals.list()] == ["abandoned"]
    emulator.faults.clear()
    with pytest.raises(RentalEndedError, match="is over"):
        await gpu.rentals.attach(record).__aenter__()
    await gpu.rentals.release(record)
    emulator.assert_nothing_rented()


async def test_release_of_a_create_in_doubt_says_until_when_it_may_turn_up(emulator: Emulator, state: Path) -> None:
    async with client(emulator, state, LONG_DOUBT) as gpu:
        await lose_the_answer(gpu, emulator)
        emulator.faults.clear()
        (record,) = await gpu.rentals.list()
        with pytest.raises(ReleaseError, match=r"may still turn up until .* UTC"):
            await gpu.rentals.release(record)
        assert [found.name for found in await gpu.rentals.list()] == [record.name]


async def test_expired_rental_cannot_be_attached_but_released(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    record = await detached(gpu)
    set_clock(gpu, timedelta(days=2), boot="another boot")
    with pytest.raises(RentalExpiredError, match="time of rental"):
        await gpu.rentals.attach(record).__aenter__()
    await gpu.rentals.release(record)
    emulator.assert_nothing_rented()


def test_sync_client_gets_and_releases(state: Path) -> None:
    with (
        Emulator(seed=7, boot_seconds=0, ssh=True) as emulator,
        RentGPU(emulator.token, base_url=emulator.url, state=state, profile=PROFILE) as gpu,
    ):
        with gpu.rent(image=IMAGE) as rental:
            record = rental.detach()
        assert gpu.rentals.get(record.name) == record
        gpu.rentals.release(record.name)
        with pytest.raises(RentalNotFoundError):
            gpu.rentals.get(record.name)


# Deletions by `containers.delete`.


async def test_record_of_a_detached_rental_goes_with_its_container(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    record = await detached(gpu)
    assert record.container_id is not None
    await gpu.containers.delete(record.container_id)
    assert await gpu.rentals.list() == []
    assert (await gpu.rentals.reap()).clean


async def test_record_stays_for_reap_while_the_deleted_container_is_still_shown(state: Path) -> None:
    world = World(delete_lag="20 s")
    async with Emulator(seed=7, boot_seconds=0, ssh=True, world=world) as emulator, client(emulator, state) as gpu:
        record = await detached(gpu)
        assert record.container_id is not None
        await gpu.containers.delete(record.container_id)
        assert [found.stage for found in await gpu.rentals.list()] == ["abandoned"]


async def test_client_that_never_used_rentals_touches_no_file(emulator: Emulator, state: Path) -> None:
    async with client(emulator, state) as gpu:
        machine, *_ = await gpu.machines.list()
        auth = await gpu.auths.create("a-long-password")
        made = await gpu.containers.create(
            name="mine", auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type="USD"
        )
        await gpu.containers.delete(made.id)
        assert await gpu.containers.delete(made.id, missing_ok=True) is None
    assert not state.exists()


async def test_record_goes_with_its_container_in_a_client_that_has_only_listed(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    record = await detached(gpu)
    async with client(emulator, state) as other:
        (found,) = await other.rentals.list()
        assert found.container_id is not None
        await other.containers.delete(found.container_id)
        assert await other.rentals.list() == []
    assert found == record


# Another process, or another client of this one, has ended the rental.


async def test_rental_that_was_released_elsewhere_cannot_be_detached(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    with pytest.raises(RentalEndedError, match="as detached: another process has ended it"):
        async with gpu.rent(image=IMAGE) as rental:
            async with client(emulator, state) as other:
                await other.rentals.release(rental.name, force=True)
            await rental.detach()
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


async def test_forced_release_of_a_create_under_way_says_that_its_process_goes_on(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    emulator.faults.add(Fault("hang", call="create_container", when="before"))
    opening = asyncio.create_task(gpu.rent(image=IMAGE).open())
    await until(lambda: emulator.requests.of("create_container"))
    (record,) = await gpu.rentals.list()
    with pytest.raises(RentalInUseError, match="its process may be about to create it, and goes on"):
        await gpu.rentals.release(record, force=True)
    opening.cancel()
    with suppress(asyncio.CancelledError):
        await opening
    emulator.assert_nothing_rented()


async def test_release_of_an_adopted_rental_is_no_error_once_it_is_deleted(emulator: Emulator, state: Path) -> None:
    async with client(emulator, state, LONG_DOUBT) as gpu:
        emulator.faults.add(Fault("drop", call="create_container", when="after"))
        record = await detached(gpu)
        await gpu.rentals.release(record)
        emulator.assert_nothing_rented()


async def test_refused_creates_of_another_token_are_not_reported(emulator: Emulator, state: Path) -> None:
    async with client(emulator, state, LONG_DOUBT) as gpu:
        auth = await gpu.auths.create("a-long-password")
        emulator.faults.add(Fault("stock-out", times="all"))
        with pytest.raises(NoMachineError):
            await gpu.rent(image=IMAGE, gpu_name="RTX 4090", auth=auth.id).open()
        emulator.faults.clear()
    async with client(emulator, state, LONG_DOUBT, token=emulator.add_token()) as other:
        report = await other.rentals.reap()
        assert report.elsewhere == ()
        assert report.clean
