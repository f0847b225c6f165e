"""The evidence of answers: late answers, unchanged pages, lists that lag or move, and calls of our own."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any

import pytest
from polling import cancel, running
from virtual import Account, answered, virtually

from netmind_rentgpu.conditions import gone, has_ssh, status_in
from netmind_rentgpu.errors import ContainerFailedError, ContainerGoneError, WaitTimeoutError
from netmind_rentgpu.models import Container
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.waiting.snapshots import KnownPage, Snapshots, Subscription
from netmind_rentgpu.wire.messages import RawResponse, Request


def watched(containers: AsyncContainers, ids: list[int] | None = None) -> tuple[asyncio.Task[None], list[Any]]:
    """Watch containers; return the task, and the changes that it reads as statuses before and after."""
    read: list[Any] = []

    async def run() -> None:
        async for change in containers.watch(ids):
            before, after = change.before, change.after
            read.append((change.container_id, before and before.status, after and after.status))

    return asyncio.create_task(run()), read


@pytest.mark.parametrize("moment", [20, 21, 22, 23, 24.5])
def test_unchanged_page_reports_a_container_that_changed_and_changed_back(moment: float) -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        moved, *_ = account.truth
        for container_id in account.truth:
            account.set(container_id, 1, "ssh root@h -p 1")

        async def meets(request: Request) -> RawResponse | None:
            if request.method == "POST":
                account.set(moved, 2, "")
                return answered(200, account.truth[moved])
            return None

        reading, read = watched(containers)
        await asyncio.sleep(moment)
        account.meets = meets
        await containers.restart(moved)
        waiting = asyncio.create_task(containers.wait(moved, until=has_ssh, timeout=100))
        await asyncio.sleep(0.1)
        # By now a get has seen the restart. The list never will.
        account.set(moved, 1, "ssh root@h -p 1")
        assert (await waiting).status == 1
        assert read == [(moved, 1, 2), (moved, 2, 1)]
        await cancel(reading)

    virtually(run, count=9)


def test_wait_begun_while_an_unchanged_page_is_in_flight_is_served() -> None:
    async def run(account: Account) -> None:
        account.latency = 0.2
        containers = account.containers()
        ids = list(account.truth)
        others = [
            asyncio.create_task(containers.wait(container_id, until=running, timeout=1000)) for container_id in ids
        ]
        await asyncio.sleep(40)
        count = len(account.asked)
        while len(account.asked) == count:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert (await containers.wait(ids[0], until=status_in(0), timeout=3)).id == ids[0]
        await cancel(*others)

    virtually(run, count=3)


def test_late_answer_to_a_get_does_not_overtake_a_newer_page() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        first, slow, other = ids[2], ids[5], ids[8]
        everything = asyncio.create_task(containers.wait_all(ids, until=running, timeout=1e6))
        await asyncio.sleep(5)
        await cancel(everything)
        late = False

        async def meets(request: Request) -> RawResponse | None:
            nonlocal late
            if request.path.endswith(str(slow)):
                await asyncio.sleep(0.03)
            if request.path.endswith(str(first)) and late:
                late, old = False, dict(account.truth[first])
                await asyncio.sleep(0.12)
                return answered(200, old)
            return None

        async def one_and_then_all() -> None:
            await containers.wait(slow, until=running, timeout=100)
            account.set(first, 5)
            await containers.wait_all(ids, until=running, timeout=100)

        account.meets = meets
        leading = asyncio.create_task(one_and_then_all())
        await asyncio.sleep(0.1)
        reading, read = watched(containers, [first])
        waiting = asyncio.create_task(containers.wait(other, until=running, timeout=100))
        await asyncio.sleep(5)
        account.set(slow, 1)
        late = True
        await asyncio.sleep(40)
        assert read == [(first, 0, 5)]
        assert not late
        await cancel(reading, leading, waiting)

    virtually(run, count=60)


def test_answer_requested_later_counts_more_than_an_earlier_one() -> None:
    snapshots = Snapshots(lambda raw: Container(id=raw["id"], status=raw["status"]), lag=30)
    subscription = Subscription({1})
    snapshots.subscribe(subscription, since=0)

    def statuses() -> list[int | None]:
        return [container and container.status for container in subscription.taken().values()]

    page = KnownPage(b"", (1,), 1, asked=5)
    assert snapshots.take(1, {"id": 1, "status": 1}, 5, page=page)
    assert statuses() == [1]
    assert snapshots.holds(page)
    # The page came again as it was.
    page.asked = 9
    assert snapshots.take(1, {"id": 1, "status": 0}, 7, page=None)
    assert snapshots.take_gone(1, 8)
    assert statuses() == []
    assert snapshots.holds(page)
    # A subscription that begins then gets the newest state, whatever is answered next.
    late = Subscription({1})
    assert snapshots.subscribe(late, since=10) == {1}
    assert not snapshots.holds(page)
    assert snapshots.take(1, {"id": 1, "status": 0}, 8, page=None)
    assert late.taken()[1] is not None
    assert snapshots.take(1, {"id": 1, "status": 2}, 12, page=None)
    assert statuses() == [2]
    assert not snapshots.holds(page)


def test_reordered_list_reports_no_false_change() -> None:
    for seed in range(10):

        async def run(account: Account, seed: int = seed) -> None:
            random = Random(seed)
            random.shuffle(account.order)
            containers = account.containers()

            async def move() -> None:
                while True:
                    await asyncio.sleep(0.02)
                    account.order.insert(random.randrange(30), account.order.pop(random.randrange(30)))

            moving = asyncio.create_task(move())
            reading, read = watched(containers)
            await asyncio.sleep(20)
            assert read == []
            new = account.create()
            await asyncio.sleep(20)
            assert read == [(new, None, 0)]
            await cancel(moving, reading)

        virtually(run, count=30)


def test_list_that_never_ends_is_watched() -> None:
    async def run(account: Account) -> None:
        async def meets(request: Request) -> RawResponse | None:
            # Something new at every walk, which meets it in no order.
            if request.query:
                account.random.shuffle(account.order)
                if "marker" not in request.query:
                    account.create()
            return None

        account.meets = meets
        reading, read = watched(account.containers())
        await asyncio.sleep(120)
        assert read
        await cancel(reading)

    virtually(run, count=5, page=3)


def test_list_that_still_shows_a_deleted_container_is_not_believed() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        await asyncio.sleep(30)
        account.lag = 20
        for container_id in ids:
            account.set(container_id, 1, "ssh root@h -p 1")

        async def meets(request: Request) -> RawResponse | None:
            if request.method == "DELETE":
                account.delete(ids[0])
                return answered(200, None)
            return None

        account.meets = meets
        await containers.delete(ids[0])
        with pytest.raises(ContainerGoneError):
            await containers.wait_all(ids[:3], until=has_ssh, timeout=5)

    virtually(run, count=6)


def test_container_wrongly_reported_gone_is_reported_again() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        (container_id, *_) = account.truth
        mistaken = True

        async def meets(request: Request) -> RawResponse | None:
            nonlocal mistaken
            if mistaken and request.path.endswith(str(container_id)):
                mistaken = False
                return answered(404, {"detail": "Not Found"})
            return None

        account.meets = meets
        reading, read = watched(containers)
        await asyncio.sleep(10)
        account.order.remove(container_id)  # for one poll round, so that it is got by id
        await asyncio.sleep(6)
        account.order.insert(0, container_id)
        await asyncio.sleep(3600)
        assert not mistaken
        assert read == [(container_id, 0, None), (container_id, None, 0)]
        account.set(container_id, 5)
        await asyncio.sleep(20)
        assert read[2:] == [(container_id, 0, 5)]
        await cancel(reading)

    virtually(run, count=4)


def test_wait_for_a_rarely_polled_container_gets_its_current_state() -> None:
    async def run(account: Account) -> None:
        # The list shows none of them, so that each has its turn.
        account.lag = 1e6
        containers = account.containers()
        ids = list(account.truth)
        everything = asyncio.create_task(containers.wait_all(ids, until=status_in(9), timeout=1e5))
        await asyncio.sleep(600)
        for container_id in ids:
            account.set(container_id, 5)
        await asyncio.sleep(6)
        assert {(await containers.wait(container_id, until=lambda _: True)).status for container_id in ids[::20]} == {5}
        await cancel(everything)

    virtually(run, count=1000, page=100)


def test_container_failure_reports_all_containers_of_the_same_round() -> None:
    async def run(account: Account) -> None:
        ids = list(account.truth)
        account.set(ids[0], 3)
        for container_id in ids[1:3]:
            account.set(container_id, 1)
        with pytest.raises(ContainerFailedError) as caught:
            await account.containers().wait_all(ids, until=running, fail=status_in(3))
        assert caught.value.container.id == ids[0]
        assert list(caught.value.arrived) == ids[1:3]
        last = caught.value.pending[ids[3]]
        assert last is not None
        assert list(caught.value.pending) == [ids[3]]

    virtually(run, count=4, page=5)


def test_old_failure_is_not_the_cause_of_a_later_timeout() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        (container_id,) = account.truth

        async def fails(_: Request) -> RawResponse | None:
            return answered(502, {})

        async def hangs(_: Request) -> RawResponse | None:
            await asyncio.sleep(1000)
            return None

        account.meets = fails
        with pytest.raises(WaitTimeoutError) as caught:
            await containers.wait(container_id, until=running, timeout=3)
        assert caught.value.__cause__ is not None
        account.meets = None
        await asyncio.sleep(3600)
        account.meets = fails
        reading, _ = watched(containers)
        await asyncio.sleep(290)
        assert not reading.done()
        await cancel(reading)
        account.meets = hangs
        with pytest.raises(WaitTimeoutError) as caught:
            await containers.wait(container_id, until=running, timeout=3)
        assert caught.value.__cause__ is None

    virtually(run, count=1)


@pytest.mark.parametrize("call", ["stop", "restart", "delete"])
def test_container_changed_by_our_own_call_is_polled_anew(call: str) -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        for container_id in ids:
            account.set(container_id, 1, "ssh root@h -p 1")

        async def meets(request: Request) -> RawResponse | None:
            if request.method == "GET":
                return None
            if call == "delete":
                account.delete(ids[0])
            else:
                account.set(ids[0], 2)
            return answered(200, account.truth.get(ids[0], {"id": ids[0], "name": "n"}))

        account.meets = meets
        others = [asyncio.create_task(containers.wait(container_id, until=status_in(9))) for container_id in ids]
        await asyncio.sleep(0.2)
        await getattr(containers, call)(ids[0])
        if call == "delete":
            with pytest.raises(ContainerGoneError):
                await containers.wait(ids[0], until=has_ssh)
            assert (await containers.wait(ids[0], until=gone)).id == ids[0]
        else:
            with pytest.raises(WaitTimeoutError) as caught:
                await containers.wait(ids[0], until=has_ssh, timeout=5)
            last = caught.value.pending[ids[0]]
            assert last is not None
            assert last.status == 2
        await cancel(*others)

    virtually(run, count=4)


def test_answer_requested_before_our_own_call_does_not_count() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        account.set(ids[0], 1, "ssh root@h -p 1")
        old = json.dumps(list(account.truth.values())[:3]).encode()
        slow = True

        async def meets(request: Request) -> RawResponse | None:
            nonlocal slow
            if request.method == "POST":
                account.set(ids[0], 2)
                return answered(200, account.truth[ids[0]])
            if slow:
                # The page is made, and the answer takes its time.
                slow = False
                await asyncio.sleep(1)
                return RawResponse(200, {}, old)
            return None

        account.meets = meets
        both = asyncio.create_task(containers.wait_all(ids, until=has_ssh, timeout=5))
        await asyncio.sleep(0.5)
        await containers.restart(ids[0])
        with pytest.raises(WaitTimeoutError) as caught:
            await both
        assert caught.value.arrived == {}
        last = caught.value.pending[ids[0]]
        assert last is not None
        assert last.status == 2

    virtually(run, count=3)
