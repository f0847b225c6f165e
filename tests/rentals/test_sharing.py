"""What is asked for once for all who ask: how it is shared, fails, and is forgotten."""

from __future__ import annotations

import asyncio
from math import inf

import pytest

from netmind_rentgpu import RentGPUError
from netmind_rentgpu.rentals.sharing import Shared


class Finder:
    """Finds what it is told to, and counts."""

    def __init__(self, *found: object) -> None:
        self.found = list(found)
        self.asked = 0
        self.go_on = asyncio.Event()

    async def __call__(self) -> object:
        self.asked += 1
        found = self.found.pop(0)
        await self.go_on.wait()
        if isinstance(found, Exception):
            raise found
        return found


async def all_of(shared: Shared[object], find: Finder, count: int) -> list[object]:
    asking = [asyncio.create_task(shared.get(find)) for _ in range(count)]
    await asyncio.sleep(0)
    find.go_on.set()
    return await asyncio.gather(*asking, return_exceptions=True)


async def test_those_who_ask_at_once_share_what_is_found() -> None:
    shared, find = Shared[object](fresh=inf), Finder("one")
    assert await all_of(shared, find, 100) == ["one"] * 100
    assert await shared.get(find) == "one"
    assert find.asked == 1


async def test_who_asks_later_than_it_is_fresh_finds_it_anew() -> None:
    now = 0.0
    shared, find = Shared[object](fresh=5, clock=lambda: now), Finder("one", "two")
    assert await all_of(shared, find, 2) == ["one"] * 2
    now = 5.0
    assert await shared.get(find) == "one"
    now = 5.1
    assert await shared.get(find) == "two"


async def test_a_failure_is_shared_and_each_has_an_error_of_its_own() -> None:
    failure = RentGPUError("it failed")
    failure.add_note("twice")
    failure.__cause__ = cause = OSError("the network")
    now = 0.0
    shared, find = Shared[object](fresh=inf, clock=lambda: now), Finder(failure, "one")
    ends = await all_of(shared, find, 50)
    assert find.asked == 1
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
    # It is not kept for those who ask later.
    now = 1.0
    assert await shared.get(find) == "one"


async def test_what_is_forgotten_while_it_is_found_is_found_again() -> None:
    shared, find = Shared[object](fresh=inf), Finder("old", "new")
    asking = asyncio.create_task(shared.get(find))
    await asyncio.sleep(0)
    shared.forget()
    find.go_on.set()
    assert await asking == "old"
    assert await shared.get(find) == "new"
    assert await shared.get(find) == "new"


async def test_who_is_cancelled_leaves_it_to_the_next() -> None:
    shared, find = Shared[object](fresh=inf), Finder("one", "two")
    first, second = asyncio.create_task(shared.get(find)), asyncio.create_task(shared.get(find))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    find.go_on.set()
    assert await second == "two"
