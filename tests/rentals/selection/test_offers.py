"""Choice of a machine: requirements, order of the offers, prices, and the reason why no machine will do."""

from __future__ import annotations

import itertools
import random
import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.gpu_names import DOCUMENTED_GPUS, resolved_gpu_names
from netmind_rentgpu.models import Machine
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.rentals.selection.offers import (
    Offer,
    Requirements,
    explain_no_match,
    hourly_price,
    next_offer,
    ranked,
)

PROFILE = ServiceProfile()


# Requirements.


def machine(name: str = "n", price: str | None = "1", **fields: Any) -> Machine:
    """Return a machine that states all its fields."""
    stated: dict[str, Any] = {
        "gpu_name": "NVIDIA_GeForce_RTX_4090",
        "gpu_count": 8,
        "gpu_memory": 24,
        "region": "US",
        "memory_total": 256,
        "disk_total": 1000,
        "cuda_version": "12.4",
        "nvlink_status": False,
        "labels": ("Secure", "fast"),
        "online_rate": 0.9,
    }
    return Machine(node_name=name, price=None if price is None else Decimal(price), **(stated | fields))


MET: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"price": None, "gpu_name": None}),
    ({"gpu_names": frozenset({"nvidiageforcertx4090"})}, {}),
    ({"gpu_names": frozenset({"nvidiageforcertx4090"})}, {"gpu_name": "nvidia geforce-rtx 4090"}),
    ({"gpu_names": frozenset({"h100", "nvidiageforcertx4090"})}, {}),
    ({"gpus": 8}, {}),
    ({"gpus": 8}, {"gpu_count": 8.0}),
    ({"gpus": 12}, {"gpu_count": None}),
    ({"max_price": Decimal(1)}, {}),
    ({"max_price": Decimal("1.00")}, {"price": Decimal("0.9999")}),
    ({"max_price": Decimal(0)}, {"price": Decimal(0)}),
    ({"priced": True}, {}),
    ({"priced": True}, {"price": Decimal(0)}),
    ({"regions": frozenset({"us", "jp"})}, {}),
    ({"regions": frozenset({"us"})}, {"region": "us"}),
    ({"regions": frozenset({"us"})}, {"region": None}),
    ({"min_memory": 256.0}, {}),
    ({"min_memory": 256.0}, {"memory_total": None}),
    ({"min_gpu_memory": 24.0}, {}),
    ({"min_gpu_memory": 24.0}, {"gpu_memory": None}),
    ({"min_disk": 1000.0}, {}),
    ({"min_disk": 1000.0}, {"disk_total": None}),
    ({"min_cuda": (12, 4)}, {}),
    ({"min_cuda": (12, 4)}, {"cuda_version": "CUDA 12.10"}),
    ({"min_cuda": (12, 4)}, {"cuda_version": "13"}),
    ({"min_cuda": (12,)}, {}),
    ({"min_cuda": (12, 4)}, {"cuda_version": "12.4.1"}),
    ({"min_cuda": (12, 4)}, {"cuda_version": None}),
    ({"min_cuda": (12, 4)}, {"cuda_version": "unknown"}),
    ({"nvlink": False}, {}),
    ({"nvlink": True}, {"nvlink_status": True}),
    ({"nvlink": True}, {"nvlink_status": None}),
    ({"nvlink": False}, {"nvlink_status": None}),
    ({"labels": frozenset({"secure", "fast"})}, {}),
    ({"labels": frozenset({"secure"})}, {}),
    ({"labels": frozenset({"secure"})}, {"labels": None}),
]


@pytest.mark.parametrize(("requirements", "fields"), MET)
def test_machine_meets_requirements(requirements: dict[str, Any], fields: dict[str, Any]) -> None:
    assert Requirements(**requirements).first_unmet(attrs.evolve(machine(), **fields), PROFILE) is None


