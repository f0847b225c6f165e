"""Deletion of a container, proven by what the service shows afterwards; and what the ledger is told about the past."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import attrs

from netmind_rentgpu.concurrency.cancellation import retry_when_cancelled
from netmind_rentgpu.errors import (
    AuthenticationError,
    ClientStateError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ReleaseError,
    RentGPUError,
    StateFileError,
)
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.clocks import read_clocks
from netmind_rentgpu.rentals.ledger.container_index import per_attempt_timeouts
from netmind_rentgpu.rentals.ledger.records import RentalRecord

__all__ = ["Deletion", "Target", "unreleased", "write_behind", "write_best_effort"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_LONGEST_DELETION = 60.0
_FINAL = (AuthenticationError, ClientStateError, PermissionDeniedError)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0


@attrs.frozen(kw_only=True)
class Target:
    """A container that is to be deleted.

    Attributes:
        is_ours: returns False for another container that has the id by now, None for one whose name cannot be read.
        confirmed: True if the id came from a create of this process, or from the list a moment ago; else a GET has to answer
            before the deletion is sent.
        unshown: its record, unless the service has shown the container since its create. A 404 to the deletion counts only
            after the list's lag, because whatever is missing from the list may be missing elsewhere, too.
    """

    container_id: int
    is_ours: Callable[[Container], bool | None]
    confirmed: bool = False
    unshown: RentalRecord | None = None


class Deletion:
    """The deletion of one container, in as many attempts as it takes.

    A GET before each attempt shows whose container it is, because another may have the id by now: that is left alone. A GET
    after it shows whether the deletion took effect. As long as the container is shown, `ServiceProfile.delete_lag` is waited
    for, and the deletion is repeated once. A 404 to the deletion is verified by a GET and a walk over the list, because a
    gateway may be wrong.

    Attributes:
        was_gone: True if the container did not exist, or not any more, when it was first asked for.
        was_replaced: True if its id belonged to another container then, which was left alone.
    """

    def __init__(self, context: RentalContext, target: Target, give_up: asyncio.Event | None = None) -> None:
        """Prepare.

        Args:
            give_up: set where one attempt is all that is wanted.
        """
        self._context = context
        self._target = target
        self._give_up = give_up or asyncio.Event()
        self._timeouts = per_attempt_timeouts(context.timeouts)
        self._attempts = 0
        self._acknowledged = 0
        self._denials = 0
        self.was_gone: bool = False
        self.was_replaced: bool = False

    async def run(self) -> RentGPUError | None:
        """Delete the container, though the caller's task is cancelled a few times; return the error if that failed."""
        profile, time = self._context.profile, asyncio.get_running_loop().time
        lag = max(0.0, self._list_lag_left())
        known_at = time() + lag
        longest = max(_LONGEST_DELETION, lag + _LONGEST_PAUSE if lag > 0 else 0) + profile.delete_lag.total_seconds()
        deadline, pause = time() + longest, _FIRST_PAUSE
        while True:
            error = await self._attempt(is_known=time() >= known_at)
            if error is None:
                return None
            hopeless = isinstance(error, _FINAL) or self._acknowledged > 1
            if hopeless or time() + pause > deadline or self._give_up.is_set():
                return error
            await self._pause(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    def _list_lag_left(self) -> float:
        """Return for how many seconds the container may still be missing from the list, by the clock that says more."""
        record, clocks = self._target.unshown, read_clocks()
        if record is None:
            return 0.0
        passed = min(clocks.wall, record.present(clocks)) - record.intended_at
        lag = self._context.profile.list_lag
        # However the time of day was set: nothing is missing from the list for longer from now on.
        return min(lag, lag - passed).total_seconds()

    async def _attempt(self, *, is_known: bool) -> RentGPUError | None:
        """Make one attempt; return an error unless the container is gone for certain."""
        target, profile = self._target, self._context.profile
        # The public method takes a 404 for done where an earlier attempt may have been why.
        delete = self._context.containers._delete  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        shown = await self._get()
        self._attempts += 1
        if self._attempts == 1:
            self.was_gone = isinstance(shown, NotFoundError)
        if isinstance(shown, Container) and target.is_ours(shown) is False:
            if not self._acknowledged:
                logger.warning("container %d is another by its name, %s; it is left alone", shown.id, shown.name)
                self.was_gone = self.was_replaced = True
            return None
        if isinstance(shown, RentGPUError) and not isinstance(shown, NotFoundError) and not target.confirmed:
            return shown
        try:
            await retry_when_cancelled(lambda: delete(target.container_id, timeout=self._timeouts))
        except (NotFoundError, ConflictError, InvalidRequestError) as error:
            # What is answered once it is gone is not documented.
            if profile.deleted_stay_listed:
                # A single 404 may be a gateway's.
                self._denials += isinstance(error, NotFoundError)
                return None if is_known and (self._denials > 1 or self._acknowledged) else error
            return None if is_known and await self._is_nowhere() else error
        except RentGPUError as error:
            return error
        self._acknowledged += 1
        return None if profile.deleted_stay_listed else await self._confirm()

    async def _confirm(self) -> RentGPUError | None:
        """Wait until the container is not shown any more; return an error if it still is after the service's lag."""
        time, lag = asyncio.get_running_loop().time, self._context.profile.delete_lag.total_seconds()
        # The second deletion is looked after once, because the first had its time.
        deadline, pause = time() + (lag if self._acknowledged == 1 else 0), _FIRST_PAUSE
        while True:
            shown = await self._get()
            if self._is_gone(shown):
                return None
            if time() >= deadline or self._give_up.is_set():
                break
            await self._pause(min(pause, max(0.0, deadline - time())))
            pause = min(_LONGEST_PAUSE, pause * 2)
        if isinstance(shown, RentGPUError):
            return shown
        times = "a deletion" if self._acknowledged == 1 else "two deletions"
        return RentGPUError(f"container {shown.id} is still shown after {times}, answered with success")

    def _is_gone(self, shown: Container | RentGPUError) -> bool:
        if isinstance(shown, Container):
            return self._target.is_ours(shown) is False
        return isinstance(shown, NotFoundError)

    async def _get(self) -> Container | RentGPUError:
        get = self._context.containers.get
        try:
            return await retry_when_cancelled(lambda: get(self._target.container_id, timeout=self._timeouts))
        except RentGPUError as error:
            return error

    async def _is_nowhere(self) -> bool:
        if not self._is_gone(await self._get()):
            return False
        is_unlisted = self._context.container_index.is_unlisted
        return await retry_when_cancelled(lambda: is_unlisted(self._target.container_id))

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(seconds):
                await self._give_up.wait()


async def write_best_effort(writing: Awaitable[object]) -> None:
    """Write to the ledger what has happened already. Where that fails, the intent is on record all the same."""
    try:
        await writing
    except (StateFileError, ClientStateError) as error:
        _tell(error)


def write_behind(writing: asyncio.Future[None]) -> None:
    """Have the ledger told of what has happened already, without waiting for that."""

    def tell(written: asyncio.Future[None]) -> None:
        error = None if written.cancelled() else written.exception()
        if error is not None:
            _tell(error)

    writing.add_done_callback(tell)


def unreleased(record: RentalRecord, error: BaseException) -> ReleaseError:
    """Return an error that says that a rental could not be deleted, and log it."""
    price = "an unknown price" if record.hourly_price is None else f"{record.hourly_price:f}"
    reaping = "rentals.reap() will delete it"
    if isinstance(error, AuthenticationError):
        reaping = "rentals.reap() with a token of its account will delete it"
    text = (
        f"rental {record.name} (container {record.container_id}) could not be deleted, and costs {price} an hour until"
        f" it is; it is on record, and {reaping}: {error}"
    )
    logger.error("%s", text)
    problem = ReleaseError(text, name=record.name, container_id=record.container_id, hourly_price=record.hourly_price)
    problem.__cause__ = error
    return problem


def _tell(error: BaseException) -> None:
    logger.warning("what became of a rental could not be put on record: %s", error)
