"""Repeated creates, refused deletions, deadlines that come early and an order of offers, for a rental's lifecycle."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import Literal

import attrs
from rented import PROFILE

from netmind_rentgpu import AsyncRental, AsyncRentGPU, Container, Offer, RentalRecord
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.rentals.ledger.clocks import ClockReading, read_clocks
from netmind_rentgpu.rentals.lifecycle.attempt import UncertaintyWindow

UNCERTAIN = attrs.evolve(PROFILE, create_lag=timedelta(hours=1))
"""A profile by which a create stays uncertain until a test ends that, however busy the machine is."""


def set_clock(gpu: AsyncRentGPU, by: timedelta = timedelta(0), *, boot: str | None = None) -> None:
    """Set the time of day of a client's rentals forward or back, and its boot."""
    read = gpu._context.clock

    def read_what_was_set() -> ClockReading:
        reading = read()
        return attrs.evolve(reading, wall=reading.wall + by, boot=reading.boot if boot is None else boot)

    gpu._context.clock = read_what_was_set


def set_limits(gpu: AsyncRentGPU, **seconds: float) -> None:
    """Change time limits of a client's rentals."""
    gpu._context.limits = attrs.evolve(gpu._context.limits, **seconds)


async def put_as_it_is(gpu: AsyncRentGPU, record: RentalRecord) -> None:
    """Put a record in the state file in place of the present one, whose stage it need not follow."""
    ledger = gpu._context.ledger
    await ledger.close(record.name, None)
    await ledger.insert(record)


def refuse_deletes(emulator: Emulator, times: int | Literal["all"]) -> None:
    """Refuse deletions with a 503, as often as `times` says."""
    emulator.faults.add(Fault("status", call="delete_container", status=503, times=times))


async def create_again(gpu: AsyncRentGPU, name: str, node_name: str) -> Container:
    """Create a container again, as a gateway does that repeats a create."""
    return await gpu.containers.create(name=name, auth_id=1, node_name=node_name, image_template_id=1, payment_type=0)


def most_gpus_first(offer: Offer) -> int:
    """Return an order for offers in which the first machine has room for a second container."""
    return -(offer.machine.gpu_count or 0)


def expire(rental: AsyncRental) -> None:
    """Let the timer of a rental ring now, which would otherwise have to leave time to enter on the busiest machine."""
    timer, path = rental._expiry, rental._context.ledger.path
    assert timer._record is not None
    with closing(sqlite3.connect(path)) as connection, connection:
        query = "UPDATE rentals SET expires_at = intended_at WHERE name = ?"
        assert connection.execute(query, (timer._record.name,)).rowcount == 1
    timer._record = attrs.evolve(timer._record, expires_at=timer._record.intended_at)
    timer._arm()


def end_uncertainty(rental: AsyncRental) -> None:
    """Let the time pass after which nothing of a rental's creates can turn up any more."""
    for tracked in rental._provisioner._attempts.values():
        if tracked.attempt.window is not None:
            window = UncertaintyWindow(read_clocks().wall, asyncio.get_running_loop().time())
            tracked.attempt = attrs.evolve(tracked.attempt, window=window)
    rental._expiry._arm()


async def end_uncertainty_on_record(gpu: AsyncRentGPU) -> None:
    """Let that time pass for all rentals on record."""
    for record in await gpu.rentals.list():
        await put_as_it_is(gpu, attrs.evolve(record, certain_at=record.intended_at))
