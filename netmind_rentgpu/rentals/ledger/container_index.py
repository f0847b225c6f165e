"""The account's containers, listed once for all callers that ask at the same time; which of them belong to a record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeAlias

from netmind_rentgpu.concurrency.single_flight import SingleFlight
from netmind_rentgpu.errors import UnexpectedResponseError
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.ledger.names import is_same_name
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.settings import Timeouts

__all__ = ["ContainerIndex", "matching", "per_attempt_timeouts"]

_Walk: TypeAlias = tuple[list[Container], list[UnexpectedResponseError]]
_CLOCKS_DIFFER = timedelta(minutes=10)


class ContainerIndex:
    """Walks over the whole list of containers, each shared by all callers that asked before it began."""

    def __init__(
        self, containers: AsyncContainers, timeouts: Timeouts, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepare.

        Args:
            timeouts: the client's own.
        """
        self._containers = containers
        self._each = per_attempt_timeouts(timeouts)
        self._walked: SingleFlight[_Walk] = SingleFlight(fresh=0, clock=clock)

    async def call(self) -> list[Container]:
        """Return all containers, as a walk found them that began now or later.

        Raises:
            RentGPUError: the list could not be read, or not all of it.
        """
        found, unreadable = await self.read()
        if unreadable:
            raise unreadable[0]
        return found

    async def read(self) -> _Walk:
        """Do so, and return what could be read, and an error for each item that could not.

        Raises:
            RentGPUError: the list could not be read to its end.
        """
        return await self._walked.get(self._walk)

    async def _walk(self) -> _Walk:
        found: list[Container] = []
        unreadable: list[UnexpectedResponseError] = []
        async for page in self._containers.list(timeout=self._each).pages():
            found += page.items
            unreadable += page.unreadable
        return found, unreadable


def per_attempt_timeouts(timeouts: Timeouts) -> Timeouts:
    """Return how long one attempt at a deletion or a look may take: one that hangs must not use up the others' time."""

    def at_most(seconds: float, bound: float | None) -> float:
        return seconds if bound is None else min(seconds, bound)

    return Timeouts(
        total=at_most(20.0, timeouts.total),
        connect=at_most(10.0, timeouts.connect),
        read=at_most(10.0, timeouts.read),
        slot=at_most(20.0, timeouts.slot),
    )


def matching(record: RentalRecord, listed: Iterable[Container]) -> list[Container]:
    """Return the containers that are a record's.

    Raises:
        UnexpectedResponseError: there is none, but one whose name cannot be read, and which may be it.
    """
    found: list[Container] = []
    nameless: Container | None = None
    for container in listed:
        if is_same_name(record.name, container.name):
            found.append(container)
        elif container.name is None and (
            record.intended_at - _CLOCKS_DIFFER
            <= (container.created_at or record.intended_at)
            <= record.certain_at + _CLOCKS_DIFFER
        ):
            nameless = container
    if nameless is not None and not found:
        problem = f"container {nameless.id} has no name that can be read, and may be {record.name}"
        raise UnexpectedResponseError(problem, status=200, method="GET", path="/v1/rentgpu/containers/")
    return found
