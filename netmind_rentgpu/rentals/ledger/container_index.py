"""The list of the account's containers, read once for concurrent callers, and the match of containers with records."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import attrs

from netmind_rentgpu.concurrency.single_flight import SingleFlight
from netmind_rentgpu.errors import ContainerGoneError, RentGPUError, UnexpectedResponseError
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.ledger.names import holds_nonce, is_same_name
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.settings import Timeouts
from netmind_rentgpu.wire.codec import MOST_SHAPE_ERRORS

__all__ = [
    "ContainerIndex",
    "ListedContainers",
    "check_create_answer",
    "check_not_replaced",
    "is_container_of",
    "matching",
    "per_attempt_timeouts",
    "still_belongs_to",
]

_MOST_CLOCK_DIFFERENCE = timedelta(minutes=10)
_SHORTEST_NONCE_OF_ANSWER = 4


@attrs.frozen
class ListedContainers:
    """The containers that one walk over the whole list has found.

    Attributes:
        unreadable: the errors of the items that could not be read, or of the first 20 of these items.
        unreadable_count: the number of items that could not be read.
    """

    containers: tuple[Container, ...]
    unreadable: tuple[UnexpectedResponseError, ...] = ()
    unreadable_count: int = 0


class ContainerIndex:
    """Walks over the whole list of containers. All callers that asked before a walk began share the walk."""

    def __init__(
        self, containers: AsyncContainers, timeouts: Timeouts, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Set up.

        Args:
            timeouts: the client's timeouts.
        """
        self._containers = containers
        self._timeouts = per_attempt_timeouts(timeouts)
        self._walked: SingleFlight[ListedContainers] = SingleFlight(fresh=0, clock=clock)

    async def read(self) -> ListedContainers:
        """Return all containers, found by a walk that begins now or later.

        Raises:
            RentGPUError: the list could not be read to its end.
        """
        return await self._walked.get(self._walk)

    async def is_unlisted(self, container_id: int) -> bool:
        """Return True if a walk over the whole list does not show a container, and could read each item."""
        try:
            listed = await self.read()
        except RentGPUError:
            return False
        return not listed.unreadable and all(container.id != container_id for container in listed.containers)

    async def _walk(self) -> ListedContainers:
        found: list[Container] = []
        unreadable: list[UnexpectedResponseError] = []
        unreadable_count = 0
        async for page in self._containers.list(timeout=self._timeouts).pages():
            found += page.items
            unreadable_count += page.unreadable_count
            if len(unreadable) < MOST_SHAPE_ERRORS:
                unreadable += page.unreadable
        return ListedContainers(tuple(found), tuple(unreadable[:MOST_SHAPE_ERRORS]), unreadable_count)


def per_attempt_timeouts(timeouts: Timeouts) -> Timeouts:
    """Return the timeouts of one attempt at a repeated call, so that an attempt that hangs leaves time for others."""

    def at_most(seconds: float, bound: float | None) -> float:
        return seconds if bound is None else min(seconds, bound)

    return Timeouts(
        total=at_most(20.0, timeouts.total),
        connect=at_most(10.0, timeouts.connect),
        read=at_most(10.0, timeouts.read),
        slot=at_most(20.0, timeouts.slot),
    )


def is_container_of(record: RentalRecord, container: Container) -> bool | None:
    """Return True if a container belongs to a record by its name, False if it does not, None if its name cannot be read.

    The service may alter a name. The record's nonce therefore counts anywhere in the name of a container on the record's
    machine.
    """
    if container.name is None:
        return None
    if is_same_name(record.name, container.name):
        return True
    node_name = record.node_name if container.node_name is None else container.node_name
    return node_name.lower() == record.node_name.lower() and holds_nonce(record.name, container.name)


def still_belongs_to(record: RentalRecord, container: Container) -> bool | None:
    """Return True if the container with a record's id belongs to the record, False if not, None if that is not known."""
    if container.name is not None and container.name == record.shown_name:
        return True
    return is_container_of(record, container)


def check_not_replaced(record: RentalRecord, container: Container) -> None:
    """Raise ContainerGoneError if the container with a record's id does not belong to the record."""
    if still_belongs_to(record, container) is False:
        text = f"the container of {record.name} is gone: its id, {container.id}, now belongs to {container.name}"
        raise ContainerGoneError(text, container_id=container.id, container=None, arrived={}, pending={})


def check_create_answer(record: RentalRecord, container: Container) -> None:
    """Raise UnexpectedResponseError if the answer to a record's create shows another container.

    A name that is cut within its nonce is accepted here, because the answer itself shows that the container is the record's.
    """
    if is_container_of(record, container) is not False:
        return
    if not is_same_name(record.name, container.name, shortest=_SHORTEST_NONCE_OF_ANSWER):
        problem = f"the created container is {container.name} ({container.id}), not {record.name}"
        raise UnexpectedResponseError(problem, status=200, method="POST", path="/v1/rentgpu/containers/")


def matching(record: RentalRecord, listed: ListedContainers) -> list[Container]:
    """Return the containers that belong to a record.

    Raises:
        UnexpectedResponseError: none was found, but an item or a name that cannot be read may be the record's.
    """
    found: list[Container] = []
    nameless: Container | None = None
    for container in listed.containers:
        is_ours = is_container_of(record, container)
        if is_ours:
            found.append(container)
        elif is_ours is None and (
            record.intended_at - _MOST_CLOCK_DIFFERENCE
            <= (container.created_at or record.intended_at)
            <= record.certain_at + _MOST_CLOCK_DIFFERENCE
        ):
            nameless = container
    if not found and listed.unreadable:
        raise listed.unreadable[0]
    if nameless is not None and not found:
        problem = f"container {nameless.id} has no name that can be read, and may be {record.name}"
        raise UnexpectedResponseError(problem, status=200, method="GET", path="/v1/rentgpu/containers/")
    return found
