"""What is on offer and what is rented, asked for once for all who ask at the same time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import attrs

from netmind_rentgpu.errors import RentGPUError
from netmind_rentgpu.models import Container, Machine
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.resources.machines import AsyncMachines

__all__ = ["Market", "Roll"]

_FRESH = 1.0
_SET_ASIDE = 60.0


@attrs.frozen
class _Refused:
    """That a machine refused so many GPUs."""

    gpus: int
    until: float
    error: RentGPUError


class Market:
    """The machines on offer, and which of them refused lately.

    Attributes:
        claimed: how many GPUs of each node this client has taken.
    """

    def __init__(self, machines: AsyncMachines, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._machines = machines
        self._clock = clock
        self._lock = asyncio.Lock()
        self._listed: dict[str, tuple[float, list[Machine]]] = {}
        self._refused: dict[str, _Refused] = {}
        self.claimed: Counter[str] = Counter()

    async def machines(self, currency: str) -> list[Machine]:
        """List the machines; the answer may be a second old.

        Raises:
            RentGPUError: any of the client's errors.
        """
        async with self._lock:
            asked, machines = self._listed.get(currency, (-_FRESH, []))
            if self._clock() - asked > _FRESH or not machines:
                asked = self._clock()
                machines = await self._machines.list(currency=currency)
                self._listed[currency] = asked, machines
            return machines

    def set_aside(self, node_name: str, gpus: int, error: RentGPUError) -> None:
        """Do not try a machine for a while, for so many GPUs or more."""
        earlier = self.aside().get(node_name, gpus)
        self._refused[node_name] = _Refused(min(gpus, earlier), self._clock() + _SET_ASIDE, error)

    def aside(self) -> dict[str, int]:
        """Return how many GPUs each of some nodes has refused lately."""
        now = self._clock()
        self._refused = {node: refused for node, refused in self._refused.items() if refused.until > now}
        return {node: refused.gpus for node, refused in self._refused.items()}

    def refusal_of(self, node_name: str) -> RentGPUError | None:
        """Return how a node that is set aside has refused."""
        refused = self._refused.get(node_name)
        return None if refused is None else refused.error


class Roll:
    """Who is there: walks over the whole list of containers, each for all who asked before it began."""

    def __init__(self, containers: AsyncContainers, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._containers = containers
        self._clock = clock
        self._lock = asyncio.Lock()
        self._began = -1.0
        self._found: list[Container] = []

    async def call(self) -> list[Container]:
        """Return all containers, as a walk found them that began now or later.

        Raises:
            RentGPUError: the list could not be read, or not to its end.
        """
        asked = self._clock()
        async with self._lock:
            if self._began < asked:
                began = self._clock()
                self._found = [container async for container in self._containers.list()]
                self._began = began
            return self._found
