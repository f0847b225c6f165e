"""What a rental asks for, one try at it, and what comes of it: values."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import attrs

from netmind_rentgpu.models import Container, Machine, PaymentType
from netmind_rentgpu.rentals.needs import Offer
from netmind_rentgpu.rentals.records import RentalRecord

__all__ = ["Order", "Taken", "Try"]


@attrs.frozen(kw_only=True)
class Order:
    """What every try of a rental asks for.

    Attributes:
        allowance: how long an offer may be had; None for what is to be kept.
    """

    image_id: int
    auth_id: int
    payment_type: PaymentType | str | int
    allowance: Callable[[Offer], timedelta | None]


@attrs.frozen(kw_only=True)
class Taken:
    """What a rental has, once it has it.

    Attributes:
        by_budget: it is its budget, and not its time, that ends it.
        kept: it is not to be deleted when it is left, nor ever by us.
    """

    record: RentalRecord
    container: Container
    machine: Machine
    by_budget: bool = False
    kept: bool = False


@attrs.define(eq=False)
class Try:
    """One create.

    Attributes:
        creating: the create, once it was sent.
        certain_at: where it was refused, or its answer was lost, until when it may still turn up.
        settled: it was looked for until it would have been listed.
        refused: the service has said that it did not act.
        claiming: its GPUs count as taken.
        twins: what the service has made of it beside that.
    """

    record: RentalRecord
    creating: asyncio.Task[Container] | None = None
    container_id: int | None = None
    certain_at: datetime | None = None
    settled: bool = False
    refused: bool = False
    claiming: bool = True
    twins: list[int] = attrs.field(factory=list[int])
