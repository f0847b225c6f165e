"""The machines of a fleet: their starts, their losses, and their ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine
from contextlib import suppress
from typing import Any

import attrs

from netmind_rentgpu.errors import (
    BudgetExceededError,
    NoMachineError,
    RentalEndedError,
    RentGPUError,
)
from netmind_rentgpu.rentals.fleet_rentals import HOPELESS, FleetRentals
from netmind_rentgpu.rentals.rental import AsyncRental

__all__ = ["FleetMembers", "FleetPlan", "end_error"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

# Beyond the time limit of each machine, in seconds, for what did not start to be given back.
_GRACE = 1.0


@attrs.frozen(kw_only=True)
class FleetPlan:
    """A user's wishes for a fleet, with checked arguments.

    Attributes:
        count: the number of machines.
        at_least: the number of machines with which the fleet can be entered.
        replace: True to rent another machine for each that is lost.
        timeout: the seconds after which the fleet is entered with the machines that it has.
    """

    count: int
    at_least: int
    replace: bool
    timeout: float


class FleetMembers:
    """The machines of one fleet.

    Attributes:
        rentals: all rentals of the fleet, those that did not start or were lost included.
        pending: the tasks that start machines, or give lost ones back.
        is_ending: True once the fleet is being left, so that nothing more is rented.
        busy: the machines that work on an item.
    """

    def __init__(self, rentals: FleetRentals, plan: FleetPlan) -> None:
        self.rentals: FleetRentals = rentals
        self.pending: set[asyncio.Task[None]] = set()
        self.is_ending: bool = False
        self.busy: set[AsyncRental] = set()
        self._changed: asyncio.Future[None] | None = None
        self._plan = plan
        self._ready: list[AsyncRental] = []
        self._lost: dict[AsyncRental, RentGPUError] = {}

    @property
    def up(self) -> tuple[AsyncRental, ...]:
        """The machines that can be used."""
        return tuple(rental for rental in self._ready if rental not in self._lost and not rental.ended)

    def changed(self) -> asyncio.Future[None]:
        """Return a future that is done once a machine may have become free, or the fleet is left."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    def note_change(self) -> None:
        """Wake the maps, so that each looks at the machines again."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def start_all(self) -> None:
        """Rent the machines at once, until all have settled or the time is up.

        Raises:
            NoMachineError: too few have started.
            RentGPUError: one has failed by an error that all would have.
        """
        await self.rentals.begin()
        failed: list[RentGPUError] = []
        for _ in range(self._plan.count):
            self._start_one(failed)
        time = asyncio.get_running_loop().time
        deadline = time() + self._plan.timeout + _GRACE
        while self.pending and (left := deadline - time()) > 0:
            done, _ = await asyncio.wait(self.pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                # A fault of our own, or of a function of the user's, such as `key`.
                if not task.cancelled():
                    task.result()
            if hopeless := [error for error in failed if isinstance(error, HOPELESS)]:
                raise hopeless[0]
        late = tuple(self.pending)
        for task in late:
            task.cancel()
        if len(self._ready) < self._plan.at_least:
            raise self._too_few(failed, len(late))

    def _too_few(self, failed: Collection[RentGPUError], late: int) -> NoMachineError:
        reasons = [str(error) for error in failed]
        if late:
            reasons.append(f"{late} were not ready within {self._plan.timeout:g} s")
        counts = ", ".join(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))
        error = NoMachineError(
            f"{len(self._ready)} of {self._plan.count} machines could be rented, and {self._plan.at_least} are needed;"
            f" all are given back: {counts}",
            refusals=tuple(refusal for each in failed if isinstance(each, NoMachineError) for refusal in each.refusals),
        )
        if failed:
            error.__cause__ = ExceptionGroup("the machines that could not be rented", list(failed))
        return error

    def _start_one(self, failed: list[RentGPUError]) -> None:
        """Begin to rent a machine.

        Args:
            failed: gets the error if that fails.
        """
        self._begin(self._start(self.rentals.new(), failed))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.pending.add(task)
        task.add_done_callback(self._end_pending)

    def _end_pending(self, task: asyncio.Task[None]) -> None:
        self.pending.discard(task)
        self.note_change()

    async def _start(self, rental: AsyncRental, failed: list[RentGPUError]) -> None:
        try:
            await rental.open()
        except RentGPUError as error:
            failed.append(error)
            logger.warning("a machine of the fleet could not be rented: %s", error)
        else:
            self._ready.append(rental)

    def lose_ended(self) -> None:
        """Record as lost the machines that have ended by themselves since the last look."""
        for rental in self._ready:
            if rental.ended and rental not in self._lost and rental._state.is_lost:  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a fleet's rentals are its own
                self.lose(rental, end_error(rental))

    def lose(self, rental: AsyncRental, loss: RentGPUError) -> None:
        """Delete a machine that cannot be used any more, and rent another for it if the fleet replaces lost machines."""
        if rental in self._lost or self.is_ending:
            return
        self._lost[rental] = loss
        logger.warning("%s of the fleet is lost: %s", rental.name, loss)
        self._begin(self._give_back(rental))
        if self._plan.replace and self.rentals.can_rent:
            self._start_one([])

    async def _give_back(self, rental: AsyncRental) -> None:
        with suppress(RentGPUError):  # leaving the fleet reports it
            await rental.close()

    def none_left(self) -> RentalEndedError:
        """Return the error of a fleet that has no machine."""
        self.lose_ended()
        last = next((self._lost[rental] for rental in reversed(self._ready) if rental in self._lost), None)
        kind, why = RentalEndedError, ""
        if (budget := self.rentals.budget) is not None and budget.is_spent:
            kind, why = BudgetExceededError, f": its budget of {budget.limit} {budget.currency} is spent"
        elif last is not None:
            kind = type(last) if isinstance(last, RentalEndedError) else RentalEndedError
            why = f"; the last was lost: {last}"
        name = self._ready[-1].name if self._ready else ""
        error = kind(f"no machine of the fleet is left{why}", name=name, container_id=None)
        error.__cause__ = last
        return error

    async def close(self) -> list[BaseException]:
        """Delete all machines; return the errors. To be run in a task of its own."""
        self.is_ending = True
        self.note_change()
        ends = await asyncio.gather(*(rental.close() for rental in self.rentals.begun), return_exceptions=True)
        if self.pending:
            await asyncio.wait(set(self.pending))
        await self.rentals.end()
        return [end for end in ends if isinstance(end, BaseException)]


def end_error(rental: AsyncRental) -> RentGPUError:
    """Return the error of a use of a rental that has ended."""
    return rental._state.error  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a fleet's rentals are its own
