"""The question before a rental that may cost more than `ask_above` of the configuration file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from netmind_rentgpu.amounts import in_own_context, rounded
from netmind_rentgpu.cli.session import Session
from netmind_rentgpu.cli.values import shown_duration, shown_money

if TYPE_CHECKING:
    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.rentals.selection.offers import Offer

__all__ = ["confirm_cost", "highest_cost"]

_USUAL_TTL: Final = timedelta(hours=24)


async def confirm_cost(
    session: Session, gpu: AsyncRentGPU, wanted: Mapping[str, Any], selecting: Mapping[str, Any], *, machines: int
) -> None:
    """Ask before a rental whose highest cost is above the limit of the configuration file, or is not known.

    Args:
        wanted: the arguments of the rental.
        selecting: those that select offers.
        machines: the number of machines to rent.

    Raises:
        CommandError: the answer is no, or there is no terminal to ask on.
        RentGPUError: the offers could not be read.
    """
    limit = session.defaults.ask_above
    if limit is None or session.options.yes:
        return
    ttl, budget = wanted.get("ttl") or _USUAL_TTL, wanted.get("budget")
    if budget is not None and budget <= limit:
        return
    offers = await gpu.offers(**selecting)
    if not offers and "wait_for_stock" not in wanted:
        return  # the rental fails for that
    cost = highest_cost(offers, ttl, budget, machines=machines)
    currency = next((offer.currency for offer in offers), None)
    if cost is not None and cost <= limit:
        return
    shown = "an amount that is not known" if cost is None else shown_money(cost, currency)
    count = "This rental" if machines == 1 else f"Renting {machines} machines"
    session.confirm(f"{count} may cost {shown} in {shown_duration(ttl)}, which is above {limit:f} (ask_above).")


@in_own_context
def highest_cost(
    offers: Sequence[Offer], ttl: timedelta, budget: Decimal | None, *, machines: int = 1
) -> Decimal | None:
    """Return the most that renting may cost, whichever of the offers it takes; None if that is not known.

    Args:
        budget: the most that all machines may cost together; None without a limit.
    """
    prices = [offer.hourly_price for offer in offers]
    if not prices or None in prices:
        return budget
    hours = Decimal(str(ttl.total_seconds())) / 3600
    highest = rounded(max(price for price in prices if price is not None) * hours * machines)
    return highest if budget is None else min(highest, budget)
