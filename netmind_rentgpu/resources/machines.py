"""Machines on offer, with their places and prices."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from decimal import Decimal

from netmind_rentgpu.concurrency.turns import ITEMS_PER_TURN, run_in_turns
from netmind_rentgpu.literals import CurrencyName, GPUName, RegionCode
from netmind_rentgpu.models import Machine
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.requests import MachineQuery
from netmind_rentgpu.resources.paths import API
from netmind_rentgpu.settings import DEFAULT, TimeoutOption
from netmind_rentgpu.tables import Table
from netmind_rentgpu.wire.caller import Caller
from netmind_rentgpu.wire.messages import Request

__all__ = ["AsyncMachines"]


class AsyncMachines:
    """`client.machines`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def list(
        self,
        *,
        gpu_names: Iterable[GPUName] | GPUName | None = None,
        region: RegionCode | None = None,
        gpu: int | None = None,
        currency: CurrencyName | None = None,
        min_memory: int | None = None,
        max_memory: int | None = None,
        min_disk: int | None = None,
        max_disk: int | None = None,
        min_price: Decimal | float | None = None,
        max_price: Decimal | float | None = None,
        timeout: TimeoutOption = DEFAULT,
    ) -> list[Machine]:
        """List the machines on offer, in the service's order (`GET /v1/rentgpu/machines`; not paged).

        The client sends every filter, and also applies it to the answer, because the service does not document how it reads
        the filters. The client sends a price bound only if it is a whole number, because the query accepts no other.

        Args:
            gpu_names: the GPUs that will do.
            region: a two-letter code in capitals. A name that the service does not know matches nothing.
            gpu: the least number of GPUs.
            currency: the currency of the prices and of the price bounds; by default the profile's.
            min_memory, max_memory, min_disk, max_disk: bounds in the units that the service lists, on the machine's fields
                that `ServiceProfile.memory_field` and `disk_field` name, which are guesses.
            min_price, max_price: bounds on `Machine.price`. They leave out a machine whose price cannot be read.

        Raises:
            InvalidArgumentError: an argument cannot be sent.
            RentGPUError: any of the client's errors.
        """
        profile = self._caller.profile
        query = MachineQuery(
            currency=profile.currency if currency is None else currency,
            region=region,
            gpu=gpu,
            gpu_names=gpu_names,
            min_memory=min_memory,
            max_memory=max_memory,
            min_disk=min_disk,
            max_disk=max_disk,
            min_price=min_price,
            max_price=max_price,
        )
        request = Request(method="GET", path=f"{API}machines", query=self._caller.codec.query(query))
        listed = await self._caller.many(Machine, request, timeout)
        if listed.unreadable and not listed.items:
            raise listed.unreadable[0]
        return await run_in_turns(_filtered(listed.items, query, profile))


def _filtered(
    machines: Iterable[Machine], query: MachineQuery, profile: ServiceProfile
) -> Generator[None, None, list[Machine]]:
    """Return the machines that meet a query, in their order; yield after every `ITEMS_PER_TURN` machines."""
    kinds = None if query.gpu_names is None else {_normalized(name) for name in query.gpu_names}
    region = None if query.region is None else _normalized(query.region)
    found = Table[Machine]()
    for position, machine in enumerate(machines, 1):
        if (
            (kinds is None or machine.gpu_name is None or _normalized(machine.gpu_name) in kinds)
            and (region is None or machine.region is None or _normalized(machine.region) == region)
            and (query.gpu is None or machine.gpu_count is None or machine.gpu_count >= query.gpu)
            and _within(getattr(machine, profile.memory_field), query.min_memory, query.max_memory)
            and _within(getattr(machine, profile.disk_field), query.min_disk, query.max_disk)
            and _price_within(machine.price, query.min_price, query.max_price)
        ):
            found.append(machine)
        if position % ITEMS_PER_TURN == 0:
            yield
    return found


def _normalized(name: str) -> str:
    """Reduce a name to its letters and digits, because spacing may differ: one documented name holds a blank."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _within(value: float | None, least: float | None, most: float | None) -> bool:
    return value is None or ((least is None or value >= least) and (most is None or value <= most))


def _price_within(price: Decimal | None, lowest: Decimal | None, highest: Decimal | None) -> bool:
    if price is None:
        return lowest is None and highest is None
    return (lowest is None or price >= lowest) and (highest is None or price <= highest)
