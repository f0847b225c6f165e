"""A guardian's look at the state file: the work of the child that it forks when something may be due."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from netmind_rentgpu.client import AsyncRentGPU
from netmind_rentgpu.rentals.guardian.registration import read_registration
from netmind_rentgpu.rentals.ledger.rows import read_owner
from netmind_rentgpu.rentals.lifecycle.reaper import reap_guarded

__all__ = ["look"]

# Also of a rental without a deadline.
_LONGEST_WAIT = timedelta(days=1)


def look(clients: Sequence[tuple[str, Mapping[str, Any]]], *, parent_is_gone: bool) -> dict[str, float | None]:
    """End what is due of the rentals that a guardian guards.

    Args:
        clients: the key and the registration of each client of its parent.
        parent_is_gone: True if the parent is dead, or runs another program by now.

    Returns:
        For each key, the seconds until something is due, 0 if something could not be ended; None if nothing is left.
    """
    return asyncio.run(_look(clients, parent_is_gone=parent_is_gone))


async def _look(clients: Sequence[tuple[str, Mapping[str, Any]]], *, parent_is_gone: bool) -> dict[str, float | None]:
    found = await asyncio.gather(
        *(_look_for(registration, parent_is_gone=parent_is_gone) for _, registration in clients), return_exceptions=True
    )
    # A look that has failed is repeated.
    return {
        key: 0.0 if isinstance(result, BaseException) else result
        for (key, _), result in zip(clients, found, strict=True)
    }


async def _look_for(registration: Mapping[str, Any], *, parent_is_gone: bool) -> float | None:
    parts = read_registration(registration)
    guardian = read_owner(registration["guardian"])
    owner = read_owner(registration["owner"])
    former = [read_owner(text) for text in registration["former"]]
    if guardian is None or owner is None:
        return None
    async with AsyncRentGPU._of_parts(parts) as gpu:  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a client like the parent's
        left = await reap_guarded(
            gpu._context,  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # as above
            guardian,
            owner=owner,
            former=[each for each in former if each is not None],
            grace=timedelta(seconds=registration["grace"]),
            between_job_looks=timedelta(seconds=registration["between_job_looks"]),
            reading_end=timedelta(seconds=registration["reading_end"]),
            owner_is_gone=parent_is_gone,
        )
    return None if left is None else min(left, _LONGEST_WAIT).total_seconds()
