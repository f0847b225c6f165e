"""The queue of a map: each item gets one result, whatever is lost in which order."""

from __future__ import annotations

import random

import pytest

from netmind_rentgpu.rentals.work_queue import WorkQueue


def test_items_are_taken_in_their_order_and_results_are_in_it_too() -> None:
    queue: WorkQueue[str, int] = WorkQueue("abc", retries=0)
    assert [queue.take() for _ in range(3)] == [(0, "a"), (1, "b"), (2, "c")]
    assert not queue.has_waiting
    for number in (2, 0, 1):
        assert not queue.is_over
        queue.finish(number, 10 * number)
    assert (queue.is_over, queue.results) == (True, [0, 10, 20])


def test_queue_without_items_is_over_at_once() -> None:
    queue: WorkQueue[str, int] = WorkQueue([], retries=2)
    assert (queue.is_over, queue.has_waiting, queue.results) == (True, False, [])


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_lost_item_waits_again_before_all_others_as_often_as_its_retries(retries: int) -> None:
    queue: WorkQueue[str, int] = WorkQueue("ab", retries=retries)
    for _ in range(retries):
        assert queue.take() == (0, "a")
        assert queue.lose(0)
    assert queue.take() == (0, "a")
    assert not queue.lose(0)
    # Each item has retries of its own.
    assert queue.take() == (1, "b")
    assert queue.lose(1) == (retries > 0)


def test_first_result_of_an_item_counts() -> None:
    queue: WorkQueue[str, int] = WorkQueue("a", retries=0)
    queue.take()
    queue.finish(0, 1)
    queue.finish(0, 2)
    assert queue.results == [1]


@pytest.mark.parametrize("seed", range(20))
def test_each_item_has_its_own_result_after_losses_at_random(seed: int) -> None:
    chance = random.Random(seed)
    queue: WorkQueue[int, int] = WorkQueue(range(50), retries=1000)
    working: list[tuple[int, int]] = []
    while not queue.is_over:
        if queue.has_waiting and len(working) < 7:
            working.append(queue.take())
            continue
        number, item = working.pop(chance.randrange(len(working)))
        if chance.random() < 0.3:
            assert queue.lose(number)
        else:
            queue.finish(number, item * item)
    assert queue.results == [item * item for item in range(50)]
