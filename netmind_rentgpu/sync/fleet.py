"""`Fleet`: many rented machines of a synchronous program."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any, Final, Self, TypeVar

from netmind_rentgpu.client import AsyncRentGPU
from netmind_rentgpu.concurrency.threads import run_in_thread
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.rentals.fleet import AsyncFleet
from netmind_rentgpu.rentals.rental import AsyncRental
from netmind_rentgpu.sync.blocks import RentingBlock
from netmind_rentgpu.sync.handles import Rental
from netmind_rentgpu.sync.portal import OwnedHandle, call
from netmind_rentgpu.sync.wrappers import sync_method, with_own_names

__all__ = ["Fleet"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class _ThreadExitError(Exception):
    """A function has ended its thread by `SystemExit` or its like, which the thread that waits raises again."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


@with_own_names
class Fleet(RentingBlock):
    """Several rented machines: `with gpu.rent_many(8, ...) as fleet: ...`. All are deleted when the block is left.

    Entering the block rents the machines at once, each as `rent` does. When the time of the fleet is up, or its budget is
    spent, its machines are deleted even while the block runs. Every later use of them then raises `RentalExpiredError` or
    `BudgetExceededError`. A fleet whose block is never left is deleted when it is collected or the interpreter exits.
    """

    def __init__(self, fleet: AsyncFleet, client: OwnedHandle[AsyncRentGPU]) -> None:
        super().__init__()
        self._fleet = OwnedHandle(fleet, "fleet")
        self._client = client
        # Each rental is deleted when its synchronous form is collected, so all of these are kept.
        self._made: list[Rental] = []
        self._rentals: dict[AsyncRental, Rental] = {}

    @property
    def _async(self) -> AsyncFleet:
        return self._fleet.value

    @property
    def rentals(self) -> tuple[Rental, ...]:
        """The machines that the fleet has now, without those that were lost or have ended."""
        return tuple(map(self._rental_of, self._async.rentals))

    @property
    def expires_at(self) -> datetime | None:
        """The time at which its machines end, in UTC, but for those that are extended alone; None before it is entered."""
        return self._async.expires_at

    @property
    def spent(self) -> Decimal | None:
        """The estimated cost of all its machines so far, lost ones included; None if a price could not be read."""
        return self._async.spent

    run: Final = sync_method(AsyncFleet.run)

    def map(
        self,
        function: Callable[[Rental, Item], Result],
        items: Iterable[Item],
        *,
        retries: int = 2,
        return_exceptions: bool = False,
    ) -> list[Result]:
        """Call a function for each item, one at a time on each machine, and return the results in the order of the items.

        Each call runs in a thread. An item whose machine is lost, or whose connection is, goes to a machine again: so a
        function may run more than once for an item, and each item has one result.

        After an error, or an interrupt, calls that run go on in their threads until they end, or use a machine that is
        deleted by then; their results are dropped.

        Args:
            function: a function that takes a rental and an item.
            items: the items, all of which are read first.
            retries: how often an item goes to a machine again after it was lost.
            return_exceptions: True to return an item's error as its result. Otherwise the first error ends the others.

        Raises:
            RentalEndedError: no machine is left; or an item was lost more often than `retries`.
            SSHError: an item's connections were lost more often than `retries`.
            InvalidArgumentError: an argument cannot be used.
            ClientStateError: the fleet was not entered yet, or was left.
            Exception: an error of the function, as it is.
        """
        if not callable(function):
            raise InvalidArgumentError("function", f"must be a function, not {type(function).__name__}")
        context = contextvars.copy_context()

        def call_it(rental: AsyncRental, item: Item) -> Result:
            try:
                # Each thread needs a context of its own.
                return context.copy().run(function, self._rental_of(rental), item)
            except Exception:
                raise
            except BaseException as error:  # noqa: BLE001  # the caller gets it
                raise _ThreadExitError(error) from None

        async def work(rental: AsyncRental, item: Item) -> Result:
            return await run_in_thread(partial(call_it, rental, item))

        try:
            # Read the items in this thread, because they may come from calls of this client.
            results = call(self._async.map, work, list(items), retries=retries, return_exceptions=return_exceptions)
        except _ThreadExitError as ended:
            raise ended.error from None
        for result in results:
            if isinstance(result, _ThreadExitError):
                raise result.error
        return results

    def _rental_of(self, rental: AsyncRental) -> Rental:
        if rental not in self._rentals:
            made = Rental(rental, self._client)
            made._owner = self  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # keep the fleet, which would be closed when collected
            self._made.append(made)
            # Another thread may have been first.
            self._rentals.setdefault(rental, made)
        return self._rentals[rental]

    def open(self) -> Self:
        """Rent the machines without a block, as in a notebook, and return this fleet; `close` deletes them.

        Raises:
            RentGPUError: as on entering the block.
        """
        return self._enter(AsyncFleet.open)

    def close(self) -> None:
        """Delete all machines, as leaving the block does. A second call does nothing.

        Raises:
            ReleaseError: a container could not be deleted, and stays on record.
            ClientStateError: this is the thread of the client's own event loop.
        """
        super().close()

    def __repr__(self) -> str:
        return repr(self._async).replace("AsyncFleet", "Fleet")

    def __reduce__(self) -> Any:
        raise TypeError("a fleet belongs to its process and cannot be pickled")
