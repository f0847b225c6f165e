"""Deletion of a container, proven by what the service shows afterwards, and ledger writes that may fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum

import attrs

from netmind_rentgpu.concurrency.backoff import backoff
from netmind_rentgpu.concurrency.cancellation import retry_when_cancelled
from netmind_rentgpu.errors import (
    AuthenticationError,
    ClientStateError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ReleaseError,
    RentalEndedError,
    RentGPUError,
    StateFileError,
)
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.container_index import per_attempt_timeouts
from netmind_rentgpu.rentals.ledger.past_rentals import cost_of
from netmind_rentgpu.rentals.ledger.records import RentalRecord, amount_text

__all__ = [
    "Deletion",
    "Proof",
    "Target",
    "log_release",
    "log_write_error",
    "proof_needed",
    "unreleased",
    "write_behind",
    "write_best_effort",
]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_FINAL = (AuthenticationError, ClientStateError, PermissionDeniedError)
_MAY_BE_GONE = (NotFoundError, ConflictError, InvalidRequestError)
_LONGEST_PAUSE = 5.0


@attrs.frozen(kw_only=True)
class Target:
    """A container that is to be deleted.

    Attributes:
        is_ours: returns False for another container that has the id by now, None for a container without a readable name.
        confirmed: True if the id came from a create of this process, or from the list a moment ago; else a GET has to answer
            before the deletion is sent.
        unshown: the container's record if the service has not shown the container since its create, else None. With it, a
            404 to the deletion counts only after the list's lag, because parts of the service may not know it yet.
    """

    container_id: int
    is_ours: Callable[[Container], bool | None]
    confirmed: bool = False
    unshown: RentalRecord | None = None


class Proof(Enum):
    """The proof that the answer to a deletion calls for."""

    NONE = "the container is gone"
    GET = "a GET has to miss the container, within the service's lag"
    GET_AND_LIST = "a GET and a walk over the list have to miss the container, because a gateway may be wrong"
    RETRY = "the deletion has to be repeated"
    GIVE_UP = "a repetition would change nothing"


def proof_needed(
    answer: RentGPUError | None, *, is_known: bool, deleted_stay_listed: bool, acknowledged: int, denials: int
) -> Proof:
    """Return the proof that an answer to a deletion calls for.

    Args:
        answer: the error of the deletion; None if it has succeeded.
        is_known: False as long as the service may not list the container yet, so that its absence proves nothing.
        deleted_stay_listed: as in the profile: nothing can miss a deleted container.
        acknowledged: how many deletions of it have succeeded, this one included.
        denials: how many were answered by a 404, this one included.
    """
    if answer is None:
        return Proof.NONE if deleted_stay_listed else Proof.GET
    if isinstance(answer, _FINAL):
        return Proof.GIVE_UP
    # The service's answer to the deletion of a container that is gone is not documented.
    if not isinstance(answer, _MAY_BE_GONE) or not is_known:
        return Proof.RETRY
    if deleted_stay_listed:
        return Proof.NONE if acknowledged or denials > 1 else Proof.RETRY
    return Proof.GET_AND_LIST


class Deletion:
    """The deletion of one container, in as many attempts as it takes.

    A GET before each attempt shows whose container it is: another may have the id by now, and is left alone. The answer to
    the deletion decides which proof has to follow. A container that is still shown after `ServiceProfile.delete_lag` is
    deleted once more.

    Attributes:
        was_gone: True if the container did not exist when the first GET asked for it.
        was_replaced: True if its id belonged to another container then.
    """

    def __init__(self, context: RentalContext, target: Target, give_up: asyncio.Event | None = None) -> None:
        """Initialize.

        Args:
            give_up: set if the attempt under way is the last one.
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
        """Delete the container, though the task is cancelled a few times; return the error if that fails."""
        context, time = self._context, asyncio.get_running_loop().time
        lag = self._list_lag_left()
        known_at = time() + lag
        longest = max(context.limits.deletion, lag + _LONGEST_PAUSE if lag else 0)
        deadline = time() + longest + context.profile.delete_lag.total_seconds()
        pauses = backoff(longest=_LONGEST_PAUSE)
        while (error := await self._delete_once(is_known=time() >= known_at)) is not None:
            pause = next(pauses)
            gives_up = isinstance(error, _FINAL) or self._acknowledged > 1
            if gives_up or time() + pause > deadline or self._give_up.is_set():
                return error
            await self._pause(pause)
        return None

    def _list_lag_left(self) -> float:
        """Return for how many seconds the container may still be missing from the list, by the clock that says more."""
        record, clocks = self._target.unshown, self._context.clock()
        if record is None:
            return 0.0
        passed = min(clocks.wall, record.present(clocks)) - record.intended_at
        lag = self._context.profile.list_lag
        # However the clocks were set, nothing is missing from the list for longer than its lag from now on.
        return max(0.0, min(lag, lag - passed).total_seconds())

    async def _delete_once(self, *, is_known: bool) -> RentGPUError | None:
        """Delete the container once; return an error unless it is gone for certain."""
        target, stays_listed = self._target, self._context.profile.deleted_stay_listed
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
        answer = await self._send()
        self._acknowledged += answer is None
        self._denials += isinstance(answer, NotFoundError)
        proof = proof_needed(
            answer,
            is_known=is_known,
            deleted_stay_listed=stays_listed,
            acknowledged=self._acknowledged,
            denials=self._denials,
        )
        match proof:
            case Proof.NONE:
                return None
            case Proof.GET:
                return await self._confirm()
            case Proof.GET_AND_LIST:
                return None if await self._is_nowhere() else answer
            case Proof.RETRY | Proof.GIVE_UP:
                return answer

    async def _send(self) -> RentGPUError | None:
        # The public method counts a 404 as success if an earlier attempt of its own may have caused it.
        delete = self._context.containers._delete  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        try:
            await retry_when_cancelled(lambda: delete(self._target.container_id, timeout=self._timeouts))
        except RentGPUError as error:
            return error
        return None

    async def _confirm(self) -> RentGPUError | None:
        """Wait until no GET shows the container; return an error if one still does after the service's lag."""
        time, lag = asyncio.get_running_loop().time, self._context.profile.delete_lag.total_seconds()
        # After the second deletion one GET is enough, because the first deletion had the whole lag.
        deadline = time() + (lag if self._acknowledged == 1 else 0)
        pauses = backoff(longest=_LONGEST_PAUSE)
        while not self._is_gone(shown := await self._get()):
            if time() >= deadline or self._give_up.is_set():
                break
            await self._pause(min(next(pauses), max(0.0, deadline - time())))
        else:
            return None
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
    """Write to the ledger what has happened already; log an error, because the intent is on record anyway."""
    try:
        await writing
    except (StateFileError, ClientStateError, RentalEndedError) as error:
        log_write_error(error)


def write_behind(writing: asyncio.Future[None]) -> None:
    """Log the error of a write to the ledger that no task waits for, if it fails."""

    def tell(written: asyncio.Future[None]) -> None:
        error = None if written.cancelled() else written.exception()
        if error is not None:
            log_write_error(error)

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


def log_release(record: RentalRecord, clocks: ClockReading) -> None:
    """Log that the container of a record is deleted, and what it has cost by its listed price."""
    amount = amount_text(cost_of(record, record.present(clocks)), record.currency)
    logger.info(
        "%s: released container %s on %s; it cost about %s", record.name, record.container_id, record.node_name, amount
    )


def log_write_error(error: BaseException) -> None:
    """Log that the ledger does not show the present state of a rental."""
    logger.warning(
        "could not update the state file for a rental: %s; its intent is on record, which is enough to delete it",
        error,
    )
