"""The `map` of a fleet: an item at a time on each machine; an item that was lost with its machine goes to another."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Generic, TypeVar, cast

from netmind_rentgpu.concurrency.backoff import backoff
from netmind_rentgpu.errors import (
    ClientStateError,
    InvalidArgumentError,
    RentalEndedError,
    RentGPUError,
    SSHError,
)
from netmind_rentgpu.rentals.fleet_members import FleetMembers, end_error
from netmind_rentgpu.rentals.rental import AsyncRental
from netmind_rentgpu.rentals.work_queue import WorkQueue

__all__ = ["FleetMap", "end_tasks"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class _LostError(Exception):
    """An item was lost with its machine, or with the connection to it.

    Attributes:
        error: the error of the item.
        loss: the loss.
        is_machine: True if the machine cannot be used any more.
    """

    def __init__(self, error: BaseException, loss: RentGPUError, *, is_machine: bool) -> None:
        super().__init__(str(loss))
        self.error = error
        self.loss = loss
        self.is_machine = is_machine


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
            ClientStateError: the fleet was left.
            BaseException: the error of an item.
        """
        members = self._members
        try:
            while not self._queue.is_over:
                changed = members.changed()
                members.lose_ended()
                self._hand_out()
                if members.is_ending:
                    raise ClientStateError("this fleet was left, and its map was ended")
                if not self._calls and not members.pending and not members.up:
                    error = members.none_left()
                    if not self._return_exceptions:
                        raise error
                    self._queue.finish_all(error)
                    return
                waiting: set[asyncio.Future[Any]] = {*self._calls, changed}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for call in [call for call in self._calls if call.done()]:
                    rental, number = self._calls.pop(call)
                    self._free(rental)
                    self._settle(call, rental, number)
        finally:
            calls = dict(self._calls)
            await end_tasks(calls)
            for rental, _ in calls.values():
                self._free(rental)

    def _hand_out(self) -> None:
        """Start a call on each machine that works on no item, of this map or another."""
        for rental in self._members.up:
            if rental not in self._members.busy and self._queue.has_waiting:
                number, item = self._queue.take()
                self._members.busy.add(rental)
                call = asyncio.get_running_loop().create_task(_call(self._function, rental, item))
                self._calls[call] = (rental, number)

    def _free(self, rental: AsyncRental) -> None:
        self._members.busy.discard(rental)
        self._members.note_change()

    def _settle(self, call: asyncio.Task[Result], rental: AsyncRental, number: int) -> None:
        """Record the result of an item, or give it to a machine again.

        Raises:
            BaseException: the error of the item.
        """
        error = asyncio.CancelledError() if call.cancelled() else call.exception()
        if error is None:
            self._queue.finish(number, call.result())
            return
        if isinstance(error, _LostError):
            if error.is_machine:
                self._members.lose(rental, error.loss)
            if self._queue.lose(number):
                return
            error = error.loss if isinstance(error.error, asyncio.CancelledError) else error.error
        if not self._return_exceptions or not isinstance(error, Exception):
            raise error
        self._queue.finish(number, error)


async def _call(function: Callable[[AsyncRental, Item], Awaitable[Result]], rental: AsyncRental, item: Item) -> Result:
    """Call a user's function, and cancel it once its machine is lost.

    Raises:
        _LostError: the item was lost.
        BaseException: any other error of the function.
    """
    state = rental._state  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a fleet's rentals are its own
    called = function(rental, item)
    if not inspect.isawaitable(called):
        raise InvalidArgumentError("function", f"must be a coroutine function; it returned {type(called).__name__}")
    work = asyncio.ensure_future(called)
    ended = asyncio.create_task(state.ended.wait())
    try:
        await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not state.is_lost:
            # The function may have detached or closed it, and goes on.
            await asyncio.wait({work})
    finally:
        await end_tasks([work, ended])
    error = asyncio.CancelledError() if work.cancelled() else work.exception()
    if error is None:
        return work.result()
    loss = await _loss(rental, error)
    if loss is None:
        raise error
    raise _LostError(error, loss, is_machine=state.is_lost or isinstance(loss, RentalEndedError))


async def _loss(rental: AsyncRental, error: BaseException) -> RentGPUError | None:
    """Return the error by which an item's machine or connection was lost; None if it was not."""
    loss = _loss_in(error, rental)
    if loss is not None and not rental.ended:
        # One failed login proves nothing, because the network may be down here.
        ended = await _unreachable(rental)
        loss = loss if ended is None else ended
        if ended is None and isinstance(loss, RentalEndedError):
            loss = SSHError(str(loss), stage="connection")
    if rental._state.is_lost:  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a fleet's rentals are its own
        return end_error(rental)
    return None if rental.ended else loss


async def _unreachable(rental: AsyncRental) -> RentalEndedError | None:
    """Return the last error if no login works for as long as an outage may last; None once a login has worked."""
    connections = rental._connections  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a fleet's rentals are its own
    time = asyncio.get_running_loop().time
    until, pauses = time() + connections.longest_outage, backoff()
    while True:
        try:
            await connections.usable_shell()
        except RentalEndedError as error:
            pause = next(pauses)
            if rental.ended or time() + pause > until:
                return error
            await asyncio.sleep(pause)
        except RentGPUError:
            return None  # the next item shows whether the machine is usable
        else:
            return None


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
    """Return the error, or that cause of it, which says that a machine or its connection was lost.

    A group of errors is a loss if each of its errors is.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RentalEndedError) and cause.name == rental.name:
            return cause
        if isinstance(cause, SSHError) and cause.stage == "connection":
            return cause
        if isinstance(cause, BaseExceptionGroup):
            inner = cast("BaseExceptionGroup[BaseException]", cause).exceptions
            losses = [_loss_in(each, rental) for each in inner]
            return losses[0] if all(losses) else None
        cause = cause.__cause__
    return None
