"""Detached rentals whose machines are idle: the guardian reads them, and ends them when, and only when, it should."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from guardians import guardians
from lifecycle import put_as_it_is
from rented import IMAGE, client
from renters import renting
from until import until

from netmind_rentgpu import AsyncRentGPU, RentalRecord
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.rentals.lifecycle import idle_detached

from .test_look import ME, look

HOUR = timedelta(hours=1)


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(seed=7, boot_seconds=0.02, ssh=True) as emulator:
        yield emulator


@pytest.fixture
async def gpu(emulator: Emulator, tmp_path: Path) -> AsyncIterator[AsyncRentGPU]:
    async with client(emulator, tmp_path / "state.sqlite3") as gpu:
        yield gpu


async def detached(gpu: AsyncRentGPU, command: str = "true", *, ago: timedelta | None, **changes: Any) -> RentalRecord:
    """Return the record of a detached rental with an idle_timeout of an hour.

    Args:
        ago: how long its machine has been idle, as the last reading has shown a minute ago; None without a reading.
    """
    async with gpu.rent(image=IMAGE) as rental:
        await rental.run(command, check=True)
        record = await rental.detach()
    now = record.present(gpu._context.clock())
    since, read_at = (None, None) if ago is None else (now - ago, now - timedelta(minutes=1))
    waiting = attrs.evolve(record, guardian=ME, idle_timeout=HOUR, idle_since=since, idle_read_at=read_at, **changes)
    await put_as_it_is(gpu, waiting)
    return waiting


async def the_record(gpu: AsyncRentGPU) -> RentalRecord:
    (record,) = await gpu.rentals.list()
    return record


async def test_machine_that_is_idle_for_too_long_is_given_back(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    await detached(gpu, ago=HOUR)
    assert await look(gpu, gone=False) is None
    emulator.assert_nothing_rented()
    (past,) = await gpu.rentals.history()
    assert past.cause == "idle"


async def test_machine_that_is_idle_for_a_while_is_read_again_a_minute_later(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    before = await detached(gpu, ago=timedelta(minutes=50))
    assert await look(gpu, gone=False) == 60.0
    record = await the_record(gpu)
    assert record.idle_since == before.idle_since
    assert record.idle_read_at is not None
    assert before.idle_read_at is not None
    assert record.idle_read_at > before.idle_read_at
    # A look for another reason comes too early for a reading.
    await look(gpu, gone=False)
    assert await the_record(gpu) == record
    assert len(emulator.running) == 1


async def test_first_reading_begins_the_time(gpu: AsyncRentGPU) -> None:
    await detached(gpu, ago=None)
    assert await look(gpu, gone=False) == 60.0
    record = await the_record(gpu)
    assert record.idle_since == record.idle_read_at is not None


@pytest.mark.parametrize(
    "command", ["nohup sleep 3600 >/dev/null 2>&1 & echo", "true"], ids=["left behind", "no login"]
)
async def test_machine_that_is_busy_or_cannot_be_read_begins_anew(
    gpu: AsyncRentGPU, emulator: Emulator, command: str
) -> None:
    before = await detached(gpu, command, ago=2 * HOUR)
    if command == "true":
        emulator.faults.add(Fault("ssh refuse", times="all"))
    assert await look(gpu, gone=False) == 60.0
    record = await the_record(gpu)
    assert before.idle_since is not None
    assert record.idle_since is not None
    assert record.idle_since - before.idle_since > HOUR
    assert len(emulator.running) == 1


async def test_time_that_no_guardian_has_read_counts_as_busy(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    before = await detached(gpu, ago=2 * HOUR)
    assert before.idle_read_at is not None
    await put_as_it_is(gpu, attrs.evolve(before, idle_read_at=before.idle_read_at - HOUR))
    assert await look(gpu, gone=False) == 60.0
    assert len(emulator.running) == 1


async def test_rental_that_was_attached_to_meanwhile_is_left(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    record = await detached(gpu, ago=2 * HOUR)
    async with gpu.rentals.attach(record) as rental:
        await put_as_it_is(gpu, attrs.evolve(await the_record(gpu), guardian=ME))
        assert await look(gpu, gone=False) == pytest.approx(24 * 3600, abs=200)
        assert rental._idle._task is not None
        assert (await rental.run("echo here")).stdout == "here\n"
    emulator.assert_nothing_rented()


async def test_machine_that_another_process_has_used_during_the_reading_is_left(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await detached(gpu, ago=2 * HOUR)
    read = idle_detached._read

    async def detach_anew_meanwhile(*arguments: Any) -> Any:
        reading = await read(*arguments)
        await put_as_it_is(gpu, attrs.evolve(before, idle_since=None, idle_read_at=None))
        return reading

    monkeypatch.setattr(idle_detached, "_read", detach_anew_meanwhile)
    await look(gpu, gone=False)
    assert (await the_record(gpu)).idle_since is None
    assert len(emulator.running) == 1


DETACHES = """
async def main():
    async with AsyncRentGPU(guardian=True) as gpu:
        async with gpu.rent(**WANTED, idle_timeout=timedelta(seconds=4)) as rental:
            print((await rental.detach()).name, flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_detached_machine_ends_by_its_guardian_though_the_program_has_ended(tmp_path: Path) -> None:
    async with renting(tmp_path) as service:
        program = await service.run(DETACHES, measured=False)
        assert program.status == 0, program.errors
        await until(lambda: not service.emulator.running)
        await until(lambda: not guardians(tmp_path))
        async with service.client() as gpu:
            (past,) = await gpu.rentals.history()
        assert (past.name, past.cause) == (program.output.strip(), "idle")
        await service.assert_nothing_left()
