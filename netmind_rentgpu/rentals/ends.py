"""How a container is surely deleted, and how the ledger is told of what has happened already."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import suppress

from netmind_rentgpu.errors import (
    AuthenticationError,
    ClientStateError,
    ConflictError,
    InvalidRequestError,
    LedgerError,
    NotFoundError,
    PermissionDeniedError,
    RentGPUError,
)
from netmind_rentgpu.rentals.desk import Desk
from netmind_rentgpu.settings import Timeouts
from netmind_rentgpu.shielding import insist

__all__ = ["delete_surely", "noted"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_LONGEST_DELETION = 60.0
# What a service may answer to a delete of what is gone: it is not documented.
_MAYBE_GONE = (NotFoundError, ConflictError, InvalidRequestError)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0


async def delete_surely(desk: Desk, container_id: int, hurried: asyncio.Event | None = None) -> RentGPUError | None:
    """Delete a container, in several attempts if need be; return why that failed.

    One that is said not to be there is asked for, too: whoever says so may be wrong, and it would cost for ever.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _LONGEST_DELETION
    patience = _patience(desk.timeouts)
    pause = _FIRST_PAUSE
    while True:
        try:
            deleted = await insist(lambda: desk.containers.delete(container_id, timeout=patience))
        except RentGPUError as raised:
            error, suspicious = raised, isinstance(raised, _MAYBE_GONE)
        else:
            if deleted is not None:
                return None
            # Nothing was said; or it was not there, and an earlier attempt of the same call may have been why.
            error, suspicious = RentGPUError(f"container {container_id} is still there after it was deleted"), True
        if suspicious and await insist(lambda: _is_gone(desk, container_id, patience)):
            return None
        hopeless = isinstance(error, (AuthenticationError, ClientStateError, PermissionDeniedError))
        if hopeless or loop.time() + pause > deadline or (hurried is not None and hurried.is_set()):
            return error
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(pause)
        pause = min(_LONGEST_PAUSE, pause * 2)


async def _is_gone(desk: Desk, container_id: int, patience: Timeouts) -> bool:
    try:
        await desk.containers.get(container_id, timeout=patience)
    except NotFoundError:
        return True
    except RentGPUError:
        pass
    return False


def _patience(timeouts: Timeouts) -> Timeouts:
    """Return how long one attempt at a deletion may take: a hanging one must not use up the time for the others."""

    def at_most(seconds: float, bound: float | None) -> float:
        return seconds if bound is None else min(seconds, bound)

    return Timeouts(
        total=at_most(20.0, timeouts.total),
        connect=at_most(10.0, timeouts.connect),
        read=at_most(10.0, timeouts.read),
        slot=at_most(20.0, timeouts.slot),
    )


async def noted(writing: Awaitable[object]) -> None:
    """Write to the ledger what has happened already. Where that fails, the intent is on record all the same."""
    try:
        await writing
    except LedgerError as error:
        logger.warning("what became of a rental could not be put on record: %s", error)
