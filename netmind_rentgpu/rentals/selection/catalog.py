"""The machines on offer, with their recent refusals and this client's reservations."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import attrs

from netmind_rentgpu.concurrency.single_flight import SingleFlight
from netmind_rentgpu.errors import MachineRefusal, NoMachineError, RentGPUError
from netmind_rentgpu.models import Machine
from netmind_rentgpu.rentals.selection.offers import Offer, is_taken_up, next_offer
from netmind_rentgpu.rentals.selection.stock import StockWatch
from netmind_rentgpu.resources.machines import AsyncMachines
from netmind_rentgpu.wire.retry import may_have_acted

__all__ = ["MachineCatalog", "OfferQueue"]

# In seconds.
_FRESH = 1.0
_EXCLUDED_FOR = 60.0
_MOST_SHOWN = 3


@attrs.frozen
class _Refused:
    """A machine's refusal of a create.

    Attributes:
        gpus: the smallest number of GPUs that the machine has refused.
        until: the time on the catalog's clock, in seconds, until which the machine is excluded.
    """

    gpus: int
    until: float
    error: RentGPUError


@attrs.define(eq=False)
class OfferQueue:
    """Offers, the best first, which all rentals with the same request share.

    Attributes:
        taken_up: the number of offers at the front that need more GPUs than their machines have left. It is out of date once
            the catalog has released GPUs again.
        released: the catalog's number of releases that `taken_up` goes with.
    """

    offers: Sequence[Offer]
    taken_up: int = 0
    released: int = 0


class MachineCatalog:
    """The machines on offer, with their recent refusals and this client's reservations."""

    def __init__(self, machines: AsyncMachines, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._machines = machines
        self._clock = clock
        self._listed: defaultdict[str, SingleFlight[list[Machine]]] = defaultdict(
            lambda: SingleFlight(fresh=_FRESH, clock=clock)
        )
        self._refused: dict[str, _Refused] = {}
        self._reserved: Counter[str] = Counter()
        self._stock = StockWatch(self._list_anew)
        # The number of releases. Until the next release no machine gets GPUs back, so each `taken_up` stays true.
        self._released = 0

    async def machines(self, currency: str) -> list[Machine]:
        """List the machines; the list may be a second old.

        Raises:
            RentGPUError: any of the client's errors.
        """
        return await self._listed[currency].get(lambda: self._machines.list(currency=currency))

    async def next_machines(self, currency: str) -> list[Machine]:
        """Wait for the next list of the machines, which all rentals that wait for stock share.

        Raises:
            RentGPUError: any of the client's errors that a retry would not cure.
        """
        return await self._stock.next_list(currency)

    async def _list_anew(self, currency: str) -> list[Machine]:
        self._listed[currency].forget()
        return await self.machines(currency)

    def exclude(self, node_name: str, gpus: int, error: RentGPUError) -> None:
        """Exclude a node for a minute from offers of as many GPUs as it has refused, or more."""
        earlier = self.excluded().get(node_name, gpus)
        self._refused[node_name] = _Refused(min(gpus, earlier), self._clock() + _EXCLUDED_FOR, error)

    def excluded(self) -> dict[str, int]:
        """Return the excluded nodes, each with the smallest number of GPUs that it has refused."""
        now = self._clock()
        self._refused = {node: refused for node, refused in self._refused.items() if refused.until > now}
        return {node: refused.gpus for node, refused in self._refused.items()}

    def reserve(self, node_name: str, gpus: int) -> None:
        """Reserve GPUs of a node, because the listing may not show yet that this client rents them."""
        self._reserved[node_name] += gpus

    def release(self, node_name: str, gpus: int) -> None:
        """Release reserved GPUs of a node."""
        self._reserved[node_name] -= gpus
        self._released += 1

    def next_offer(
        self, queue: OfferQueue, tried: Collection[str], failed_on: Collection[str] = frozenset()
    ) -> Offer | None:
        """Return the offer to try next; None if no offer is left.

        Args:
            tried: the nodes that this rental has tried.
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
        """Return an error that says why no machine could be rented, with the recent refusals of other rentals, too.

        Args:
            refusals: the refusals of the machines that this rental has tried, by node.
        """
        by_node = dict(refusals)
        for offer in offers:
            node = offer.machine.node_name
            if node in self._refused:
                by_node.setdefault(node, MachineRefusal(machine=offer.machine, error=self._refused[node].error))
        shown = "; ".join(map(str, list(by_node.values())[:_MOST_SHOWN]))
        more = f"; and {len(by_node) - _MOST_SHOWN} more" if len(by_node) > _MOST_SHOWN else ""
        one = "the only machine that meets the requirements could not be rented"
        none = f"none of the {len(offers)} machines that meet the requirements could be rented"
        return NoMachineError(
            f"{one if len(offers) == 1 else none}; {_counted(by_node.values())}: {shown}{more}",
            refusals=tuple(by_node.values()),
        )


def _counted(refusals: Collection[MachineRefusal]) -> str:
    """Return how many machines have refused, have given no clear answer, and did not start."""
    unstarted = sum(refusal.container_id is not None for refusal in refusals)
    unclear = sum(refusal.container_id is None and may_have_acted(refusal.error) for refusal in refusals)
    refused = len(refusals) - unstarted - unclear
    counts = [
        (refused, f"{refused} {'has' if refused == 1 else 'have'} refused"),
        (unclear, f"{unclear} gave no clear answer"),
        (unstarted, f"{unstarted} did not start"),
    ]
    return ", ".join(text for count, text in counts if count) or "none was asked"
