"""Rentals with an idle_timeout, on machines with real processes."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from lifecycle import set_limits
from rented import IMAGE
from until import until

from netmind_rentgpu import (
    ActivityReading,
    AsyncRental,
    AsyncRentGPU,
    ClientStateError,
    ConfigurationError,
    InvalidArgumentError,
    RentalEndedError,
    RentalEvent,
    RentalIdleError,
)
from netmind_rentgpu.emulator import Emulator

SHORT = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"idle_timeout": 20}, "idle_timeout"),
        ({"idle_timeout": timedelta(0)}, "idle_timeout"),
        ({"idle_timeout": -SHORT}, "idle_timeout"),
        ({"idle_timeout": SHORT, "keep": True}, "idle_timeout"),
        ({"idle_when": bool}, "idle_when"),
        ({"idle_when": "never", "idle_timeout": SHORT}, "idle_when"),
    ],
)
async def test_wishes_for_idle_machines_that_cannot_be_used_are_refused(
    gpu: AsyncRentGPU, options: dict[str, Any], argument: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{argument}:"):
        gpu.rent(image=IMAGE, **options)


async def test_idle_machine_is_deleted_while_the_block_runs_after_an_event(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    events: list[RentalEvent] = []
    with pytest.raises(RentalIdleError, match=r"was idle for its idle_timeout of 0:00:01; the deletion"):
        async with gpu.rent(image=IMAGE, idle_timeout=SHORT, on_event=events.append) as rental:
            await asyncio.sleep(3600)
    emulator.assert_nothing_rented()
    kinds = [event.kind for event in events]
    assert kinds[kinds.index("expiring") :] == ["expiring", "releasing", "released"]
    reasons = {event.kind: event.reason or "" for event in events}
    assert reasons["expiring"].startswith("idle since ")
    assert reasons["releasing"] == "it was idle for too long"
    (past,) = await gpu.rentals.history()
    assert past.cause == "idle"
    with pytest.raises(RentalIdleError):
        await rental.run("true")
    assert rental.ended


async def test_rental_that_ends_while_it_is_entered_is_read_by_no_task(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    events: list[RentalEvent] = []

    def end_at_ready(event: RentalEvent) -> None:
        events.append(event)
        if event.kind == "ready":
            rental._expire()

    rental = gpu.rent(image=IMAGE, idle_timeout=SHORT, on_event=end_at_ready)
    with pytest.raises(RentalEndedError):
        await rental.open()
    assert events[-1].kind == "released"
    assert rental._idle._task is None or rental._idle._task.done()
    emulator.assert_nothing_rented()


async def test_rental_without_a_block_ends_too_and_says_so_at_its_next_use(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    rental = await gpu.rent(image=IMAGE, idle_timeout=SHORT).open()
    await until(lambda: not emulator.running)
    with pytest.raises(RentalIdleError):
        await rental.run("true")
    await rental.close()


async def sleeping(rental: AsyncRental, home: Path) -> None:
    """Run one command that goes on."""
    command = asyncio.create_task(rental.run("touch begun; exec sleep 3600"))
    await until((home / "begun").exists)
    # The rental's end ends it.
    command.add_done_callback(lambda done: done.cancelled() or done.exception())
    rental.kept = command  # type: ignore[attr-defined]  # so that it is not collected


async def left_behind(rental: AsyncRental, home: Path) -> None:
    """Run a command that leaves a process behind."""
    await rental.run("nohup sleep 3600 >/dev/null 2>&1 & echo", check=True)


async def job(rental: AsyncRental, home: Path) -> None:
    await rental.start("exec sleep 3600")


async def forwarded(rental: AsyncRental, home: Path) -> None:
    await rental.forward(local_port=0, remote_port=8888)


async def forwarded_by_its_shell(rental: AsyncRental, home: Path) -> None:
    rental.kept = await rental.shell.forward(local_port=0, remote_port=8888)  # type: ignore[attr-defined]  # as above


async def another_login(rental: AsyncRental, home: Path) -> None:
    shell = rental._context.shell_on(rental.container)
    rental.kept = await shell.__aenter__()  # type: ignore[attr-defined]  # as above


@pytest.mark.parametrize("use", [sleeping, left_behind, job, forwarded, forwarded_by_its_shell, another_login])
async def test_machine_in_use_is_not_idle_however_it_is_used(
    gpu: AsyncRentGPU, emulator: Emulator, tmp_path: Path, use: Any
) -> None:
    readings: list[ActivityReading] = []

    def judge(reading: ActivityReading) -> bool:
        readings.append(reading)
        return not reading.is_busy

    async with gpu.rent(image=IMAGE, idle_timeout=SHORT, idle_when=judge) as rental:
        home = Path(str(await rental.run("pwd")).strip())
        await use(rental, home)
        count = len(readings)
        # So many readings in a row would be more than the time.
        await until(lambda: len(readings) >= count + 9)
        assert not rental.ended
        assert all(reading.is_busy for reading in readings[count + 1 :])
        assert readings[-1].unknown == ()


async def test_uploaded_file_leaves_no_session_that_counts(gpu: AsyncRentGPU, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RentalIdleError):
        async with gpu.rent(image=IMAGE, idle_timeout=SHORT) as rental:
            await rental.shell.upload(tmp_path / "file", "copy")
            await asyncio.sleep(3600)


async def test_short_commands_between_readings_count(gpu: AsyncRentGPU) -> None:
    readings: list[ActivityReading] = []
    commands: list[asyncio.Task[Any]] = []

    def judge(reading: ActivityReading) -> bool:
        readings.append(reading)
        if len(readings) < 9:
            commands.append(asyncio.create_task(rental.run("true", check=True)))
        return not reading.is_busy

    rental = gpu.rent(image=IMAGE, idle_timeout=SHORT, idle_when=judge)
    async with rental:
        await until(lambda: len(readings) >= 9)
        assert not rental.ended
        await asyncio.gather(*commands)
    assert all(reading.operations for reading in readings[1:9])


async def test_gpu_in_use_is_no_idle_machine(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    readings: list[ActivityReading] = []

    def judge(reading: ActivityReading) -> bool:
        readings.append(reading)
        return not reading.is_busy

    with pytest.raises(RentalIdleError):
        async with gpu.rent(image=IMAGE, idle_timeout=SHORT, idle_when=judge) as rental:
            emulator.set_gpu_use(rental.container.id, 97)
            await until(lambda: len(readings) > 8)
            emulator.set_gpu_use(rental.container.id, 4)
            await asyncio.sleep(3600)
    assert (97,) in {reading.gpu_use for reading in readings}


async def test_reading_over_a_lost_connection_is_made_over_another(gpu: AsyncRentGPU) -> None:
    readings: list[ActivityReading] = []

    def judge(reading: ActivityReading) -> bool:
        readings.append(reading)
        return False

    async with gpu.rent(image=IMAGE, idle_timeout=SHORT, idle_when=judge) as rental:
        connection = rental.shell._connection._connection
        assert connection is not None
        connection.abort()
        await until(lambda: len(readings) > 2 and readings[-1].unknown == ())
        assert (await rental.run("echo still here")).stdout == "still here\n"


async def test_command_that_an_idle_end_cuts_off_says_why(gpu: AsyncRentGPU) -> None:
    with pytest.raises(RentalIdleError):
        async with gpu.rent(image=IMAGE, idle_timeout=SHORT, idle_when=lambda reading: True) as rental:
            await rental.run("sleep 3600")


async def test_owner_tells_the_guardian_of_a_detached_rental_how_long_it_was_idle(gpu: AsyncRentGPU) -> None:
    async with gpu.rent(image=IMAGE, idle_timeout=timedelta(hours=1)) as rental:
        with pytest.raises(ConfigurationError, match="a rental with idle_timeout needs a guardian"):
            await rental.detach()
        assert not rental.ended
        (record,) = await gpu.rentals.list()
        assert (record.idle_timeout, record.idle_since) == (timedelta(hours=1), None)
        assert record.to_dict(json=True)["idle_timeout"] == 3600
    async with gpu.rent(image=IMAGE, idle_timeout=SHORT, idle_when=lambda reading: False) as rental:
        with pytest.raises(ClientStateError, match="has idle_when, a function that only this process can call"):
            await rental.detach()


async def test_reading_under_way_ends_with_the_rental(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    set_limits(gpu, between_readings=0.01)
    async with gpu.rent(image=IMAGE, idle_timeout=timedelta(hours=1)) as rental:
        await until(lambda: rental.shell._connection.operations.under_way)
    assert rental._idle._task is not None
    assert rental._idle._task.done()
    emulator.assert_nothing_rented()
