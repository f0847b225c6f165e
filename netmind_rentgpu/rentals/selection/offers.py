"""The requirements of a rental, the offers that meet them, and the order in which to try the offers. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from itertools import islice
from typing import Any, Final, TypeAlias

import attrs

from netmind_rentgpu.amounts import in_own_context
from netmind_rentgpu.conversion import plain_values
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.gpu_names import normalized
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
]

_HOUR: Final = timedelta(hours=1)
_ANOTHER_GPU, _TOO_EXPENSIVE = "another GPU", "a price above max_price"
_SECONDS_IN_AN_HOUR: Final = 3600


@attrs.frozen(kw_only=True)
class Offer:
    """A number of a machine's GPUs that can be rented, with their price.

    Attributes:
        machine: the machine.
        gpus: the number of GPUs.
        hourly_price: the price of an hour of all these GPUs, in `currency`, as the profile reads the machine's price; None
            if the price cannot be read.
        currency: the currency, such as USD.
    """

    machine: Machine
    gpus: int
    hourly_price: Decimal | None
    currency: str

    def to_dict(self, *, secrets: bool = False, json: bool = False) -> dict[str, Any]:
        """Return the offer's and the machine's fields as plain values, as for a row of a DataFrame.

        Args:
            secrets: without effect, because an offer has none.
            json: True to return only what JSON can hold: prices become texts.
        """
        own = {"gpus": self.gpus, "hourly_price": self.hourly_price, "currency": self.currency}
        return plain_values(own, json=json) | self.machine.to_dict(secrets=secrets, json=json)


OfferKey: TypeAlias = Callable[[Offer], Any]
"""A function that returns the value by which an offer is sorted; the lowest comes first."""


@attrs.frozen(kw_only=True)
class Requirements:
    """The requirements for a machine; None is no requirement.

    Attributes:
        exclude: the nodes that are not rented.
        gpu_names: the GPUs, as `resolved_gpu_names` returns them; the machine has to have any of them.
        max_price: the upper bound on `Machine.price`.
        min_memory, min_disk: the lower bounds on the fields that the profile names.
        min_cuda: the numbers of the version.
        labels: the labels, in lower case; the machine has to have all of them.
        priced: True if the machine's price has to be known.
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
        """Return the first reason why a machine will not do, as words that follow "it has"; None if there is none.

        A field that the service does not state counts as met, apart from the GPU's name and the price.
        """
        if machine.node_name in self.exclude:
            return "an excluded name"
        return self._unmet_by_gpus_or_price(machine) or self._unmet_by_the_rest(machine, profile)

    def _unmet_by_gpus_or_price(self, machine: Machine) -> str | None:
        if self.gpu_names is not None and normalized(machine.gpu_name or "") not in self.gpu_names:
            return _ANOTHER_GPU
        if _below(machine.gpu_count, self.gpus):
            return "too few GPUs"
        if machine.price is None:
            return "no price that can be read" if self.priced or self.max_price is not None else None
        return _TOO_EXPENSIVE if self.max_price is not None and machine.price > self.max_price else None

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
            return "another NVLink setting"
        if (
            self.labels
            and machine.labels is not None
            and not self.labels <= {label.casefold() for label in machine.labels}
        ):
            return "other labels"
        return None

    def unknown(self, machine: Machine, profile: ServiceProfile) -> int:
        """Count the required fields, the number of GPUs among them, that the service does not state for a machine."""
        stated = (
            (self.regions, machine.region),
            (self.min_memory, getattr(machine, profile.memory_field)),
            (self.min_gpu_memory, machine.gpu_memory),
            (self.min_disk, getattr(machine, profile.disk_field)),
            (self.min_cuda, version(machine.cuda_version) or None if self.min_cuda else None),
            (self.nvlink, machine.nvlink_status),
            (self.labels or None, machine.labels),
        )
        return [machine.gpu_count, *(value for need, value in stated if need is not None)].count(None)


