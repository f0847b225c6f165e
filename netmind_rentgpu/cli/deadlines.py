"""Sentences about deadlines and costs. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from netmind_rentgpu.cli.values import shown_duration, shown_moment, shown_money

if TYPE_CHECKING:
    from netmind_rentgpu.rentals.ledger.records import RentalRecord
    from netmind_rentgpu.rentals.lifecycle.events import RentalEvent

__all__ = ["deadline_note", "machine_of", "preview_of"]


def machine_of(rental: RentalRecord | RentalEvent) -> str:
    """Return the machine of a rental with its price, such as `1 x RTX 4090 on node-se-0012 (SE), 0.531 USD an hour`."""
    region = f" ({rental.region})" if rental.region else ""
    price = f"{shown_money(rental.hourly_price, rental.currency)} an hour"
    return f"{rental.gpus} x {rental.gpu_name or 'an unnamed GPU'} on {rental.node_name}{region}, {price}"


def preview_of(event: RentalEvent, now: datetime) -> str:
    """Return what a rental will cost at most, before it is created."""
    return f"{machine_of(event)}: {_limits(event, now)}"


def deadline_note(record: RentalRecord, now: datetime) -> str:
    """Return when a rental ends, its highest cost until then, who enforces that, and how to move it; or how to end it."""
    if record.expires_at is None:
        return f"{record.name}: {_limits(record, now)}; `rentgpu rentals release {record.name}` ends it"
    enforced = record.enforced_by or "`rentgpu rentals reap` alone"
    move = f"for longer: rentgpu rentals extend {record.name} --ttl 8h"
    return f"{record.name}: {_limits(record, now)}\nenforced by {enforced}; {move}"


def _limits(rental: RentalRecord | RentalEvent, now: datetime) -> str:
    cost = "an amount that is not known" if rental.max_cost is None else shown_money(rental.max_cost, rental.currency)
    if rental.expires_at is None:
        return "it has no end"
    return f"at most {cost} until {shown_moment(rental.expires_at, now)} (in {shown_duration(rental.expires_at - now)})"
