"""The wait that polls for all others: its cancellation, and the state that remains after it."""

from __future__ import annotations

import asyncio
from collections import Counter

from polling import asked, cancel, running, start_waits
from virtual import Account, virtually

from netmind_rentgpu.waiting.snapshots import Snapshots
from netmind_rentgpu.wire.messages import RawResponse, Request


def cancel_after(steps: int, *, lag: float, count: int = 12) -> tuple[list[str | None], int]:
    """Cancel the leader after some steps of the loop, and check that the other waits are served.

    Returns:
        The markers of the pages that the first poll round was answered with, and how many pages it asked for.
    """
    markers: list[str | None] = []
    pages = 0

    async def keep(request: Request) -> RawResponse | None:
        if request.query:
            markers.append(request.query.get("marker"))
        return None

    async def run(account: Account) -> None:
        nonlocal pages
        account.lag, account.meets = lag, keep
        containers = account.containers()
        tasks = {
            container_id: asyncio.create_task(containers.wait(container_id, until=running, timeout=100))
            for container_id in account.truth
        }
        for _ in range(steps):
            await asyncio.sleep(0)
        leader = containers._poller._leader
        assert leader is not None
        assert leader.ids is not None
        tasks.pop(*leader.ids).cancel()
        await asyncio.sleep(0.1)
        first_look, pages = len(markers), asked(account).count("L")
        for container_id in account.truth:
            account.set(container_id, 1)
        assert [(await task).id for task in tasks.values()] == list(tasks)
        del markers[first_look:]

    virtually(run, count=count)
    return markers, pages


def test_walk_of_a_cancelled_leader_goes_on_from_its_marker() -> None:
    counts: set[int] = set()
    for steps in range(1, 40):
        markers, pages = cancel_after(steps, lag=0)
        assert markers == [None, "102", "105", "108"]
        counts.add(pages)
    # Only the request that was under way is sent again.
    assert counts == {4, 5}


def test_leader_cancelled_during_gets_by_id_leaves_other_waits_served() -> None:
    for steps in range(1, 80):
        cancel_after(steps, lag=1000, count=20)


def test_cancelling_all_waits_at_once_stops_polling() -> None:
    for lag in (0, 1000):

        async def run(account: Account, lag: float = lag) -> None:
            account.lag = lag
            tasks = start_waits(account, *account.truth)
            for moment in range(30):
                await asyncio.sleep(0.007)
                if moment == 25:
                    await cancel(*tasks)
                    assert account.running == 0
            count = len(account.asked)
            await asyncio.sleep(100)
            assert len(account.asked) == count

        virtually(run, count=30)


def test_leader_that_is_done_causes_no_repeated_gets() -> None:
    async def run(account: Account) -> None:
        account.lag = 1000
        account.latency = 1
        ids = list(account.truth)
        for container_id in ids:
            account.set(container_id, 1)
        await asyncio.gather(*start_waits(account, *ids))
        times = Counter(request for request in asked(account) if request != "L")
        assert set(times.values()) == {1}
        assert len(times) == len(ids)

    virtually(run, count=30)


def test_snapshots_without_subscribers_are_dropped() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        snapshots: Snapshots = containers._poller._snapshots
        ids = list(account.truth)
        account.lag = 1000

        async def read() -> None:
            async for _ in containers.watch():
                pass

        reading = asyncio.create_task(read())
        first = asyncio.create_task(containers.wait_all(ids[:6], until=running, timeout=100))
        await asyncio.sleep(3)
        assert set(snapshots._entries) >= set(ids[:6])
        account.lag = 0
        await asyncio.sleep(20)
        assert set(snapshots._entries) == set(ids)
        assert containers._poller._poller._unlisted == {}
        await cancel(reading)
        assert set(snapshots._entries) == set(ids[:6])
        for container_id in ids:
            account.set(container_id, 1)
        await first
        for kept in (snapshots._entries, snapshots._askers, snapshots._owed, snapshots._touched):
            assert kept == {}
        assert containers._poller._poller._unlisted == {}
        assert containers._poller._poller._pages == {}

    virtually(run, count=12)