def version(text: str | None) -> tuple[int, ...]:
    """Return the numbers in the text of a version."""
    return tuple(int(number[:9]) for number in re.findall(r"[0-9]+", text or ""))


@in_own_context
def hourly_price(machine: Machine, gpus: int, profile: ServiceProfile) -> Decimal | None:
    """Return the price of an hour of a number of a machine's GPUs, as the profile reads the machine's price."""
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

    Otherwise, offers with a price above 0 come first, then offers of unknown price, then free offers, because a price of 0
    may be a mistake of the service. Each group begins with the offers with the fewest unstated fields, then the cheapest,
    then the most reliable.

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

    def default_key(offer: Offer) -> tuple[Any, ...]:
        machine, price = offer.machine, offer.hourly_price
        return (
            1 if price is None else 0 if price else 2,
            requirements.unknown(machine, profile),
            price or 0,
            -(machine.online_rate or 0),
            machine.node_name,
        )

    offers.sort(key=default_key)
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
    """Return the offer to try next; None if no offer is left.

    Args:
        tried: the nodes that this rental has tried.
        excluded: the excluded nodes, each with the smallest number of GPUs that it has refused.
        reserved: the number of GPUs of each node that this client has reserved. The listing may not show them as rented yet,
            so a machine that seems to have too few GPUs left comes after the others.
        failed_on: the nodes that come last.
        taken_up: the number of offers at the front that are known to need more GPUs than their machines have left.
    """

    def may_be_tried(offer: Offer) -> bool:
        node = offer.machine.node_name
        return node not in tried and offer.gpus < excluded.get(node, offer.gpus + 1)

    for offer in islice(offers, taken_up, None):
        if not is_taken_up(offer, reserved) and may_be_tried(offer) and offer.machine.node_name not in failed_on:
            return offer

    def drawbacks(offer: Offer) -> tuple[bool, bool]:
        return offer.machine.node_name in failed_on, is_taken_up(offer, reserved)

    return min(filter(may_be_tried, offers), key=drawbacks, default=None)


def is_taken_up(offer: Offer, reserved: Mapping[str, int]) -> bool:
    """Return True if an offer needs more GPUs than its machine has left after this client's reservations."""
    machine = offer.machine
    return machine.gpu_count is not None and reserved.get(machine.node_name, 0) + offer.gpus > machine.gpu_count


def explain_no_match(machines: Iterable[Machine], requirements: Requirements, profile: ServiceProfile) -> str:
    """Return a text that says why no machine meets the requirements."""
    by_reason: dict[str, list[Machine]] = {}
    for machine in machines:
        by_reason.setdefault(requirements.first_unmet(machine, profile) or "", []).append(machine)
    total = sum(len(group) for group in by_reason.values())
    if not total:
        return "no machine is on offer"
    by_count = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    counts = ", ".join(
        f"{len(group)} {'has' if len(group) == 1 else 'have'} {reason}" for reason, group in by_count if reason
    )
    return f"none of the {total} machines on offer will do: {counts}{_alternatives(by_reason, total)}"


def _alternatives(by_reason: Mapping[str, list[Machine]], total: int) -> str:
    """Return a hint for the user: the GPUs on offer if none is a wanted one, else the lowest price above max_price."""
    others, expensive = by_reason.get(_ANOTHER_GPU, []), by_reason.get(_TOO_EXPENSIVE, [])
    if len(others) == total:
        return f"; the GPUs on offer are {', '.join(sorted({other.gpu_name or 'unknown ones' for other in others}))}"
    prices = [machine.price for machine in expensive if machine.price is not None]
    return f"; the lowest of these prices is {min(prices)}" if prices else ""


def _is_older(stated: tuple[int, ...], least: tuple[int, ...]) -> bool:
    """Return True if a stated version is older than the least. Missing numbers are 0; an unknown version is not older."""
    length = max(len(stated), len(least))
    return bool(stated) and stated + (0,) * (length - len(stated)) < least + (0,) * (length - len(least))


def _below(value: float | None, least: float | None) -> bool:
    return value is not None and least is not None and value < least