UNMET: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"gpu_names": frozenset({"nvidiageforcertx4090ti"})}, {}, "another GPU"),
    # A machine without a GPU name or a price does not meet a requirement for either.
    ({"gpu_names": frozenset({"nvidiageforcertx4090"})}, {"gpu_name": None}, "another GPU"),
    ({"max_price": Decimal(1000)}, {"price": None}, "no price that can be read"),
    ({"priced": True}, {"price": None}, "no price that can be read"),
    ({"gpus": 9}, {}, "too few GPUs"),
    ({}, {"gpu_count": 0}, "too few GPUs"),
    ({"max_price": Decimal("0.99")}, {}, "a price above max_price"),
    ({"max_price": Decimal(0)}, {}, "a price above max_price"),
    ({"regions": frozenset({"jp"})}, {}, "another region"),
    ({"min_memory": 256.5}, {}, "too little memory"),
    ({"min_memory": 1.0}, {"memory_total": 0}, "too little memory"),
    ({"min_gpu_memory": 25.0}, {}, "too little GPU memory"),
    ({"min_disk": 1001.0}, {}, "too little disk"),
    ({"min_cuda": (12, 5)}, {}, "an older CUDA"),
    ({"min_cuda": (12, 10)}, {"cuda_version": "12.9"}, "an older CUDA"),
    ({"nvlink": True}, {}, "another NVLink setting"),
    ({"nvlink": False}, {"nvlink_status": True}, "another NVLink setting"),
    ({"labels": frozenset({"secure", "cheap"})}, {}, "other labels"),
    ({"labels": frozenset({"secure"})}, {"labels": ()}, "other labels"),
]


@pytest.mark.parametrize(("requirements", "fields", "lack"), UNMET)
def test_machine_fails_requirements_with_its_lack(
    requirements: dict[str, Any], fields: dict[str, Any], lack: str
) -> None:
    assert Requirements(**requirements).first_unmet(attrs.evolve(machine(), **fields), PROFILE) == lack


@pytest.mark.parametrize(("least", "stated"), [((12, 0), "12"), ((12, 4, 0), "12.4"), ((12, 4, 0, 0), "12.4")])
def test_cuda_version_with_fewer_numbers_is_not_older(least: tuple[int, ...], stated: str) -> None:
    assert Requirements(min_cuda=least).first_unmet(machine(cuda_version=stated), PROFILE) is None


def test_memory_and_disk_are_read_from_the_fields_of_the_profile() -> None:
    profile = ServiceProfile(memory_field="memory_per_gpu", disk_field="disk_per_gpu")
    requirements = Requirements(min_memory=100.0, min_disk=100.0)
    assert requirements.first_unmet(machine(memory_per_gpu=32, disk_per_gpu=125), profile) == "too little memory"
    assert requirements.first_unmet(machine(memory_per_gpu=128, disk_per_gpu=64), profile) == "too little disk"
    assert requirements.first_unmet(machine(memory_per_gpu=128, disk_per_gpu=125, memory_total=1), profile) is None


# Order of the offers.


def names(offers: list[Offer]) -> list[str]:
    return [offer.machine.node_name for offer in offers]


def test_cheapest_offers_come_first_then_offers_without_a_price_then_free_offers() -> None:
    machines = [machine("dear", "10"), machine("unknown", None), machine("cheap", "2"), machine("free", "0")]
    offers = ranked(machines, Requirements(gpus=2), PROFILE, "NMT")
    assert names(offers) == ["cheap", "dear", "unknown", "free"]
    assert [offer.hourly_price for offer in offers] == [4, 20, None, 0]
    assert {(offer.gpus, offer.currency) for offer in offers} == {(2, "NMT")}


def test_free_offers_come_last_even_where_less_is_known_of_the_others() -> None:
    machines = [machine("free", "0"), machine("free, too", "-0"), machine("half told", "7", memory_total=None)]
    offers = ranked(machines, Requirements(min_memory=64.0), PROFILE, "USD")
    assert names(offers) == ["half told", "free", "free, too"]


