"""What to rent: a user's needs, the machines that meet them, and in which order to try those. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from itertools import islice
from typing import Any, Final, TypeAlias, get_args

import attrs

from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.literals import GPUName
from netmind_rentgpu.models import Machine
from netmind_rentgpu.profile import ServiceProfile

__all__ = [
    "Offer",
    "OfferKey",
    "Requirements",
    "explain_no_match",
    "hourly_price",
    "is_taken_up",
    "next_offer",
    "ranked",
    "resolved_gpu_names",
]

_HOUR: Final = timedelta(hours=1)
_ANOTHER_GPU, _TOO_DEAR = "another GPU", "too dear"
_SECONDS_IN_AN_HOUR: Final = 3600
DOCUMENTED_GPUS: Final[tuple[str, ...]] = get_args(get_args(GPUName)[0])


@attrs.frozen(kw_only=True)
class Offer:
    """What can be rented, and for how much.

    Attributes:
        machine: where.
        gpus: how many of its GPUs.
        hourly_price: what an hour of all of them costs, in `currency`, as the profile reads the machine's price; None where
            the price cannot be read.
        currency: such as USD.
    """

    machine: Machine
    gpus: int
    hourly_price: Decimal | None
    currency: str


OfferKey: TypeAlias = Callable[[Offer], Any]
"""What offers are sorted by, the lowest first."""


@attrs.frozen(kw_only=True)
class Requirements:
    """What a machine has to have.

    Attributes:
        exclude: none of these nodes.
        gpu_names: any of these, as `resolved_gpu_names` gives them; any at all where it is None.
        max_price: on `Machine.price`.
        min_memory, min_disk: on the fields that the profile names.
        min_cuda: a version, as its numbers.
        labels: all of these.
        priced: its price has to be known.
    """

    exclude: frozenset[str] = frozenset()
    gpu_names: frozenset[str] | None = None
    gpus: int = 1
    regions: frozenset[str] | None = None
    max_price: Decimal | None = None
    min_memory: float | None = None
    min_gpu_memory: float | None = None
    min_disk: float | None = None
    min_cuda: tuple[int, ...] | None = None
    nvlink: bool | None = None
    labels: frozenset[str] = frozenset()
    priced: bool = False

    def first_unmet(self, machine: Machine, profile: ServiceProfile) -> str | None:
        """Return what a machine lacks, in a few words; None where it may do.

        What the service does not tell of a machine is not held against it, apart from its GPU's name and its price.
        """
        if machine.node_name in self.exclude:
            return "being excluded"
        return self._unmet_by_gpus(machine) or self._unmet_by_the_rest(machine, profile)

    def _unmet_by_gpus(self, machine: Machine) -> str | None:
        if self.gpu_names is not None and normalized(machine.gpu_name or "") not in self.gpu_names:
            return _ANOTHER_GPU
        if _below(machine.gpu_count, self.gpus):
            return "too few GPUs"
        if machine.price is None:
            return "no price that can be read" if self.priced or self.max_price is not None else None
        return _TOO_DEAR if self.max_price is not None and machine.price > self.max_price else None

    def _unmet_by_the_rest(self, machine: Machine, profile: ServiceProfile) -> str | None:
        if self.regions is not None and machine.region is not None and normalized(machine.region) not in self.regions:
            return "another region"
        for lack, value, least in (
            ("too little memory", getattr(machine, profile.memory_field), self.min_memory),
            ("too little GPU memory", machine.gpu_memory, self.min_gpu_memory),
            ("too little disk", getattr(machine, profile.disk_field), self.min_disk),
        ):
            if _below(value, least):
                return lack
        if self.min_cuda is not None and _is_older(version(machine.cuda_version), self.min_cuda):
            return "an older CUDA"
        if None not in (machine.nvlink_status, self.nvlink) and machine.nvlink_status != self.nvlink:
            return "NVLink otherwise"
        if self.labels and machine.labels is not None and not self.labels <= {one.casefold() for one in machine.labels}:
            return "other labels"
        return None

    def unknown(self, machine: Machine, profile: ServiceProfile) -> int:
        """Count what is needed and not told of a machine."""
        told = (
            (self.regions, machine.region),
            (self.min_memory, getattr(machine, profile.memory_field)),
            (self.min_gpu_memory, machine.gpu_memory),
            (self.min_disk, getattr(machine, profile.disk_field)),
            (self.min_cuda, version(machine.cuda_version) or None if self.min_cuda else None),
            (self.nvlink, machine.nvlink_status),
            (self.labels or None, machine.labels),
        )
        return [machine.gpu_count, *(value for need, value in told if need is not None)].count(None)


def normalized(name: str) -> str:
    """Reduce a name to what tells it from others, however it is spaced and spelled."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def version(text: str | None) -> tuple[int, ...]:
    """Return the numbers of a version; none where there are none."""
    return tuple(int(number[:9]) for number in re.findall(r"[0-9]+", text or ""))


def resolved_gpu_names(wanted: Iterable[str], on_offer: Iterable[str]) -> frozenset[str]:
    """Return the reduced names of GPUs that a user means: whole ones, or parts that only one GPU's name has.

    Args:
        on_offer: the names that the service lists, beside those that it documents.

    Raises:
        InvalidArgumentError: a part of several names.
    """
    known = {normalized(name): name for name in (*on_offer, *DOCUMENTED_GPUS)}
    resolved: set[str] = set()
    for text in wanted:
        part = normalized(text)
        found = [name for name in known if part in _parts(known[name])] if part not in known else [part]
        if len(found) > 1:
            names = ", ".join(sorted(known[name] for name in found))
            raise InvalidArgumentError(
                "gpu_name", f"{text!r} may mean any of {names}; give one's whole name, or several"
            )
        resolved.add(found[0] if found else part)
    return frozenset(resolved)


