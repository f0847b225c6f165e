"""The budget of a fleet: an anonymous shared budget, in which each machine reserves its price for a short time at once."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal

from netmind_rentgpu.errors import (
    ClientStateError,
    InsufficientBudgetError,
    InvalidArgumentError,
    RentalEndedError,
    StateFileError,
)
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.shared_budgets import SharedBudget
from netmind_rentgpu.rentals.rental import AsyncRental

__all__ = ["FleetBudget"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

# A lease is extended when so much of it has passed.
_RENEWED_AFTER = 1 / 5
# The parts of a lease that are tried, if the budget has no room for a whole one.
_PARTS = (1.0, 0.5, 0.25, 0.1)


class FleetBudget:
    """The money of one fleet.

    Attributes:
        name: the name of the shared budget.
        is_spent: True if it has had no room for a lease.
    """

    def __init__(self, context: RentalContext, limit: Decimal, currency: str) -> None:
        self.name: str = f"fleet {secrets.token_hex(4)}"
        self.limit: Decimal = limit
        self.currency: str = currency
        self.is_spent: bool = False
        self._context = context
        self._until: datetime | None = None
        self._renewing: asyncio.Task[None] | None = None

    @property
    def lease(self) -> timedelta:
        """The time for which the price of a machine is reserved."""
        return timedelta(seconds=self._context.limits.lease)

    async def begin(
        self, until: datetime, expires_at: datetime, rentals: Callable[[], Collection[AsyncRental]]
    ) -> None:
        """Make the budget, and begin to extend the leases.

        Args:
            until: the time at which the fleet ends, in UTC.
            expires_at: the time after which no rental of it can run, in UTC.
            rentals: returns the rentals of the fleet that have not ended.

        Raises:
            StateFileError: the state file cannot be used.
        """
        clocks, self._until = self._context.clock(), until
        budget = SharedBudget(name=self.name, limit=self.limit, currency=self.currency, expires_at=expires_at)
        await self._context.budgets.set(budget, clocks)
        self._renewing = asyncio.get_running_loop().create_task(self._renew(rentals))

    async def end(self) -> None:
        """Remove the budget, unless a rental of it could not be deleted: then it is removed once it has expired."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait({self._renewing})
            self._renewing = None
            with suppress(StateFileError, ClientStateError, InvalidArgumentError):
                await self._context.budgets.remove(self.name)

    async def _renew(self, rentals: Callable[[], Collection[AsyncRental]]) -> None:
        while not self._context.closing:
            await asyncio.sleep(self.lease.total_seconds() * _RENEWED_AFTER)
            for rental in rentals():
                try:
                    await self._extend_lease_of(rental)
                except Exception:
                    logger.exception("could not extend the lease of a machine, and tries again")

    async def _extend_lease_of(self, rental: AsyncRental) -> None:
        for part in _PARTS:
            until = self._context.clock().wall + self.lease * part
            try:
                await rental._extend_lease(  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a fleet's rentals are its own
                    until if self._until is None else min(until, self._until), is_whole=part == _PARTS[0]
                )  # pyright: ignore[reportPrivateUsage]  # a fleet's rentals are its own
            except InsufficientBudgetError as error:
                if not self.is_spent:
                    logger.warning("the budget of %s has no room for all its machines any longer: %s", self.name, error)
                self.is_spent = True
            except (RentalEndedError, ClientStateError, InvalidArgumentError):
                return
            except StateFileError as error:
                logger.warning("could not extend the lease of a machine, and tries again: %s", error)
                return
            else:
                return
