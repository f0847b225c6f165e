"""How a container is surely deleted, and how the ledger is told of what has happened already."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import suppress
from datetime import datetime

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
from netmind_rentgpu.rentals.context import RentalContext, now
from netmind_rentgpu.rentals.ledger.container_index import per_attempt_timeouts
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.settings import Timeouts

__all__ = ["delete_with_retries", "get_with_retries", "unreleased", "write_behind", "write_best_effort"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_LONGEST_DELETION = 60.0
_FINAL = (AuthenticationError, ClientStateError, PermissionDeniedError)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0


async def delete_with_retries(
    context: RentalContext,
    container_id: int,
    *,
    rented_at: datetime | None = None,
    give_up: asyncio.Event | None = None,
) -> RentGPUError | None:
    """Delete a container, in several attempts if need be; return why that failed.

    One that is said not to be there is asked for, and looked for in the list, too: whoever says so may be wrong, and it
    would cost for ever.

    Args:
        rented_at: when that began, unless the service has shown it since. What is as new as what may be missing from the
            list may be missing elsewhere, too, so that it is not taken for gone before.
        give_up: set where one attempt is all that is wanted.
    """
    loop = asyncio.get_running_loop()
    # The public method takes a 404 for done where an earlier attempt may have been why.
    delete = context.containers._delete  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    each = per_attempt_timeouts(context.timeouts)
    pause = _FIRST_PAUSE
    known_at = now() if rented_at is None else rented_at + context.profile.list_lag
    lag = (known_at - now()).total_seconds()
    deadline = loop.time() + max(_LONGEST_DELETION, lag + _LONGEST_PAUSE if lag > 0 else 0)
    while True:
        is_known = now() >= known_at
        gone = False
        try:
            deleted = await retry_when_cancelled(lambda: delete(container_id, timeout=each))
        except (NotFoundError, ConflictError, InvalidRequestError) as raised:
            # What is answered once it is gone is not documented.
            error: RentGPUError = raised
            gone = is_known and await retry_when_cancelled(lambda: _is_nowhere(context, container_id, each))
        except RentGPUError as raised:
            error = raised
        else:  # done; but where nothing was said of it, that is looked at
            error = RentGPUError(f"container {container_id} is still there after it was deleted")
            gone = deleted is not None or await retry_when_cancelled(lambda: _is_gone(context, container_id, each))
        if gone:
            return None
        if isinstance(error, _FINAL) or loop.time() + pause > deadline or (give_up is not None and give_up.is_set()):
            return error
        with suppress(asyncio.CancelledError):
            await _pause(pause, give_up)
        pause = min(_LONGEST_PAUSE, pause * 2)


async def _pause(seconds: float, give_up: asyncio.Event | None) -> None:
    if give_up is None:
        await asyncio.sleep(seconds)
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await give_up.wait()


async def get_with_retries(context: RentalContext, container_id: int, give_up: asyncio.Event) -> Container:
    """Ask for a container, in several attempts if need be.

    Raises:
        NotFoundError: it is said not to be there.
        RentGPUError: it could not be asked for.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _LONGEST_DELETION
    pause = _FIRST_PAUSE
    while True:
        try:
            return await context.containers.get(container_id, timeout=per_attempt_timeouts(context.timeouts))
        except (*_FINAL, NotFoundError):
            raise
        except RentGPUError:
            if loop.time() + pause > deadline or give_up.is_set():
                raise
        await _pause(pause, give_up)
        pause = min(_LONGEST_PAUSE, pause * 2)


async def _is_gone(context: RentalContext, container_id: int, each: Timeouts) -> bool:
    try:
        await context.containers.get(container_id, timeout=each)
    except NotFoundError:
        return True
    except RentGPUError:
        pass
    return False


async def _is_nowhere(context: RentalContext, container_id: int, each: Timeouts) -> bool:
    if not await _is_gone(context, container_id, each):
        return False
    try:
        listed = await context.container_index.read()
        return all(container.id != container_id for container in listed.containers)
    except RentGPUError:
        return False


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
    text = (
        f"rental {record.name} (container {record.container_id}) could not be deleted, and costs {price} an hour until"
        f" it is; it is on record, and rentals.reap() will delete it: {error}"
    )
    logger.error("%s", text)
    problem = ReleaseError(text, name=record.name, container_id=record.container_id, hourly_price=record.hourly_price)
    problem.__cause__ = error
    return problem


def _tell(error: BaseException) -> None:
    logger.warning("what became of a rental could not be put on record: %s", error)
