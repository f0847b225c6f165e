"""`AsyncFleet`: many rented machines, which one block rents and gives back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from netmind_rentgpu.amounts import in_own_context
from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.concurrency.running_loop import running_loop
from netmind_rentgpu.errors import ClientStateError, InvalidArgumentError
from netmind_rentgpu.rentals.fleet_map import FleetMap, end_tasks
from netmind_rentgpu.rentals.fleet_members import FleetMembers
from netmind_rentgpu.rentals.rental import AsyncRental
from netmind_rentgpu.rentals.work_queue import WorkQueue

if TYPE_CHECKING:
    from netmind_rentgpu.results import CommandResult

__all__ = ["AsyncFleet"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class AsyncFleet:
    """Several rented machines: `async with gpu.rent_many(8, ...) as fleet: ...`. All are deleted when the block is left.

    Entering the block rents the machines at once, each as `rent` does. When the time of the fleet is up, or its budget is
    spent, its machines are deleted even while the block runs. Every later use of them then raises `RentalExpiredError` or
    `BudgetExceededError`.
    """

    def __init__(self, members: FleetMembers, count: int, check_usable: Callable[[], object]) -> None:
        """Initialize; nothing is rented before the fleet is entered.

        Args:
            count: the number of machines.
            check_usable: raises ClientStateError if the client is closed, or belongs to another event loop.
        """
        self._members = members
        self._count = count
        self._check_usable = check_usable
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process: int | None = None
        self._is_of_other_process = False
        self._ending: asyncio.Task[list[BaseException]] | None = None

    @property
    def rentals(self) -> tuple[AsyncRental, ...]:
        """The machines that the fleet has now, without those that were lost or have ended."""
        return self._members.up

    @property
    def expires_at(self) -> datetime | None:
        """The time at which its machines end, in UTC, but for those that are extended alone; None before it is entered."""
        return self._members.rentals.until

    @property
    @in_own_context
    def spent(self) -> Decimal | None:
        """The estimated cost of all its machines so far, lost ones included; None if a price could not be read."""
        return self._members.rentals.spent

    async def open(self) -> Self:
        """Rent the machines without a block, as in a notebook, and return this fleet; `close` deletes them.

        Raises:
            RentGPUError: as on entering the block.
        """
        return await self.__aenter__()

    async def close(self) -> None:
        """Delete all machines, as leaving the block does. A second call does nothing.

        Raises:
            ReleaseError: a container could not be deleted, and stays on record.
            ClientStateError: the fleet was entered in another event loop.
        """
        self._check_loop()
        if self._loop is None:
            self._loop = running_loop()  # so that it cannot be entered any more
            return
        if problems := await self._end():
            raise _with_notes(problems)

    async def run(
        self,
        command: str,
        *,
        check: bool = False,
        timeout: float | None = None,
        environment: Mapping[str, str] | None = None,
        input: str | bytes | None = None,  # noqa: A002  # as subprocess calls it
        max_output: int = 16 * 1024 * 1024,
    ) -> list[CommandResult]:
        """Run a command on each machine at once, and return the results in the order of `rentals`.

        Args:
            check, timeout, environment, input, max_output: as for `AsyncRental.run`.

        Raises:
            RentalEndedError: no machine is left, or one was lost; the commands on the others are ended.
            SSHError: as for `AsyncRental.run`, of the first machine that fails; the commands on the others are ended.
            InvalidArgumentError: an argument cannot be used.
            ClientStateError: the fleet was not entered yet, or was left.
        """
        self._check_entered()
        rentals = self.rentals
        if not rentals:
            raise self._members.none_left()
        running = [
            asyncio.create_task(
                rental.run(
                    command, check=check, timeout=timeout, environment=environment, input=input, max_output=max_output
                )
            )
            for rental in rentals
        ]
        try:
            return list(await asyncio.gather(*running))
        finally:
            await end_tasks(running)

    async def map(
        self,
        function: Callable[[AsyncRental, Item], Awaitable[Result]],
        items: Iterable[Item],
        *,
        retries: int = 2,
        return_exceptions: bool = False,
    ) -> list[Result]:
        """Call a function for each item, one at a time on each machine, and return the results in the order of the items.

        An item whose machine is lost, or whose connection is, goes to a machine again: so a function may run more than once
        for an item, and each item has one result.

        Args:
            function: a coroutine function that takes a rental and an item.
            items: the items, all of which are read first.
            retries: how often an item goes to a machine again after it was lost. A machine counts as lost if it has ended,
                or if no login works for five minutes.
            return_exceptions: True to return an item's error as its result, as `asyncio.gather` does. Otherwise the first
                error ends the others.

        Raises:
            RentalEndedError: no machine is left; or an item was lost more often than `retries`.
            SSHError: an item's connections were lost more often than `retries`.
            InvalidArgumentError: an argument cannot be used.
            ClientStateError: the fleet was not entered yet, or was left, also meanwhile.
            Exception: an error of the function, as it is.
        """
        self._check_entered()
        if not callable(function):
            raise InvalidArgumentError("function", f"must be a coroutine function, not {type(function).__name__}")
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise InvalidArgumentError("retries", f"must be a whole number of at least 0, not {retries!r}")
        queue: WorkQueue[Item, Result] = WorkQueue(items, retries=retries)
        await FleetMap(self._members, queue, function, return_exceptions=bool(return_exceptions)).run()
        return queue.results

    async def __aenter__(self) -> Self:
        self._check_loop()
        if self._loop is not None:
            raise ClientStateError("this fleet was entered or closed before; make another one")
        self._check_usable()
        self._loop, self._process = running_loop(), os.getpid()
        try:
            await self._members.start_all()
        except BaseException as error:
            problems = await self._end(interrupted=isinstance(error, asyncio.CancelledError))
            for problem in problems:
                error.add_note(str(problem))
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A forked child must not delete the machines of its parent.
        if self._process != os.getpid():
            return
        self._check_loop()
        is_interrupted = isinstance(error, (asyncio.CancelledError, KeyboardInterrupt))
        problems = await self._end(interrupted=is_interrupted)
        if error is None and problems:
            raise _with_notes(problems)
        if error is not None:
            for problem in problems:
                error.add_note(str(problem))

    async def _end(self, *, interrupted: bool = False) -> list[BaseException]:
        """Delete all machines, however often this is cancelled; return the errors.

        Args:
            interrupted: True if a first interrupt has come, so that the next one gives the deletions up.
        """
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._members.close())
        if interrupted:
            self._members.rentals.interrupt()
        await wait_shielded(self._ending, cancelled=self._members.rentals.interrupt)
        return self._ending.result()

    def _check_loop(self) -> None:
        if self._is_of_other_process:
            raise ClientStateError("this fleet belongs to another process, from which this one was forked")
        if self._loop is not None and self._loop is not running_loop():
            raise ClientStateError("this fleet was entered in another event loop; use it there")

    def _check_entered(self) -> None:
        self._check_loop()
        if self._loop is None or self._members.rentals.until is None:
            raise ClientStateError("this fleet was not entered yet; enter its `with` block, or call its open(), first")
        if self._ending is not None:
            raise ClientStateError("this fleet was left; make another one")

    def __copy__(self) -> Self:
        """Return the fleet as another process sees it: it has nothing to delete."""
        other = type(self)(self._members, self._count, self._check_usable)
        other._is_of_other_process = True  # noqa: SLF001  # of this class
        return other

    def __repr__(self) -> str:
        if self._members.rentals.until is None:
            return f"<{type(self).__name__} of {self._count} machines: nothing is rented yet>"
        state = "left" if self._ending is not None else f"{len(self.rentals)} are up"
        return f"<{type(self).__name__} of {self._count} machines: {state}>"

    def __reduce__(self) -> str:
        raise TypeError("a fleet belongs to its process and cannot be pickled")


def _with_notes(problems: list[BaseException]) -> BaseException:
    """Return the first error, with notes of the others."""
    first, *others = problems
    for other in others:
        first.add_note(str(other))
    return first
