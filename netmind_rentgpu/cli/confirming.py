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

__all__ = ["confirm_cost", "highest_cost", "highest_price"]

_USUAL_TTL: Final = timedelta(hours=24)


async def confirm_cost(
    session: Session, gpu: AsyncRentGPU, wanted: Mapping[str, Any], selecting: Mapping[str, Any], *, machines: int
) -> dict[str, Any]:
    """Ask before a rental whose highest cost is above the limit of the configuration file, or is not known.

    Args:
        wanted: the arguments of the rental.
        selecting: those that select offers.
        machines: the number of machines to rent.

    Returns:
        The arguments that keep the rental to the allowed cost, because prices may rise meanwhile.

    Raises:
        CommandError: the answer is no, or there is no terminal to ask on.
        RentGPUError: the offers could not be read.
    """
    limit = session.defaults.ask_above
    if limit is None or session.options.yes:
        return {}
    ttl, budget = wanted.get("ttl") or _USUAL_TTL, wanted.get("budget")
    if budget is not None and budget <= limit:
        return {}
    offers = await gpu.offers(**selecting)
    if not offers and "wait_for_stock" not in wanted:
        return {}  # the rental fails for that
    cost = highest_cost(offers, ttl, budget, machines=machines)
    currency = next((offer.currency for offer in offers), None)
    if cost is None or cost > limit:
        shown = "an amount that is not known" if cost is None else shown_money(cost, currency)
        count = "This rental" if machines == 1 else f"Renting {machines} machines"
        session.confirm(f"{count} may cost {shown} in {shown_duration(ttl)}, which is above {limit:f} (ask_above).")
    if budget is not None or cost is None:
        return {}
    price = highest_price(offers, ttl, max(cost, limit), machines=machines)
    return {} if price is None else {"max_price": min(price, wanted.get("max_price") or price)}


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


@in_own_context
def highest_price(offers: Sequence[Offer], ttl: timedelta, cost: Decimal, *, machines: int) -> Decimal | None:
    """Return the highest listed price at which renting costs no more than an amount; None if no offer has a price.

    A listed price is that of a GPU or of a machine, by the profile; the offers show which.
    """
    priced = [
        (listed, hourly) for offer in offers if (listed := offer.machine.price) and (hourly := offer.hourly_price)
    ]
    if not priced:
        return None
    hours = Decimal(str(ttl.total_seconds())) / 3600
    allowed = [listed for listed, hourly in priced if rounded(hourly * hours * machines) <= cost]
    return max([*allowed, cost / hours / machines * min(listed / hourly for listed, hourly in priced)])
