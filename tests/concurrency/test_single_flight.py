"""A search that concurrent callers share: its result, its failure, its expiry."""

from __future__ import annotations

import asyncio
from math import inf

import pytest

from netmind_rentgpu import RentGPUError
from netmind_rentgpu.concurrency.single_flight import SingleFlight


class Finder:
    """A search that returns or raises the given results in turn, and counts its calls."""

    def __init__(self, *found: object) -> None:
        self.found = list(found)
        self.calls = 0
        self.may_end = asyncio.Event()

    async def __call__(self) -> object:
        self.calls += 1
        found = self.found.pop(0)
        await self.may_end.wait()
        if isinstance(found, Exception):
            raise found
        return found


async def results_of_callers(shared: SingleFlight[object], find: Finder, count: int) -> list[object]:
    asking = [asyncio.create_task(shared.get(find)) for _ in range(count)]
    await asyncio.sleep(0)
    find.may_end.set()
    return await asyncio.gather(*asking, return_exceptions=True)


async def test_concurrent_callers_share_one_search() -> None:
    shared, find = SingleFlight[object](fresh=inf), Finder("one")
    assert await results_of_callers(shared, find, 100) == ["one"] * 100
    assert await shared.get(find) == "one"
    assert find.calls == 1


async def test_caller_after_the_result_is_stale_searches_again() -> None:
    now = 0.0
    shared, find = SingleFlight[object](fresh=5, clock=lambda: now), Finder("one", "two")
    assert await results_of_callers(shared, find, 2) == ["one"] * 2
    now = 5.0
    assert await shared.get(find) == "one"
    now = 5.1
    assert await shared.get(find) == "two"


async def test_failure_is_shared_but_each_caller_gets_its_own_error() -> None:
    failure = RentGPUError("it failed")
    failure.add_note("twice")
    failure.__cause__ = cause = OSError("the network")
    now = 0.0
    shared, find = SingleFlight[object](fresh=inf, clock=lambda: now), Finder(failure, "one")
    ends = await results_of_callers(shared, find, 50)
    assert find.calls == 1
    assert {str(end) for end in ends} == {"it failed"}
    assert len({id(end) for end in ends}) == 50
    for end in ends:
        assert isinstance(end, RentGPUError)
        assert end.__cause__ is cause
        assert end.__notes__ == ["twice"]
        end.add_note("one's own")
        frames, traceback = 0, end.__traceback__
        while traceback is not None:
            frames, traceback = frames + 1, traceback.tb_next
        assert frames < 5
    # The failure is not kept for later callers.
    now = 1.0
    assert await shared.get(find) == "one"


async def test_result_forgotten_during_its_search_is_searched_again() -> None:
    shared, find = SingleFlight[object](fresh=inf), Finder("old", "new")
    asking = asyncio.create_task(shared.get(find))
    await asyncio.sleep(0)
    shared.forget()
    find.may_end.set()
    assert await asking == "old"
    assert await shared.get(find) == "new"
    assert await shared.get(find) == "new"


async def test_cancelled_caller_leaves_the_search_to_the_next() -> None:
    shared, find = SingleFlight[object](fresh=inf), Finder("one", "two")
    first, second = asyncio.create_task(shared.get(find)), asyncio.create_task(shared.get(find))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    find.may_end.set()
    assert await second == "two"