def test_users_key_may_put_free_offers_first() -> None:
    offers = ranked([machine("a", "1"), machine("free", "0")], Requirements(), PROFILE, "USD", lambda o: o.hourly_price)
    assert names(offers) == ["free", "a"]


def test_max_price_of_zero_leaves_free_offers_only() -> None:
    machines = [machine("free", "0"), machine("unknown", None), machine("cheap", "0.01")]
    assert names(ranked(machines, Requirements(max_price=Decimal(0)), PROFILE, "USD")) == ["free"]


def test_most_reliable_of_equally_priced_machines_comes_first() -> None:
    machines = [machine("b"), machine("a", online_rate=None), machine("c", online_rate=0.99), machine("d", "1.00")]
    assert names(ranked(machines, Requirements(), PROFILE, "USD")) == ["c", "b", "d", "a"]


def test_machine_with_unstated_fields_will_do_but_comes_after_machines_that_state_them() -> None:
    requirements = Requirements(min_memory=64.0, regions=frozenset({"us"}))
    machines = [
        machine("nothing", "0.1", region=None, memory_total=None),
        machine("half", "0.2", memory_total=None),
        machine("all", "0.3"),
        machine("another thing", "0.4", disk_total=None, cuda_version=None, labels=None, nvlink_status=None),
    ]
    assert names(ranked(machines, requirements, PROFILE, "USD")) == ["all", "another thing", "half", "nothing"]
    assert names(ranked(machines, Requirements(), PROFILE, "USD")) == ["nothing", "half", "all", "another thing"]
    # The number of GPUs is always required.
    machines.append(machine("uncounted", "0.05", gpu_count=None))
    assert names(ranked(machines, Requirements(), PROFILE, "USD"))[-1] == "uncounted"


@pytest.mark.parametrize("text", [None, "", "unknown"])
def test_cuda_version_without_a_number_counts_as_unstated(text: str | None) -> None:
    machines = [machine("unstated", "0.1", cuda_version=text), machine("stated", "0.2")]
    assert names(ranked(machines, Requirements(min_cuda=(12, 4)), PROFILE, "USD")) == ["stated", "unstated"]
    assert names(ranked(machines, Requirements(), PROFILE, "USD")) == ["unstated", "stated"]


def test_machine_without_a_price_comes_after_all_machines_with_a_price() -> None:
    machines = [machine("unknown price", None), machine("unknown memory", "0.2", memory_total=None)]
    found = names(ranked(machines, Requirements(min_memory=64.0), PROFILE, "USD"))
    assert found == ["unknown memory", "unknown price"]


def test_users_key_sorts_first_and_the_usual_order_decides_between_equals() -> None:
    machines = [machine("a", "3", region="JP"), machine("b", "2"), machine("c", "1", region="JP"), machine("d", None)]
    assert names(ranked(machines, Requirements(), PROFILE, "USD", lambda offer: offer.machine.region)) == [
        "c",
        "a",
        "b",
        "d",
    ]
    dearest_first = ranked(machines, Requirements(), PROFILE, "USD", lambda offer: -(offer.hourly_price or 0))
    assert names(dearest_first) == ["a", "b", "c", "d"]


def test_users_key_sorts_only_machines_that_meet_the_requirements() -> None:
    machines = [machine("a", "3"), machine("b", "1")]
    requirements = Requirements(max_price=Decimal(2))
    assert names(ranked(machines, requirements, PROFILE, "USD", lambda offer: -(offer.hourly_price or 0))) == ["b"]


