"""The errors by which a cluster ends by itself, or rents no more machines."""

from __future__ import annotations

from datetime import timedelta
from time import time
from typing import TYPE_CHECKING

from netmind_rentgpu.errors import BudgetExceededError, RentalEndedError, RentalExpiredError, RentalIdleError

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

    from netmind_rentgpu.rentals.fleet_rentals import FleetRentals

__all__ = ["error_of_end", "error_without_rentals"]


def error_of_end(scheduler: Scheduler, idle_timeout: timedelta | None) -> RentalEndedError:
    """Return the error of a cluster whose scheduler has ended by itself.

    Args:
        idle_timeout: how long the scheduler may have no tasks; None for no limit.
    """
    since = scheduler.idle_since
    if since is not None and idle_timeout is not None and time() - since >= idle_timeout.total_seconds():
        text = f"the cluster was closed: it has had no tasks for {idle_timeout}"
        return RentalIdleError(text, name="", container_id=None)
    return RentalEndedError("the cluster was closed: its scheduler has ended", name="", container_id=None)


def error_without_rentals(rentals: FleetRentals) -> RentalEndedError:
    """Return the error of a cluster whose money or time is up."""
    budget = rentals.budget
    if budget is not None and budget.is_spent:
        text = f"the cluster's budget of {budget.limit} {budget.currency} is spent"
        return BudgetExceededError(text, name="", container_id=None)
    return RentalExpiredError("the cluster's time is up", name="", container_id=None)
