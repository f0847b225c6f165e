"""The rentals of one fleet: the terms of each, their common deadline and budget, and what they cost together."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

import attrs

from netmind_rentgpu.errors import (
    AuthenticationError,
    ClientStateError,
    ConfigurationError,
    InvalidArgumentError,
    PermissionDeniedError,
    RentGPUError,
    StateFileError,
)
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.fleet_budget import FleetBudget
from netmind_rentgpu.rentals.rental import AsyncRental

__all__ = ["HOPELESS", "FleetRentals", "RentalTerms"]

HOPELESS: Final[tuple[type[RentGPUError], ...]] = (
    AuthenticationError,
    ClientStateError,
    ConfigurationError,
    InvalidArgumentError,
    PermissionDeniedError,
    StateFileError,
)
"""The errors of a rental's start that no other machine of its fleet would be spared."""

# With less time left, no other machine is rented for a lost one.
_LEAST_TIME = timedelta(seconds=1)


@attrs.frozen(kw_only=True)
class RentalTerms:
    """The terms of one machine of a fleet.

    Attributes:
        ttl: how long it may run, unless it is extended.
        extendable_to: how long it may run at most.
        shared_budget: the budget of the fleet; None without one.
        lease: how long its price is reserved at once; None without a budget of the fleet.
    """

    ttl: timedelta
    extendable_to: timedelta
    shared_budget: str | None
    lease: timedelta | None


class FleetRentals:
    """The rentals of one fleet, which end at one time and share one budget.

    Attributes:
        context: what the rentals of the client share.
        budget: the budget of the fleet; None without one.
        begun: all rentals that were begun, in their order, those that did not start or were lost included.
        until: the time at which the fleet ends, in UTC; None before it begins.
    """

    def __init__(
        self,
        context: RentalContext,
        rent: Callable[[RentalTerms], AsyncRental],
        *,
        ttl: timedelta,
        ceiling: timedelta,
        budget: FleetBudget | None,
    ) -> None:
        """Initialize; the time runs from `begin` on.

        Args:
            rent: makes a rental that is not entered yet.
            ttl: how long the fleet may run.
            ceiling: how long a machine of it may run at most.
        """
        self.context: RentalContext = context
        self.budget: FleetBudget | None = budget
        self.begun: list[AsyncRental] = []
        self.until: datetime | None = None
        self._rent = rent
        self._ttl, self._longest = ttl, ceiling
        self._ceiling: datetime | None = None

    async def begin(self) -> None:
        """Begin the time of the fleet, and make its budget.

        Raises:
            StateFileError: the state file cannot be used.
        """
        began = self.context.clock().wall
        self.until, self._ceiling = began + self._ttl, began + self._longest
        if self.budget is not None:
            await self.budget.begin(
                self.until, self._ceiling, lambda: [rental for rental in self.begun if not rental.ended]
            )

    async def end(self) -> None:
        """Remove the budget, once all rentals have ended."""
        if self.budget is not None:
            await self.budget.end()

    def new(self) -> AsyncRental:
        """Return another rental of the fleet, which is not entered yet."""
        rental = self._rent(self._terms())
        rental._join_fleet(self.until, is_leased=self.budget is not None)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a fleet's rentals are its own
        self.begun.append(rental)
        return rental

    @property
    def can_rent(self) -> bool:
        """True if time and money are left for another rental."""
        has_time = self.until is not None and self.until > self.context.clock().wall + _LEAST_TIME
        return has_time and not (self.budget is not None and self.budget.is_spent)

    @property
    def spent(self) -> Decimal | None:
        """The estimated cost of all rentals so far; None if a price could not be read."""
        total = Decimal(0)
        for rental in self.begun:
            try:
                spent = rental.spent
            except ClientStateError:  # it has no machine yet, or never had one
                continue
            if spent is None:
                return None
            total += spent
        return total

    @property
    def running(self) -> list[AsyncRental]:
        """The rentals that have a machine, and have not ended."""
        return [rental for rental in self.begun if not rental.ended and rental._state.provisioned is not None]  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a fleet's rentals are its own

    @property
    def hourly_price(self) -> Decimal | None:
        """The price of an hour of all running rentals together; None if one could not be read."""
        prices = [rental.hourly_price for rental in self.running]
        return None if None in prices else sum((price for price in prices if price is not None), Decimal(0))

    def interrupt(self) -> None:
        """Count an interrupt of all deletions; the second gives them up."""
        for rental in self.begun:
            self.context.live.get(rental, lambda: None)()

    def _terms(self) -> RentalTerms:
        """Return the terms of a machine that is rented now."""
        now = self.context.clock().wall
        left, ceiling = ((moment or now) - now for moment in (self.until, self._ceiling))
        if self.budget is None:
            return RentalTerms(ttl=left, extendable_to=ceiling, shared_budget=None, lease=None)
        lease = self.budget.lease
        return RentalTerms(ttl=min(lease, left), extendable_to=ceiling, shared_budget=self.budget.name, lease=lease)
