"""The shared budgets of one service in the state file."""

from __future__ import annotations

from netmind_rentgpu.rentals.ledger.budget_rows import list_budgets, remove_budget, remove_expired, set_budget
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.shared_budgets import SharedBudget
from netmind_rentgpu.state_file import Connection, State

__all__ = ["BudgetLedger"]


class BudgetLedger:
    """The shared budgets. Each method raises StateFileError if the file cannot be used."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def set(self, budget: SharedBudget, clocks: ClockReading) -> None:
        """Add a budget, or change its limits.

        Raises:
            InvalidArgumentError: it exists in another currency.
        """

        def write(connection: Connection) -> None:
            remove_expired(connection, self._origin, clocks.wall)
            set_budget(connection, self._origin, budget)

        await self._state.write(write)

    async def list(self, clocks: ClockReading) -> list[SharedBudget]:
        """Return the budgets, with what is spent and reserved."""
        return await self._state.read(lambda connection: list_budgets(connection, self._origin, clocks))

    async def remove(self, name: str) -> None:
        """Remove a budget.

        Raises:
            InvalidArgumentError: there is none, or it has open rentals.
        """
        await self._state.write(lambda connection: remove_budget(connection, self._origin, name))

    @property
    def _origin(self) -> str:
        return self._state.fingerprint.origin
