"""The pauses of a backoff grow by a factor, up to the longest, without end."""

from __future__ import annotations

from itertools import islice, pairwise

from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.concurrency.backoff import backoff, backoff_delay


def test_pauses_grow_up_to_the_longest() -> None:
    assert list(islice(backoff(first=1, longest=5, factor=2), 5)) == [1, 2, 4, 5, 5]
    assert list(islice(backoff(), 3)) == [0.25, 0.375, 0.5625]


@given(
    number=st.integers(0, 10**9),
    first=st.floats(0.001, 10),
    longest=st.floats(0.001, 10**6),
    factor=st.floats(1, 10),
)
def test_pause_is_never_longer_than_the_longest_and_never_overflows(
    number: int, first: float, longest: float, factor: float
) -> None:
    assert 0 < backoff_delay(number, first=first, longest=longest, factor=factor) <= longest


@given(first=st.floats(0.001, 10), longest=st.floats(0.001, 10**6), factor=st.floats(1, 10))
def test_pauses_never_become_shorter(first: float, longest: float, factor: float) -> None:
    pauses = islice(backoff(first=first, longest=longest, factor=factor), 100)
    assert all(earlier <= later for earlier, later in pairwise(pauses))
