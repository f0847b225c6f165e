"""Machines on offer, with their places and prices."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from decimal import Decimal
from typing import Final, get_args

import attrs

from netmind_rentgpu import arguments
from netmind_rentgpu.concurrency.turns import ITEMS_PER_TURN, run_in_turns
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.gpu_names import DOCUMENTED_GPUS, normalized, resolved_gpu_names
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

_REGIONS: Final[tuple[str, ...]] = get_args(get_args(RegionCode)[0])
_CURRENCIES: Final[tuple[str, ...]] = get_args(get_args(CurrencyName)[0])


class AsyncMachines:
    """`client.machines`: the machines on offer."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def list(
        self,
        *,
        gpu_names: Iterable[GPUName] | GPUName | None = None,
        region: RegionCode | Iterable[RegionCode] | None = None,
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
        the filters. The client sends a price bound only if it is a whole number, because the query accepts no other, and a
        region only if it is the only one. If `gpu_names` or `region` has a name that the service does not document, the
        client lists all machines, and applies all filters itself.

        Args:
            gpu_names: one or several GPUs that will do: documented names, or any unambiguous parts of names, as in `rent`.
            region: one or several two-letter codes, in any case.
            gpu: the least number of GPUs.
            currency: the currency of the prices and of the price bounds; by default the profile's.
            min_memory, max_memory, min_disk, max_disk: bounds in the units that the service lists, on the machine's fields
                that `ServiceProfile.memory_field` and `disk_field` name, which are guesses.
            min_price, max_price: bounds on `Machine.price`. They leave out a machine whose price cannot be read.

        Raises:
            InvalidArgumentError: an argument cannot be sent; a name in `gpu_names` may mean several GPUs; or a name in
                `gpu_names` or `region` is neither documented nor on offer, and the error says what is.
            RentGPUError: any of the client's errors.
        """
        profile = self._caller.profile
        kinds = None if gpu_names is None else arguments.names("gpu_names", gpu_names)
        regions = None if region is None else [_region_code(name) for name in arguments.texts("region", region)]
        if regions == []:
            raise InvalidArgumentError("region", "names nothing; leave it out for no filter")
        query = MachineQuery(
            currency=profile.currency if currency is None else _currency_name(currency),
            region=regions[0] if regions is not None and len(regions) == 1 else None,
            gpu=gpu,
            gpu_names=kinds,
            min_memory=min_memory,
            max_memory=max_memory,
            min_disk=min_disk,
            max_disk=max_disk,
            min_price=min_price,
            max_price=max_price,
        )
        filters = _Filters(
            query=query,
            gpu_names=None if kinds is None else frozenset(map(normalized, kinds)),
            regions=None if regions is None else frozenset(map(normalized, regions)),
        )
        if set(kinds or ()) <= set(DOCUMENTED_GPUS) and set(regions or ()) <= set(_REGIONS):
            machines = await self._list(query, timeout)
        else:
            machines = await self._list(MachineQuery(currency=query.currency), timeout)
            _check_regions(regions or (), machines)
            on_offer = [machine.gpu_name for machine in machines if machine.gpu_name is not None]
            if kinds is not None:
                names = resolved_gpu_names(kinds, on_offer, argument="gpu_names")
                filters = attrs.evolve(filters, gpu_names=names)
        return await run_in_turns(_filtered(machines, filters, profile))

    async def _list(self, query: MachineQuery, timeout: TimeoutOption) -> Sequence[Machine]:
        request = Request(method="GET", path=f"{API}machines", query=self._caller.codec.query(query))
        listed = await self._caller.many(Machine, request, timeout)
        if listed.unreadable and not listed.items:
            raise listed.unreadable[0]
        return listed.items


@attrs.frozen
class _Filters:
    """The filters that the client applies to the answer.

    Attributes:
        query: its numbers and prices.
        gpu_names, regions: normalized; None for no filter.
    """

    query: MachineQuery
    gpu_names: frozenset[str] | None
    regions: frozenset[str] | None


def _check_regions(regions: Iterable[str], machines: Iterable[Machine]) -> None:
    on_offer = {machine.region for machine in machines if machine.region is not None}
    known = {normalized(name) for name in (*on_offer, *_REGIONS)}
    for region in regions:
        if normalized(region) not in known:
            there = ", ".join(sorted(on_offer)) or "none"
            raise InvalidArgumentError("region", f"no machine is in {region!r}; the regions on offer are {there}")


def _region_code(region: str) -> str:
    """Return a documented code for any spelling of it; any other text as it is, because the service may have added it."""
    return next((code for code in _REGIONS if normalized(code) == normalized(region)), region)


def _currency_name(currency: str) -> str:
    return next((name for name in _CURRENCIES if name.casefold() == str(currency).casefold()), currency)


def _filtered(
    machines: Iterable[Machine], filters: _Filters, profile: ServiceProfile
) -> Generator[None, None, list[Machine]]:
    """Return the machines that meet the filters, in their order; yield after every `ITEMS_PER_TURN` machines."""
    query, kinds, regions = filters.query, filters.gpu_names, filters.regions
    found = Table[Machine]()
    for position, machine in enumerate(machines, 1):
        if (
            (kinds is None or machine.gpu_name is None or normalized(machine.gpu_name) in kinds)
            and (regions is None or machine.region is None or normalized(machine.region) in regions)
            and (query.gpu is None or machine.gpu_count is None or machine.gpu_count >= query.gpu)
            and _within(getattr(machine, profile.memory_field), query.min_memory, query.max_memory)
            and _within(getattr(machine, profile.disk_field), query.min_disk, query.max_disk)
            and _price_within(machine.price, query.min_price, query.max_price)
        ):
            found.append(machine)
        if position % ITEMS_PER_TURN == 0:
            yield
    return found


def _within(value: float | None, least: float | None, most: float | None) -> bool:
    return value is None or ((least is None or value >= least) and (most is None or value <= most))


def _price_within(price: Decimal | None, lowest: Decimal | None, highest: Decimal | None) -> bool:
    if price is None:
        return lowest is None and highest is None
    return (lowest is None or price >= lowest) and (highest is None or price <= highest)