@pytest.mark.parametrize(
    "key",
    [lambda offer: offer.hourly_price, lambda offer: offer.price, lambda: 1],
    ids=["compares None", "no such field", "takes nothing"],
)
def test_failing_users_key_raises_an_argument_error(key: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^key: cannot be used to sort offers") as caught:
        ranked([machine("a"), machine("b", None)], Requirements(), PROFILE, "USD", key)
    assert caught.value.__cause__ is not None


prices = st.decimals(0, 10, places=2)
machines_drawn = st.lists(
    st.builds(
        Machine,
        node_name=st.text("abcdef", min_size=1, max_size=4),
        gpu_name=st.none() | st.sampled_from(DOCUMENTED_GPUS[:3]),
        gpu_count=st.none() | st.integers(0, 8),
        price=st.none() | prices,
        region=st.none() | st.sampled_from(["US", "JP"]),
        memory_total=st.none() | st.integers(0, 128),
        online_rate=st.none() | st.floats(0, 1),
        labels=st.none() | st.just(()) | st.just(("Fast",)),
    ),
    unique_by=lambda machine: machine.node_name,
    max_size=12,
)
needs_drawn = st.builds(
    Requirements,
    gpu_names=st.none() | st.just(resolved_gpu_names(DOCUMENTED_GPUS[:2], [])),
    gpus=st.integers(1, 8),
    regions=st.none() | st.just(frozenset({"us"})),
    max_price=st.none() | prices,
    min_memory=st.none() | st.floats(0, 128),
    labels=st.sampled_from([frozenset[str](), frozenset({"fast"})]),
    priced=st.booleans(),
)


@given(machines=machines_drawn, requirements=needs_drawn)
def test_all_machines_that_meet_the_requirements_are_offered_and_no_others(
    machines: list[Machine], requirements: Requirements
) -> None:
    offers = ranked(machines, requirements, PROFILE, "USD")
    fitting = {machine.node_name for machine in machines if requirements.first_unmet(machine, PROFILE) is None}
    assert sorted(names(offers)) == sorted(fitting)
    for offer in offers:
        machine = offer.machine
        assert (
            requirements.gpu_names is None
            or (machine.gpu_name or "").replace("_", "").lower() in requirements.gpu_names
        )
        assert machine.gpu_count is None or machine.gpu_count >= requirements.gpus
        assert machine.region is None or requirements.regions is None or machine.region == "US"
        assert machine.memory_total is None or machine.memory_total >= (requirements.min_memory or 0)
        if requirements.max_price is not None or requirements.priced:
            assert machine.price is not None
            assert requirements.max_price is None or machine.price <= requirements.max_price


@given(machines=machines_drawn, requirements=needs_drawn)
def test_machines_with_as_many_unstated_fields_are_in_the_order_of_their_price(
    machines: list[Machine], requirements: Requirements
) -> None:
    offers = ranked(machines, requirements, PROFILE, "USD")
    for unstated in range(5):
        alike = [offer.hourly_price for offer in offers if requirements.unknown(offer.machine, PROFILE) == unstated]
        known = [price for price in alike if price]
        free = [price for price in alike if price == 0]
        assert alike == [*sorted(known), *[None] * (len(alike) - len(known) - len(free)), *free]


@given(machines=machines_drawn, requirements=needs_drawn, seed=st.integers())
def test_order_of_the_machine_list_makes_no_difference(
    machines: list[Machine], requirements: Requirements, seed: int
) -> None:
    shuffled = random.Random(seed).sample(machines, len(machines))
    assert ranked(machines, requirements, PROFILE, "USD") == ranked(shuffled, requirements, PROFILE, "USD")


# The next offer to try.

OFFERS = ranked(
    [machine("a", "1", gpu_count=4), machine("b", "2"), machine("c", "3")], Requirements(gpus=2), PROFILE, "USD"
)


@pytest.mark.parametrize(
    ("tried", "excluded", "reserved", "expected"),
    [
        ([], {}, {}, "a"),
        (["a"], {}, {}, "b"),
        (["a", "c"], {}, {}, "b"),
        (["a", "b", "c"], {}, {}, None),
        # A machine that refused one or two GPUs does not have these two; a machine that refused three may have them.
        ([], {"a": 2}, {}, "b"),
        ([], {"a": 1}, {}, "b"),
        ([], {"a": 3}, {}, "a"),
        ([], {"a": 2, "b": 2, "c": 1}, {}, None),
        (["b"], {"a": 2}, {}, "c"),
        # Of four GPUs, two are free while this client has two, and one while it has three.
        ([], {}, {"a": 2}, "a"),
        ([], {}, {"a": 3}, "b"),
        (["b"], {}, {"a": 4}, "c"),
        # Machines that this client's own claims fill come last, in their order.
        (["b", "c"], {}, {"a": 4}, "a"),
        ([], {}, {"a": 4, "b": 8, "c": 8}, "a"),
        (["a"], {}, {"a": 4, "b": 8, "c": 8}, "b"),
        ([], {"a": 2}, {"a": 4, "b": 8, "c": 8}, "b"),
        ([], {"a": 2, "b": 2, "c": 2}, {"a": 4}, None),
        (["elsewhere"], {"elsewhere": 1}, {"elsewhere": 99}, "a"),
    ],
)
def test_next_offer_is_the_first_that_was_not_tried_refused_or_filled(
    tried: list[str], excluded: dict[str, int], reserved: dict[str, int], expected: str | None
) -> None:
    found = next_offer(OFFERS, tried=tried, excluded=excluded, reserved=reserved)
    assert (None if found is None else found.machine.node_name) == expected


def test_machine_without_a_gpu_count_is_never_filled_by_own_claims() -> None:
    offers = ranked([machine("a", gpu_count=None)], Requirements(gpus=2), PROFILE, "USD")
    offers += ranked([machine("b")], Requirements(gpus=2), PROFILE, "USD")
    assert next_offer(offers, tried=(), excluded={}, reserved={"a": 100}) is offers[0]
    assert next_offer([], tried=(), excluded={}, reserved={}) is None


nodes = st.sampled_from("abcdef")


@given(
    machines=machines_drawn,
    gpus=st.integers(1, 8),
    excluded=st.dictionaries(nodes, st.integers(1, 8)),
    reserved=st.dictionaries(nodes, st.integers(0, 16)),
)
def test_each_offer_is_tried_once_and_filled_machines_last(
    machines: list[Machine], gpus: int, excluded: dict[str, int], reserved: dict[str, int]
) -> None:
    offers = ranked(machines, Requirements(gpus=gpus), PROFILE, "USD")
    order: list[Offer] = []
    tried: set[str] = set()
    while (offer := next_offer(offers, tried=tried, excluded=excluded, reserved=reserved)) is not None:
        assert offer.machine.node_name not in tried
        tried.add(offer.machine.node_name)
        order.append(offer)
    refused = [offer for offer in offers if excluded.get(offer.machine.node_name, 99) <= gpus]
    assert {id(offer) for offer in order}.isdisjoint(id(offer) for offer in refused)
    assert len(order) + len(refused) == len(offers)

    def is_filled(offer: Offer) -> bool:
        count = offer.machine.gpu_count
        return count is not None and count - reserved.get(offer.machine.node_name, 0) < gpus

    # A caller that passes how many of the first offers are filled gets the same offers.
    filled = len(list(itertools.takewhile(is_filled, offers)))
    for count in range(len(order) + 1):
        so_far = {offer.machine.node_name for offer in order[:count]}
        found = next_offer(offers, tried=so_far, excluded=excluded, reserved=reserved, taken_up=filled)
        assert found is (order[count] if count < len(order) else None)
    # The ranking decides within each of the two groups, because sorting is stable.
    assert order == sorted((offer for offer in offers if offer not in refused), key=is_filled)


# Prices.


@pytest.mark.parametrize(
    ("price", "gpus", "profile", "expected"),
    [
        ("0.45", 1, PROFILE, "0.45"),
        ("0.45", 12, PROFILE, "5.40"),
        ("0", 4, PROFILE, "0"),
        ("1e-18", 3, PROFILE, "3e-18"),
        ("0.45", 12, ServiceProfile(price_basis="machine"), "0.45"),
        ("12", 1, ServiceProfile(price_period=timedelta(days=1)), "0.5"),
        ("12", 4, ServiceProfile(price_period=timedelta(days=1)), "2"),
        ("12", 4, ServiceProfile(price_period=timedelta(days=1), price_basis="machine"), "0.5"),
        ("0.001", 1, ServiceProfile(price_period=timedelta(seconds=1)), "3.6"),
        ("1", 1, ServiceProfile(price_period=timedelta(minutes=30)), "2"),
    ],
)
def test_hourly_price_follows_the_price_basis_and_period_of_the_profile(
    price: str, gpus: int, profile: ServiceProfile, expected: str
) -> None:
    assert hourly_price(machine(price=price), gpus, profile) == Decimal(expected)


@pytest.mark.parametrize(
    ("price", "period", "expected"),
    [
        ("0.01", timedelta(minutes=1), "0.60"),
        ("0.1", timedelta(minutes=10), "0.6"),
        ("0.1", timedelta(minutes=20), "0.3"),
    ],
)
def test_hourly_price_of_a_period_in_minutes_is_exact(price: str, period: timedelta, expected: str) -> None:
    assert hourly_price(machine(price=price), 1, ServiceProfile(price_period=period)) == Decimal(expected)


@pytest.mark.parametrize("profile", [PROFILE, ServiceProfile(price_period=timedelta(days=1), price_basis="machine")])
def test_hourly_price_of_a_machine_without_a_price_is_none(profile: ServiceProfile) -> None:
    assert hourly_price(machine(price=None), 1, profile) is None


@given(price=st.decimals(0, 10_000, places=4), gpus=st.integers(1, 12))
def test_hourly_price_of_several_gpus_is_the_sum_of_their_prices(price: Decimal, gpus: int) -> None:
    assert hourly_price(machine(price=str(price)), gpus, PROFILE) == sum(gpus * [price])


# Explanations why no machine will do.


def test_explanation_counts_each_lack_and_gives_the_lowest_price_and_the_known_gpus() -> None:
    assert explain_no_match([], Requirements(), PROFILE) == "no machine is on offer"
    requirements = Requirements(regions=frozenset({"us"}), max_price=Decimal(1), gpus=8)
    machines = [machine("a", "2"), machine("b", region="JP"), machine("c", "3", region="JP"), machine("d", None)]
    assert explain_no_match(machines, requirements, PROFILE) == (
        "none of the 4 machines on offer will do: 2 have a price above max_price, 1 has another region,"
        " 1 has no price that can be read; the lowest of these prices is 2"
    )
    # The GPUs on offer are listed, because another may do.
    asked = Requirements(gpu_names=resolved_gpu_names(["RTX 3070"], []))
    others = [machine("a"), machine("b", gpu_name="NVIDIA_H100"), machine("c", gpu_name=None)]
    assert explain_no_match(others, asked, PROFILE) == (
        "none of the 3 machines on offer will do: 3 have another GPU; the GPUs on offer are NVIDIA_GeForce_RTX_4090,"
        " NVIDIA_H100, unknown ones"
    )


@given(machines=machines_drawn, requirements=needs_drawn)
def test_explanation_counts_each_machine_once(machines: list[Machine], requirements: Requirements) -> None:
    unfit = [machine for machine in machines if requirements.first_unmet(machine, PROFILE) is not None]
    if not unfit:
        assert explain_no_match(unfit, requirements, PROFILE) == "no machine is on offer"
        return
    text = explain_no_match(unfit, requirements, PROFILE)
    total, *counts = map(int, re.findall(r"\b([0-9]+) (?:machines|has|have)", text))
    assert total == sum(counts) == len(unfit)
    assert all(f" {requirements.first_unmet(machine, PROFILE)}" in text for machine in unfit)
