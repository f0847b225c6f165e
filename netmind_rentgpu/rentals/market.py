"""What is on offer and what is rented, asked for once for all who ask at the same time."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TypeAlias

import attrs

from netmind_rentgpu.concurrency.single_flight import SingleFlight
from netmind_rentgpu.errors import MachineRefusal, NoMachineError, RentGPUError, UnexpectedResponseError
from netmind_rentgpu.models import Container, Machine
from netmind_rentgpu.rentals.names import is_same_name
from netmind_rentgpu.rentals.needs import Offer, is_taken_up, next_offer
from netmind_rentgpu.rentals.records import RentalRecord
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.resources.machines import AsyncMachines
from netmind_rentgpu.settings import Timeouts

__all__ = ["Market", "Ranking", "Roll", "matching", "patience"]

_FRESH = 1.0
_SET_ASIDE = 60.0
_Walk: TypeAlias = tuple[list[Container], list[UnexpectedResponseError]]
_CLOCKS_DIFFER = timedelta(minutes=10)


@attrs.frozen
class _Refused:
    """That a machine refused so many GPUs."""

    gpus: int
    until: float
    error: RentGPUError


@attrs.define(eq=False)
class Ranking:
    """Offers, the best first, from which all who wish the same take one after the other.

    Attributes:
        taken_up: how many of the first are taken up, since the market had something given back for the last time.
        given_back: how often that was.
    """

    offers: Sequence[Offer]
    taken_up: int = 0
    given_back: int = 0


class Market:
    """The machines on offer, which of them refused lately, and what of them this client has taken."""

    def __init__(self, machines: AsyncMachines, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._machines = machines
        self._clock = clock
        self._listed: defaultdict[str, SingleFlight[list[Machine]]] = defaultdict(
            lambda: SingleFlight(fresh=_FRESH, clock=clock)
        )
        self._refused: dict[str, _Refused] = {}
        self._claimed: Counter[str] = Counter()
        # How often something was given back: as long as nothing is, what is taken up stays so.
        self._given_back = 0

    async def machines(self, currency: str) -> list[Machine]:
        """List the machines; the answer may be a second old.

        Raises:
            RentGPUError: any of the client's errors.
        """
        return await self._listed[currency].get(lambda: self._machines.list(currency=currency))

    def set_aside(self, node_name: str, gpus: int, error: RentGPUError) -> None:
        """Do not try a machine for a while, for so many GPUs or more."""
        earlier = self.aside().get(node_name, gpus)
        self._refused[node_name] = _Refused(min(gpus, earlier), self._clock() + _SET_ASIDE, error)

    def aside(self) -> dict[str, int]:
        """Return how many GPUs each of some nodes has refused lately."""
        now = self._clock()
        self._refused = {node: refused for node, refused in self._refused.items() if refused.until > now}
        return {node: refused.gpus for node, refused in self._refused.items()}

    def claim(self, node_name: str, gpus: int) -> None:
        """Take in that so many GPUs of a node are taken, or are about to be; the listing may not know that yet."""
        self._claimed[node_name] += gpus

    def give_back(self, node_name: str, gpus: int) -> None:
        """Take in that they are not, or not any more."""
        self._claimed[node_name] -= gpus
        self._given_back += 1

    def next_offer(self, ranking: Ranking, tried: Collection[str]) -> Offer | None:
        """Return the offer to try next; None where there is none.

        Args:
            tried: the nodes that were tried already.
        """
        if ranking.given_back != self._given_back:
            ranking.taken_up, ranking.given_back = 0, self._given_back
        offers, taken_up = ranking.offers, ranking.taken_up
        while taken_up < len(offers) and is_taken_up(offers[taken_up], self._claimed):
            taken_up += 1
        ranking.taken_up = taken_up
        return next_offer(offers, tried=tried, aside=self.aside(), claimed=self._claimed, taken_up=taken_up)

    def none(self, offers: Sequence[Offer], refusals: Mapping[str, MachineRefusal]) -> NoMachineError:
        """Return an error that says why no machine could be had, also by those that were refused to others a moment ago.

        Args:
            refusals: of those that were tried, by node.
        """
        all_of_them = dict(refusals)
        for offer in offers:
            node = offer.machine.node_name
            if node in self._refused:
                all_of_them.setdefault(node, MachineRefusal(machine=offer.machine, error=self._refused[node].error))
        shown = "; ".join(f"{node}: {refusal.error}" for node, refusal in list(all_of_them.items())[:3])
        more = f"; and {len(all_of_them) - 3} more" if len(all_of_them) > 3 else ""
        return NoMachineError(
            f"none of {len(offers)} machines that would do could be had; {len(all_of_them)} have refused: {shown}{more}",
            refusals=tuple(all_of_them.values()),
        )


class Roll:
    """Who is there: walks over the whole list of containers, each for all who asked before it began."""

    def __init__(
        self, containers: AsyncContainers, timeouts: Timeouts, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepare.

        Args:
            timeouts: the client's own.
        """
        self._containers = containers
        self._each = patience(timeouts)
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


def patience(timeouts: Timeouts) -> Timeouts:
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
