"""Sentences about deadlines and costs. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from netmind_rentgpu.cli.values import shown_duration, shown_moment, shown_money

if TYPE_CHECKING:
    from netmind_rentgpu.rentals.ledger.records import RentalRecord
    from netmind_rentgpu.rentals.lifecycle.events import RentalEvent

__all__ = ["deadline_note", "extension_of", "machine_of", "preview_of"]


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
    return f"{record.name}: {_limits(record, now)}\nenforced by {enforced}; {extension_of(record, now)}"


def extension_of(record: RentalRecord, now: datetime) -> str:
    """Return the command that extends a rental as far as it can be, or that it cannot be extended."""
    command = f"for longer: rentgpu rentals extend {record.name}"
    if record.ends_by_budget and record.budget is not None:
        return f"{command} --budget {record.budget * 2:f}"
    ceiling = record.extendable_to
    if ceiling is None or record.time_limit is None:
        return "it cannot be extended"
    # To a whole minute, which has to be later than the present end.
    latest = ceiling.astimezone().replace(second=0, microsecond=0)
    if latest <= record.time_limit:
        return "it cannot be extended"
    moment = f"{latest:%H:%M}" if latest - now < timedelta(hours=23) else f"'{latest:%Y-%m-%d %H:%M}'"
    return f"{command} --until {moment}"


def _limits(rental: RentalRecord | RentalEvent, now: datetime) -> str:
    cost = "an amount that is not known" if rental.max_cost is None else shown_money(rental.max_cost, rental.currency)
    if rental.expires_at is None:
        return "it has no end"
    return f"at most {cost} until {shown_moment(rental.expires_at, now)} (in {shown_duration(rental.expires_at - now)})"
