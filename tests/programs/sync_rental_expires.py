"""Let rentals expire within their blocks: while the block uses them, waits, or fails."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta

import attrs
import preamble
from renter import WANTED, rented, until

from netmind_rentgpu import Rental, RentalExpiredError, RentGPU
from netmind_rentgpu.rentals.ledger.clocks import read_clocks
from netmind_rentgpu.sync import portal

preamble.install()
TTL = timedelta(hours=1)


def expire(rental: Rental) -> None:
    """Let the timer of a rental ring a moment from now."""

    async def ring() -> None:
        timer = rental._async._expiry
        assert timer._record is not None
        soon = timer._record.present(read_clocks()) + timedelta(seconds=0.5)
        with closing(sqlite3.connect(rental._async._context.ledger.path)) as connection, connection:
            query = "UPDATE rentals SET expires_at = ? WHERE name = ?"
            connection.execute(query, (soon.isoformat(timespec="microseconds"), timer._record.name))
        timer._record = attrs.evolve(timer._record, expires_at=soon)
        timer._arm()

    portal.call(ring)


def fail() -> None:
    """Raise the block's own error."""
    raise ZeroDivisionError


with RentGPU() as gpu:
    try:
        with gpu.rent(**WANTED, ttl=TTL) as rental:
            expire(rental)
            until(lambda: not rented())
            for use in (lambda: rental.run("true"), lambda: rental.shell, rental.detach):
                try:
                    use()
                except RentalExpiredError as error:
                    assert error.name == rental.name
                    assert error.container_id == rental.container.id
                    print("expired")
    except RentalExpiredError as error:
        print("left", error.name == rental.name)
    try:
        with gpu.rent(**WANTED, ttl=TTL) as rental:
            expire(rental)
            rental.run("sleep 1000")
    except RentalExpiredError:
        print("while in use")
    assert not rented()
    assert not gpu.rentals.list()
    try:
        with gpu.rent(**WANTED, ttl=TTL) as rental:
            expire(rental)
            until(lambda: not rented())
            fail()
    except ZeroDivisionError:
        print("the block's own")
