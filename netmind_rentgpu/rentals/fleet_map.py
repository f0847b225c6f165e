"""The `map` of a fleet: an item at a time on each machine; an item that was lost with its machine goes to another."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Generic, TypeVar

from netmind_rentgpu.errors import InvalidArgumentError, RentalEndedError, RentGPUError, SSHError
from netmind_rentgpu.rentals.fleet_members import FleetMembers, end_error
from netmind_rentgpu.rentals.rental import AsyncRental
from netmind_rentgpu.rentals.work_queue import WorkQueue

__all__ = ["FleetMap", "end_tasks"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class FleetMap(Generic[Item, Result]):
    """One `map` over the items of a queue."""

    def __init__(
        self,
        members: FleetMembers,
        queue: WorkQueue[Item, Result],
        function: Callable[[AsyncRental, Item], Awaitable[Result]],
        *,
        return_exceptions: bool,
    ) -> None:
        self._members = members
        self._queue = queue
        self._function = function
        self._return_exceptions = return_exceptions
        # The calls that run, each with its machine and the number of its item.
        self._calls: dict[asyncio.Task[Result], tuple[AsyncRental, int]] = {}

    async def run(self) -> None:
        """Call the function until each item has a result.

        Raises:
            RentalEndedError: no machine is left.
            BaseException: the error of an item.
        """
        try:
            while not self._queue.is_over:
                self._hand_out()
                if not self._calls and not self._members.pending:
                    raise self._members.none_left()
                await asyncio.wait({*self._calls, *self._members.pending}, return_when=asyncio.FIRST_COMPLETED)
                for call in [call for call in self._calls if call.done()]:
                    await self._settle(call, *self._calls.pop(call))
        finally:
            await end_tasks(self._calls)

    def _hand_out(self) -> None:
        """Start a call on each machine that has none."""
        busy = {rental for rental, _ in self._calls.values()}
        for rental in self._members.up:
            if rental not in busy and self._queue.has_waiting:
                number, item = self._queue.take()
                call = asyncio.get_running_loop().create_task(_call(self._function, rental, item))
                self._calls[call] = (rental, number)

    async def _settle(self, call: asyncio.Task[Result], rental: AsyncRental, number: int) -> None:
        """Record the result of an item, or give it to a machine again.

        Raises:
            BaseException: the error of the item.
        """
        error = asyncio.CancelledError() if call.cancelled() else call.exception()
        if error is None:
            self._queue.finish(number, call.result())
            return
        loss = await self._loss(rental, error)
        if loss is not None and self._queue.lose(number):
            return
        if isinstance(error, asyncio.CancelledError) and loss is not None:
            error = loss
        if not self._return_exceptions or not isinstance(error, Exception):
            raise error
        self._queue.finish(number, error)

    async def _loss(self, rental: AsyncRental, error: BaseException) -> RentGPUError | None:
        """Return the error by which an item's machine or connection was lost; None if it was not.

        A machine that cannot be used any more is given back.
        """
        loss = _loss_in(error, rental)
        if not rental.ended and isinstance(loss, SSHError):
            try:
                await rental._connections.usable_shell()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a fleet's rentals are its own
            except RentalEndedError as ended:
                loss = ended
            except RentGPUError:
                pass  # the next item shows whether the machine is usable
        if rental.ended:
            loss = end_error(rental)
        if loss is not None and (rental.ended or isinstance(loss, RentalEndedError)):
            self._members.lose(rental, loss)
        return loss


async def _call(function: Callable[[AsyncRental, Item], Awaitable[Result]], rental: AsyncRental, item: Item) -> Result:
    """Call a user's function, and cancel it once its machine has ended."""
    called = function(rental, item)
    if not inspect.isawaitable(called):
        raise InvalidArgumentError("function", f"must be a coroutine function; it returned {type(called).__name__}")
    work = asyncio.ensure_future(called)
    ended = asyncio.create_task(rental._state.ended.wait())  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a fleet's rentals are its own
    try:
        await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end_tasks([work, ended])
    return work.result()


async def end_tasks(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel those tasks that still run, and wait for their ends."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)
    for task in tasks:
        # Mark the error as retrieved: otherwise asyncio logs it.
        _ = task.cancelled() or task.exception()


def _loss_in(error: BaseException, rental: AsyncRental) -> RentGPUError | None:
    """Return the error, or that cause of it, which says that a machine or its connection was lost."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RentalEndedError) and cause.name == rental.name:
            return cause
        if isinstance(cause, SSHError) and cause.stage == "connection":
            return cause
        cause = cause.__cause__
    return None
