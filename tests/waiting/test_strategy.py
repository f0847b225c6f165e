"""The strategy of poll rounds: pages or gets by id, and the interval between rounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.errors import APIConnectionError, RateLimitError, RentGPUError, ServerError
from netmind_rentgpu.waiting.strategy import AdaptiveInterval, one_by_one, pages_left, worth_recounting


@pytest.mark.parametrize(
    ("account", "seen", "page", "wanted", "found", "pages"),
    [
        (0, 0, 100, 1, 0, 1),  # nothing is known
        (10_000, 0, 100, 3, 0, 100),
        (10_000, 0, 10, 3, 0, 1000),
        (10_001, 0, 100, 3, 0, 101),
        (10_000, 9_950, 100, 3, 0, 1),
        (100, 100, 100, 50, 50, 1),  # half were found on one page
        (100, 100, 100, 2, 1, 1),  # as much again as was walked
        (300, 300, 100, 3, 0, 3),  # none was found anywhere
        (50, 300, 100, 3, 1, 3),  # it has grown
        (300, 300, 100, 3, 200, 1),  # they stand close together
    ],
)
def test_pages_left_are_estimated_from_the_walk_so_far(
    account: int, seen: int, page: int, wanted: int, found: int, pages: float
) -> None:
    assert pages_left(account=account, seen=seen, page=page, wanted=wanted, found=found) == pages


@pytest.mark.parametrize(
    ("wanted", "account", "page", "expected"),
    [
        (1, 0, 100, True),
        (2, 0, 100, False),
        (3, 10_000, 100, True),
        (100, 10_000, 100, True),
        (101, 10_000, 100, False),
        (10_000, 10_000, 100, False),
        (1000, 10_000, 10, True),
        (1001, 10_000, 10, False),
        (3, 150, 100, False),
        (2, 150, 100, True),
    ],
)
def test_few_containers_are_got_by_id_and_many_listed(wanted: int, account: int, page: int, expected: bool) -> None:
    pages = pages_left(account=account, seen=0, page=page, wanted=wanted, found=0)
    assert one_by_one(wanted, pages) is expected


@given(
    account=st.integers(0, 20_000),
    seen=st.integers(0, 20_000),
    page=st.integers(1, 100),
    wanted=st.integers(1, 20_000),
    found=st.integers(0, 100),
)
def test_gets_by_id_never_exceed_the_estimated_pages(
    account: int, seen: int, page: int, wanted: int, found: int
) -> None:
    pages = pages_left(account=account, seen=seen, page=page, wanted=wanted, found=found)
    assert pages >= 1
    assert one_by_one(wanted, pages) is (wanted <= pages)
    more = pages_left(account=account, seen=seen, page=page, wanted=wanted + 1, found=found)
    assert more >= pages


@pytest.mark.parametrize(
    ("wanted", "pages", "gets", "expected"),
    [(3, 4, 40, False), (3, 4, 41, True), (2, 4, 41, True), (1, 4, 1000, False), (2, 10**9, 10**9, False)],
)
def test_recount_is_worth_it_after_enough_gets(wanted: int, pages: int, gets: int, expected: bool) -> None:
    assert worth_recounting(wanted, pages, gets=gets) is expected


def test_interval_is_short_after_changes_and_grows_without_them() -> None:
    pace = AdaptiveInterval()
    intervals = [pace.after_look(0.0, changed=False) for _ in range(10)]
    assert intervals == [0.25, 0.375, 0.5625, 0.84375, 1.265625, 1.8984375, 2.84765625, 4.271484375, 5.0, 5.0]
    assert [pace.after_look(0.0, changed=changed) for changed in (True, True, False)] == [0.25, 0.25, 0.375]


@given(looks=st.lists(st.tuples(st.booleans(), st.floats(0, 1, exclude_max=True))))
def test_interval_stays_within_its_bounds(looks: list[tuple[bool, float]]) -> None:
    pace = AdaptiveInterval()
    for changed, random in looks:
        assert 0.25 * 0.75 <= pace.after_look(random, changed=changed) <= 5.0


def test_intervals_of_pollers_begun_together_differ() -> None:
    assert len({AdaptiveInterval().after_look(random / 10, changed=True) for random in range(10)}) == 10
    assert len({AdaptiveInterval().after_failure(random / 10, broken()) for random in range(10)}) == 10


def broken() -> RentGPUError:
    return APIConnectionError("reset", maybe_processed=True)


def refused(kind: type[RateLimitError | ServerError], retry_after: float | None) -> RentGPUError:
    return kind(
        "no",
        status=503,
        method="GET",
        path="/",
        code=None,
        message=None,
        body=None,
        request_id=None,
        retry_after=retry_after,
    )


def test_interval_grows_with_repeated_failures() -> None:
    pace = AdaptiveInterval()
    assert [pace.after_failure(0.0, broken()) for _ in range(7)] == [0.25, 0.5, 1, 2, 4, 5, 5]
    pace.after_look(0.0, changed=False)
    assert pace.after_failure(0.0, broken()) == 0.25
    pace.failures = 10_000
    assert pace.after_failure(0.0, broken()) == 5
    pace.reset()
    assert pace.after_failure(0.0, broken()) == 0.25


@pytest.mark.parametrize("kind", [RateLimitError, ServerError])
def test_interval_after_a_failure_honours_retry_after(kind: type[RateLimitError | ServerError]) -> None:
    assert AdaptiveInterval().after_failure(0.0, refused(kind, 120.0)) == 120.25
    assert AdaptiveInterval().after_failure(0.0, refused(kind, 0.0)) == 0.25
    assert AdaptiveInterval().after_failure(0.0, refused(kind, None)) == 0.25
