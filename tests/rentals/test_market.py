"""What is on offer to all who rent by one client."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.models import Machine
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.rentals.market import Market, Ranking
from netmind_rentgpu.rentals.needs import Needs, next_offer, ranked

NODES = "abcde"


@given(
    counts=st.lists(st.none() | st.integers(0, 4), min_size=len(NODES), max_size=len(NODES)),
    steps=st.lists(
        st.tuples(st.sampled_from(["rent", "give back"]), st.integers(1, 3), st.sets(st.sampled_from(NODES)))
    ),
)
def test_those_who_rent_one_after_the_other_are_told_what_looking_through_all_offers_tells(
    counts: list[int | None], steps: list[tuple[str, int, set[str]]]
) -> None:
    machines = [
        Machine(node_name=node, gpu_count=count, price=Decimal(1)) for node, count in zip(NODES, counts, strict=True)
    ]
    unused: Any = None
    market = Market(unused)
    rankings = {gpus: Ranking(ranked(machines, Needs(gpus=gpus), ServiceProfile(), "USD")) for gpus in range(1, 4)}
    claimed: Counter[str] = Counter()
    taken: list[tuple[str, int]] = []
    for what, gpus, tried in steps:
        if what == "rent":
            expected = next_offer(rankings[gpus].offers, tried=tried, aside={}, claimed=claimed)
            assert market.next_offer(rankings[gpus], tried) is expected
            if expected is not None:
                taken.append((expected.machine.node_name, gpus))
                market.claim(*taken[-1])
                claimed[taken[-1][0]] += gpus
        elif taken:
            node, count = taken.pop()
            market.give_back(node, count)
            claimed[node] -= count
