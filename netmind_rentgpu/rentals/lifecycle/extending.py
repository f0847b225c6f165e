"""Extensions of rentals, by their own process or by any other."""

from __future__ import annotations

import logging

from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.deadlines import Extension
from netmind_rentgpu.rentals.ledger.records import RentalRecord

__all__ = ["extend"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")


async def extend(context: RentalContext, name: str, wanted: Extension) -> RentalRecord:
    """Move the deadline of a rental on record, and log it; return its record.

    Raises:
        InvalidArgumentError: the deadline cannot be moved there.
        RentalEndedError: the rental is over.
        StateFileError: the state file cannot be used.
    """
    record = await context.ledger.extend(name, wanted, context.clock())
    most = "an unknown amount" if record.max_cost is None else f"at most {record.max_cost:f}"
    logger.info("%s: extended until %s UTC; it costs %s", name, f"{record.expires_at:%Y-%m-%d %H:%M:%S}", most)
    return record
