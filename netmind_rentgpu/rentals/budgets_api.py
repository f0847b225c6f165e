"""`client.budgets`: the budgets that the rentals of several processes share."""

from __future__ import annotations

import builtins
from decimal import Decimal
from typing import Literal

from netmind_rentgpu import arguments
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.shared_budgets import SharedBudget
from netmind_rentgpu.tables import Table

__all__ = ["AsyncBudgets"]


class AsyncBudgets:
    """`client.budgets`: the budgets of this service in the state file, which the rentals of several processes share."""

    def __init__(self, context: RentalContext) -> None:
        self._context = context

    async def set(
        self,
        name: str,
        limit: Decimal | float | None = None,
        *,
        per: Literal["day", "month"] | None = None,
        hourly: Decimal | float | None = None,
        currency: str | None = None,
    ) -> None:
        """Make a budget, or replace both limits and the period of one; `rent(shared_budget=name)` keeps to it from then on.

        Rentals that are open already stay, even if a lower limit has no room for them.

        Args:
            name: a text of 1 to 100 printable characters.
            limit: the most that its rentals may cost together in a period; None without such a limit.
            per: the period, a `day` or a `month` of UTC; None for all time.
            hourly: the most that the rentals which run at once may cost in an hour, together; None without such a limit.
            currency: the currency of both limits, which does not change; by default the profile's.

        Raises:
            InvalidArgumentError: an argument cannot be used, no limit is given, or the budget exists in another currency.
            StateFileError: the state file cannot be used.
        """
        if limit is None and hourly is None:
            raise InvalidArgumentError("limit", "is missing; give limit=, hourly= or both")
        if per not in (None, "day", "month"):
            raise InvalidArgumentError("per", f"must be day, month or None, not {arguments.shown_value(per)}")
        if per is not None and limit is None:
            raise InvalidArgumentError("per", "has no effect without limit=")
        budget = SharedBudget(
            name=arguments.label(name, "name"),
            limit=None if limit is None else _positive("limit", limit),
            per=per,
            hourly=None if hourly is None else _positive("hourly", hourly),
            currency=self._currency(currency),
        )
        await self._context.budgets.set(budget, self._context.clock())

    def _currency(self, currency: str | None) -> str:
        profile = self._context.profile
        if currency is None:
            return profile.currency
        # In the profile's spelling, because rentals have that.
        known = dict.fromkeys((*profile.payment_types, profile.currency))
        for name in known:
            if isinstance(currency, str) and name.casefold() == currency.casefold():
                return name
        shown = arguments.shown_value(currency)
        raise InvalidArgumentError("currency", f"must be one of {', '.join(known)}, not {shown}")

    async def list(self) -> builtins.list[SharedBudget]:
        """Return the budgets, each with what is spent and reserved in its present period.

        Raises:
            StateFileError: the state file cannot be used.
        """
        return Table(await self._context.budgets.list(self._context.clock()))

    async def remove(self, name: str) -> None:
        """Remove a budget. Its past rentals stay in the history.

        Raises:
            InvalidArgumentError: there is no such budget, or it has open rentals.
            StateFileError: the state file cannot be used.
        """
        await self._context.budgets.remove(arguments.label(name, "name"))


def _positive(argument: str, value: Decimal | float) -> Decimal:
    amount = arguments.bound(argument, value)
    if amount <= 0:
        raise InvalidArgumentError(argument, f"must be above 0: {arguments.shown_value(value)}")
    return amount
