"""Offers that one client gives to all its rentals."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.models import Machine
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.rentals.selection.catalog import MachineCatalog, OfferQueue
from netmind_rentgpu.rentals.selection.offers import Requirements, next_offer, ranked

NODES = "abcde"


@given(
    counts=st.lists(st.none() | st.integers(0, 4), min_size=len(NODES), max_size=len(NODES)),
    steps=st.lists(
        st.tuples(st.sampled_from(["rent", "give back"]), st.integers(1, 3), st.sets(st.sampled_from(NODES)))
    ),
)
def test_ranking_gives_the_same_next_offer_as_a_search_of_all_offers(
    counts: list[int | None], steps: list[tuple[str, int, set[str]]]
) -> None:
    machines = [
        Machine(node_name=node, gpu_count=count, price=Decimal(1)) for node, count in zip(NODES, counts, strict=True)
    ]
    unused: Any = None
    catalog = MachineCatalog(unused)
    rankings = {
        gpus: OfferQueue(ranked(machines, Requirements(gpus=gpus), ServiceProfile(), "USD")) for gpus in range(1, 4)
    }
    reserved: Counter[str] = Counter()
    rented: list[tuple[str, int]] = []
    for step, gpus, tried in steps:
        if step == "rent":
            expected = next_offer(rankings[gpus].offers, tried=tried, excluded={}, reserved=reserved)
            assert catalog.next_offer(rankings[gpus], tried) is expected
            if expected is not None:
                rented.append((expected.machine.node_name, gpus))
                catalog.reserve(*rented[-1])
                reserved[rented[-1][0]] += gpus
        elif rented:
            node, count = rented.pop()
            catalog.release(node, count)
            reserved[node] -= count
