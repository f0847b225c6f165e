"""`watch`: every change that a poll round finds, once, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from virtual import Account, answered, virtually

from netmind_rentgpu import Change, ClientStateError, InvalidArgumentError, ServerError
from netmind_rentgpu.conditions import status_in
from netmind_rentgpu.wire.messages import RawResponse, Request


def told(changes: list[Change]) -> list[tuple[int, int | None, int | None]]:
    return [
        (change.container_id, change.before and change.before.status, change.after and change.after.status)
        for change in changes
    ]


class Reader:
    """Reads a watch as it comes."""

    def __init__(self, changes: AsyncGenerator[Change]) -> None:
        self.read: list[Change] = []
        self.changes = changes
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with aclosing(self.changes):
            async for change in self.changes:
                self.read.append(change)

    def taken(self) -> list[tuple[int, int | None, int | None]]:
        found = told(self.read)
        self.read.clear()
        return found

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


def test_named_containers_are_watched_until_they_are_gone() -> None:
    async def run(account: Account) -> None:
        ids = list(account.truth)
        reader = Reader(account.containers().watch(ids[1:3]))
        await asyncio.sleep(10)
        assert reader.taken() == []
        account.set(ids[0], 4)
        account.set(ids[1], 1)
        await asyncio.sleep(10)
        assert reader.taken() == [(ids[1], 0, 1)]
        account.set(ids[1], 2)
        account.set(ids[2], 2)
        await asyncio.sleep(10)
        assert reader.taken() == [(ids[1], 1, 2), (ids[2], 0, 2)]
        account.delete(ids[1])
        await asyncio.sleep(10)
        assert reader.taken() == [(ids[1], 2, None)]
        assert not reader.task.done()
        account.delete(ids[2])
        await asyncio.sleep(10)
        assert reader.taken() == [(ids[2], 2, None)]
        assert reader.task.done()
        # A container that never existed is gone, too.
        other = Reader(account.containers().watch([999]))
        await asyncio.wait([other.task])
        assert other.taken() == []

    virtually(run, count=5)


def test_watch_of_all_reports_changed_new_and_deleted_containers() -> None:
    async def run(account: Account) -> None:
        ids = list(account.truth)
        reader = Reader(account.containers().watch())
        await asyncio.sleep(10)
        assert reader.taken() == []
        new = account.create()
        account.delete(ids[0])
        account.set(ids[4], 1)
        await asyncio.sleep(10)
        # In the order of the poll round: containers missing in the list are got after it.
        assert reader.taken() == [(ids[4], 0, 1), (new, None, 0), (ids[0], 0, None)]
        await reader.stop()

    virtually(run, count=5)


def test_watch_of_an_empty_account_reports_new_containers() -> None:
    async def run(account: Account) -> None:
        reader = Reader(account.containers().watch())
        await asyncio.sleep(10)
        new = account.create()
        await asyncio.sleep(10)
        assert reader.taken() == [(new, None, 0)]
        account.delete(new)
        await asyncio.sleep(10)
        assert reader.taken() == [(new, 0, None)]
        await reader.stop()

    virtually(run)


def test_watch_of_no_ids_ends_at_once() -> None:
    async def run(account: Account) -> None:
        assert [change async for change in account.containers().watch([])] == []
        assert account.asked == []

    virtually(run, count=1)


def test_slow_reader_gets_missed_changes_merged_and_delays_no_other_reader() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        slow = containers.watch()
        fast = Reader(containers.watch())
        first = asyncio.create_task(anext(slow))
        await asyncio.sleep(10)
        account.set(ids[0], 1)
        assert told([await first]) == [(ids[0], 0, 1)]
        # The slow reader is busy from here on.
        for status in (2, 3, 4):
            account.set(ids[1], status)
            await asyncio.sleep(10)
        account.set(ids[2], 5)
        await asyncio.sleep(10)
        account.set(ids[2], 0)
        await asyncio.sleep(10)
        # A container that appears and is gone again.
        passing = account.create()
        await asyncio.sleep(10)
        account.delete(passing)
        account.delete(ids[3])
        await asyncio.sleep(10)
        *read, second_last, last_read = fast.taken()
        assert read == [
            (ids[0], 0, 1),
            (ids[1], 0, 2),
            (ids[1], 2, 3),
            (ids[1], 3, 4),
            (ids[2], 0, 5),
            (ids[2], 5, 0),
            (passing, None, 0),
        ]
        # These are got concurrently, in any order.
        assert {second_last, last_read} == {(ids[3], 0, None), (passing, 0, None)}
        missed = [await anext(slow), await anext(slow)]
        # A container that is again as the reader knows it has not changed.
        assert told(missed) == [(ids[1], 0, 4), (ids[3], 0, None)]
        last = asyncio.create_task(anext(slow))
        await asyncio.sleep(10)
        assert not last.done()
        account.set(ids[2], 7)
        assert told([await last]) == [(ids[2], 0, 7)]
        await slow.aclose()
        await fast.stop()

    virtually(run, count=5)


def test_watch_begun_later_reports_changes_from_then_on() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        early = Reader(containers.watch())
        await asyncio.sleep(10)
        account.set(ids[0], 1)
        await asyncio.sleep(10)
        late = Reader(containers.watch())
        named = Reader(containers.watch(ids[:2]))
        await asyncio.sleep(10)
        assert (late.taken(), named.taken()) == ([], [])
        account.set(ids[0], 2)
        await asyncio.sleep(10)
        assert late.taken() == named.taken() == [(ids[0], 1, 2)]
        assert early.taken() == [(ids[0], 0, 1), (ids[0], 1, 2)]
        for reader in (early, late, named):
            await reader.stop()

    virtually(run, count=4)


def test_abandoned_watch_sends_no_more_requests() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        async with aclosing(containers.watch()) as changes:
            first = asyncio.create_task(anext(changes))
            await asyncio.sleep(1)
            account.set(next(iter(account.truth)), 1)
            await first
        count = len(account.asked)
        await asyncio.sleep(100)
        assert len(account.asked) == count
        assert containers._poller._snapshots.nobody

    virtually(run, count=4)


def test_lagging_list_reports_no_false_change() -> None:
    async def run(account: Account) -> None:
        account.lag = 20
        ids = list(account.truth)
        containers = account.containers()
        await asyncio.sleep(30)
        reader = Reader(containers.watch())
        await asyncio.sleep(10)
        new = account.create()
        waiting = asyncio.create_task(containers.wait(new, until=status_in(1)))
        await asyncio.sleep(5)
        # A wait asks for the container by id, so it is seen before the list shows it.
        assert reader.taken() == [(new, None, 0)]
        await asyncio.sleep(30)
        account.set(new, 1)
        await waiting
        assert reader.taken() == [(new, 0, 1)]
        asking = asyncio.create_task(containers.wait(ids[0], until=status_in(9)))
        await asyncio.sleep(1)
        account.delete(ids[0])
        await containers.delete(999, missing_ok=True)
        await asyncio.sleep(100)
        assert reader.taken() == [(ids[0], 0, None)]
        await asyncio.wait([asking])
        assert asking.exception() is not None
        await reader.stop()

    virtually(run, count=4)


def test_watch_raises_after_five_minutes_of_failures() -> None:
    async def run(account: Account) -> None:
        reader = Reader(account.containers().watch())
        await asyncio.sleep(10)

        async def meets(_: Request) -> RawResponse | None:
            return answered(502, {})

        account.meets = meets
        began = account.loop.time()
        with pytest.raises(ServerError):
            await reader.task
        assert 300 <= account.loop.time() - began <= 345

    virtually(run, count=4)


def test_watch_hides_failures_of_less_than_five_minutes() -> None:
    async def run(account: Account) -> None:
        ids = list(account.truth)
        reader = Reader(account.containers().watch())
        await asyncio.sleep(10)
        trouble = True

        async def meets(_: Request) -> RawResponse | None:
            return answered(502, {}) if trouble else None

        account.meets = meets
        account.set(ids[0], 1)
        await asyncio.sleep(290)
        trouble = False
        await asyncio.sleep(10)
        assert reader.taken() == [(ids[0], 0, 1)]
        trouble = True
        await asyncio.sleep(290)
        assert not reader.task.done()
        await reader.stop()

    virtually(run, count=4)


def test_closed_client_ends_a_watch() -> None:
    async def run(account: Account) -> None:
        reader = Reader(account.containers().watch())
        await asyncio.sleep(10)
        account.closed = True
        with pytest.raises(ClientStateError):
            await reader.task

    virtually(run, count=4)


def test_watch_refuses_ids_of_a_wrong_type() -> None:
    async def run(account: Account) -> None:
        for bad in (5, ["a"], [None], "12"):
            with pytest.raises(InvalidArgumentError, match="ids"):
                account.containers().watch(bad)  # type: ignore[arg-type]  # a wrong type on purpose

    virtually(run)


def test_watch_with_the_initial_state_begins_with_each_container() -> None:
    async def run(account: Account) -> None:
        ids = list(account.truth)
        everything = Reader(account.containers().watch(initial=True))
        some = Reader(account.containers().watch(ids[:2], initial=True))
        await asyncio.sleep(10)
        assert sorted(everything.taken()) == [(container_id, None, 0) for container_id in sorted(ids)]
        assert sorted(some.taken()) == [(container_id, None, 0) for container_id in sorted(ids[:2])]
        account.set(ids[0], 1)
        await asyncio.sleep(10)
        assert everything.taken() == some.taken() == [(ids[0], 0, 1)]
        account.delete(ids[0])
        account.delete(ids[1])
        await asyncio.sleep(10)
        assert sorted(some.taken()) == [(ids[0], 1, None), (ids[1], 0, None)]
        assert some.task.done()
        await everything.stop()

    virtually(run, count=4)


def test_initial_state_of_a_container_that_is_gone_already_is_no_change() -> None:
    async def run(account: Account) -> None:
        reader = Reader(account.containers().watch([10**6], initial=True))
        await asyncio.sleep(100)
        assert reader.taken() == []
        assert reader.task.done()

    virtually(run, count=1)
