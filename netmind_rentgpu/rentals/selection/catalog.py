"""The machines on offer, which of them refused lately, and what this client reserved of them."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import attrs

from netmind_rentgpu.concurrency.single_flight import SingleFlight
from netmind_rentgpu.errors import MachineRefusal, NoMachineError, RentGPUError
from netmind_rentgpu.models import Machine
from netmind_rentgpu.rentals.selection.offers import Offer, is_taken_up, next_offer
from netmind_rentgpu.resources.machines import AsyncMachines

__all__ = ["MachineCatalog", "OfferQueue"]

_FRESH = 1.0
_EXCLUDED_FOR = 60.0


@attrs.frozen
class _Refused:
    """That a machine refused so many GPUs."""

    gpus: int
    until: float
    error: RentGPUError


@attrs.define(eq=False)
class OfferQueue:
    """Offers, the best first, from which all who wish the same take one after the other.

    Attributes:
        taken_up: how many of the first are taken up, since the catalog released something for the last time.
        released: how often that was.
    """

    offers: Sequence[Offer]
    taken_up: int = 0
    released: int = 0


class MachineCatalog:
    """The machines on offer, which of them refused lately, and what of them this client has taken."""

    def __init__(self, machines: AsyncMachines, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._machines = machines
        self._clock = clock
        self._listed: defaultdict[str, SingleFlight[list[Machine]]] = defaultdict(
            lambda: SingleFlight(fresh=_FRESH, clock=clock)
        )
        self._refused: dict[str, _Refused] = {}
        self._reserved: Counter[str] = Counter()
        # How often something was given back: as long as nothing is, what is taken up stays so.
        self._released = 0

    async def machines(self, currency: str) -> list[Machine]:
        """List the machines; the answer may be a second old.

        Raises:
            RentGPUError: any of the client's errors.
        """
        return await self._listed[currency].get(lambda: self._machines.list(currency=currency))

    def exclude(self, node_name: str, gpus: int, error: RentGPUError) -> None:
        """Do not try a machine for a while, for so many GPUs or more."""
        earlier = self.excluded().get(node_name, gpus)
        self._refused[node_name] = _Refused(min(gpus, earlier), self._clock() + _EXCLUDED_FOR, error)

    def excluded(self) -> dict[str, int]:
        """Return how many GPUs each of some nodes has refused lately."""
        now = self._clock()
        self._refused = {node: refused for node, refused in self._refused.items() if refused.until > now}
        return {node: refused.gpus for node, refused in self._refused.items()}

    def reserve(self, node_name: str, gpus: int) -> None:
        """Take in that so many GPUs of a node are taken, or are about to be; the listing may not know that yet."""
        self._reserved[node_name] += gpus

    def release(self, node_name: str, gpus: int) -> None:
        """Take in that they are not, or not any more."""
        self._reserved[node_name] -= gpus
        self._released += 1

    def next_offer(
        self, queue: OfferQueue, tried: Collection[str], failed_on: Collection[str] = frozenset()
    ) -> Offer | None:
        """Return the offer to try next; None where there is none.

        Args:
            tried: the nodes that were tried already.
            failed_on: the nodes that come last, because they lately failed to start the image.
        """
        if queue.released != self._released:
            queue.taken_up, queue.released = 0, self._released
        offers, taken_up = queue.offers, queue.taken_up
        while taken_up < len(offers) and is_taken_up(offers[taken_up], self._reserved):
            taken_up += 1
        queue.taken_up = taken_up
        return next_offer(
            offers,
            tried=tried,
            excluded=self.excluded(),
            reserved=self._reserved,
            failed_on=failed_on,
            taken_up=taken_up,
        )

    def no_machine_error(self, offers: Sequence[Offer], refusals: Mapping[str, MachineRefusal]) -> NoMachineError:
        """Return an error that says why no machine could be had, also by those that were refused to others a moment ago.

        Args:
            refusals: of those that were tried, by node.
        """
        all_of_them = dict(refusals)
        for offer in offers:
            node = offer.machine.node_name
            if node in self._refused:
                all_of_them.setdefault(node, MachineRefusal(machine=offer.machine, error=self._refused[node].error))
        shown = "; ".join(map(str, list(all_of_them.values())[:3]))
        more = f"; and {len(all_of_them) - 3} more" if len(all_of_them) > 3 else ""
        failed = " or did not start" if any(one.container_id is not None for one in all_of_them.values()) else ""
        return NoMachineError(
            f"none of {len(offers)} machines that would do could be had; {len(all_of_them)} have refused{failed}:"
            f" {shown}{more}",
            refusals=tuple(all_of_them.values()),
        )