def _parts(name: str) -> set[str]:
    """Return every run of a name's words, reduced: "rtx4090" is one of NVIDIA_GeForce_RTX_4090, "409" is none."""
    words = re.findall(r"[a-z0-9]+", name.casefold())
    return {"".join(words[first:last]) for first in range(len(words)) for last in range(first + 1, len(words) + 1)}


def hourly_price(machine: Machine, gpus: int, profile: ServiceProfile) -> Decimal | None:
    """Return what an hour of so many of a machine's GPUs costs, as the profile reads its price."""
    if machine.price is None:
        return None
    price = machine.price * (gpus if profile.price_basis == "gpu" else 1)
    if profile.price_period == _HOUR:
        return price
    return price * _SECONDS_IN_AN_HOUR / Decimal(str(profile.price_period.total_seconds()))


def ranked(
    machines: Iterable[Machine],
    requirements: Requirements,
    profile: ServiceProfile,
    currency: str,
    key: OfferKey | None = None,
) -> list[Offer]:
    """Return the offers that meet the requirements, the best first: by `key`, if there is one.

    Else offers with a price above 0 come first, then those of unknown price, then free ones, because a price of 0 may be a
    mistake of the service. Within each group come first the offers with the fewest unstated fields, then the cheapest, then
    the most reliable.

    Raises:
        InvalidArgumentError: `key` fails for an offer.
    """
    offers = [
        Offer(
            machine=machine,
            gpus=requirements.gpus,
            hourly_price=hourly_price(machine, requirements.gpus, profile),
            currency=currency,
        )
        for machine in machines
        if requirements.first_unmet(machine, profile) is None
    ]

    def usual(offer: Offer) -> tuple[Any, ...]:
        machine, price = offer.machine, offer.hourly_price
        return (
            1 if price is None else 0 if price else 2,
            requirements.unknown(machine, profile),
            price or 0,
            -(machine.online_rate or 0),
            machine.node_name,
        )

    offers.sort(key=usual)
    if key is not None:
        try:
            offers.sort(key=key)
        except Exception as error:
            raise InvalidArgumentError("key", f"cannot be used to sort offers: {error}") from error
    return offers


def next_offer(
    offers: Sequence[Offer],
    *,
    tried: Collection[str],
    excluded: Mapping[str, int],
    reserved: Mapping[str, int],
    failed_on: Collection[str] = frozenset(),
    taken_up: int = 0,
) -> Offer | None:
    """Return the offer to try next; None where there is none.

    Args:
        tried: the nodes that this rental has tried.
        excluded: how many GPUs each of some nodes has refused lately.
        reserved: how many GPUs of each node this client has taken, which the listing may not know yet. A machine that seems
            to be taken up by those comes after the others.
        failed_on: the nodes that come last.
        taken_up: how many of the first are known to be so.
    """

    def may_be_tried(offer: Offer) -> bool:
        node = offer.machine.node_name
        return node not in tried and offer.gpus < excluded.get(node, offer.gpus + 1)

    for offer in islice(offers, taken_up, None):
        if not is_taken_up(offer, reserved) and may_be_tried(offer) and offer.machine.node_name not in failed_on:
            return offer

    def how_late(offer: Offer) -> tuple[bool, bool]:
        return offer.machine.node_name in failed_on, is_taken_up(offer, reserved)

    return min(filter(may_be_tried, offers), key=how_late, default=None)


def is_taken_up(offer: Offer, reserved: Mapping[str, int]) -> bool:
    """Tell whether a machine has not as many GPUs left as are wanted of it, by what this client has taken."""
    machine = offer.machine
    return machine.gpu_count is not None and reserved.get(machine.node_name, 0) + offer.gpus > machine.gpu_count


def explain_no_match(machines: Iterable[Machine], requirements: Requirements, profile: ServiceProfile) -> str:
    """Say why no machine meets the needs."""
    lacking: dict[str, list[Machine]] = {}
    for machine in machines:
        lacking.setdefault(requirements.first_unmet(machine, profile) or "", []).append(machine)
    total = sum(len(those) for those in lacking.values())
    if not total:
        return "no machine is on offer"
    by_count = sorted(lacking.items(), key=lambda item: -len(item[1]))
    counts = ", ".join(f"{len(those)} for {lack}" for lack, those in by_count if lack)
    return f"none of the {total} machines on offer will do: {counts}{_at_best(lacking, total)}"


def _at_best(lacking: Mapping[str, list[Machine]], total: int) -> str:
    """Say what there is instead, where a name may be misspelled, or more money may help."""
    others, dear = lacking.get(_ANOTHER_GPU, []), lacking.get(_TOO_DEAR, [])
    if len(others) == total:
        return f"; there are {', '.join(sorted({other.gpu_name or 'unknown ones' for other in others}))}"
    prices = [machine.price for machine in dear if machine.price is not None]
    return f"; the lowest price of those is {min(prices)}" if prices else ""


def _is_older(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Compare versions, of which one may be given more precisely; what is not known is not older."""
    length = max(len(one), len(other))
    return bool(one) and one + (0,) * (length - len(one)) < other + (0,) * (length - len(other))


def _below(value: float | None, least: float | None) -> bool:
    return value is not None and least is not None and value < least
