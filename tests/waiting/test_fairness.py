"""Fairness among waits: failing containers, slow pages and steady new waits delay no other wait."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hostile import CONTAINER, Hostile, answer, stall
from polling import asked, cancel, running
from virtual import Account, answered, virtually

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.conditions import has_ssh, status_in
from netmind_rentgpu.errors import ClientStateError, WaitTimeoutError
from netmind_rentgpu.wire.messages import RawResponse, Request


@pytest.mark.parametrize("bad_answer", [answered(500, {}), answered(200, None), answered(403, {}), answered(400, {})])
@pytest.mark.parametrize("listed", [False, True])
def test_container_that_cannot_be_got_delays_no_other_wait(bad_answer: RawResponse, listed: bool) -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        bad = 999

        async def meets(request: Request) -> RawResponse | None:
            return bad_answer if request.path.endswith(str(bad)) else None

        account.meets = meets
        account.lag = 0 if listed else 1e6
        tasks = [asyncio.create_task(containers.wait(container_id, until=running, timeout=600)) for container_id in ids]
        await asyncio.sleep(10)
        poison = asyncio.create_task(containers.wait(bad, until=running, timeout=60))
        await asyncio.sleep(1)
        for container_id in ids:
            account.set(container_id, 1)
        began = account.loop.time()
        assert [(await task).id for task in tasks] == ids
        assert account.loop.time() < began + 12
        with pytest.raises(WaitTimeoutError) as caught:
            await poison
        assert caught.value.__cause__ is not None

    virtually(run, count=20)


def test_many_containers_that_cannot_be_got_do_not_starve_others() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        account.lag = 1e6
        (good,) = account.truth

        async def meets(request: Request) -> RawResponse | None:
            return None if request.query or request.path.endswith(str(good)) else answered(403, {})

        account.meets = meets
        bad = [
            asyncio.create_task(containers.wait(container_id, until=running, timeout=100))
            for container_id in range(900, 940)
        ]
        await asyncio.sleep(1)
        waiting = asyncio.create_task(containers.wait(good, until=running, timeout=100))
        await asyncio.sleep(20)
        account.set(good, 1)
        assert (await waiting).status == 1
        assert account.loop.time() < 40
        await cancel(*bad)

    virtually(run, count=1)


def test_service_that_fails_altogether_is_polled_less() -> None:
    async def run(account: Account) -> None:
        async def meets(_: Request) -> RawResponse | None:
            return answered(502, {})

        containers = account.containers()
        waiting = asyncio.create_task(containers.wait_all(range(900, 930), until=running, timeout=100))
        await asyncio.sleep(1)
        account.lag = 1e6
        account.meets = meets
        await asyncio.sleep(20)
        account.asked.clear()
        await asyncio.sleep(50)
        # About eleven rounds, each of a page that is tried twice.
        assert len(account.asked) < 50
        await cancel(waiting)

    virtually(run, count=3)


@pytest.mark.parametrize("order", range(4))
def test_retry_after_of_one_failed_get_among_several_is_honoured(order: int) -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        account.lag = 1e6
        limited_at = 0.0

        async def meets(request: Request) -> RawResponse | None:
            nonlocal limited_at
            if request.query:
                return None
            await asyncio.sleep(1 - account.loop.time() % 1)
            if limited_at:
                return None
            if request.path.endswith(str(ids[order])):
                limited_at = account.loop.time()
                account.asked.clear()
                return RawResponse(429, {"retry-after": "300"}, b"{}")
            return answered(409, {}) if account.loop.time() < 20 else None

        account.meets = meets
        waiting = asyncio.create_task(containers.wait_all(ids, until=running, timeout=1000))
        await asyncio.sleep(290)
        assert limited_at
        assert account.asked == []
        await cancel(waiting)

    virtually(run, count=8)


def test_walk_with_slow_pages_completes() -> None:
    async def run(account: Account) -> None:
        async def meets(request: Request) -> RawResponse | None:
            markers.append(request.query.get("marker"))
            await asyncio.sleep(5.5)
            return None

        markers: list[str | None] = []
        account.meets = meets
        ids = list(account.truth)
        for container_id in ids:
            account.set(container_id, 1)
        assert len(await account.containers().wait_all(ids, until=running, timeout=600)) == 12
        assert len(markers) == 4

    virtually(run, count=12)


def test_walk_resumes_after_a_retry_after() -> None:
    async def run(account: Account) -> None:
        markers: list[str | None] = []
        count = 0

        async def meets(request: Request) -> RawResponse | None:
            nonlocal count
            count += 1
            if count % 2:
                return RawResponse(429, {"retry-after": "6"}, b"{}")
            markers.append(request.query.get("marker"))
            return None

        account.meets = meets
        ids = list(account.truth)
        for container_id in ids:
            account.set(container_id, 1)
        assert len(await account.containers().wait_all(ids, until=running, timeout=600)) == 12
        assert markers == [None, "102", "105", "108"]

    virtually(run, count=12)


@pytest.mark.parametrize("between", [0.03, 0.05])
def test_steady_stream_of_new_waits_does_not_starve_an_earlier_wait(between: float) -> None:
    async def run(account: Account) -> None:
        account.latency = 0.1
        containers = account.containers()
        ids = list(account.truth)
        # The account's size is known from then on.
        many = asyncio.create_task(containers.wait_all(ids[400:], until=running, timeout=1e5))
        await asyncio.sleep(40)
        await cancel(many)
        waiting = asyncio.create_task(containers.wait(ids[0], until=running, timeout=600))
        await asyncio.sleep(7)
        others: list[asyncio.Task[Any]] = []

        async def come() -> None:
            for container_id in ids[1:]:
                others.append(asyncio.create_task(containers.wait(container_id, until=status_in(0), timeout=100)))
                await asyncio.sleep(between)

        coming = asyncio.create_task(come())
        await asyncio.sleep(2)
        account.set(ids[0], 1)
        ready = account.loop.time()
        await waiting
        assert account.loop.time() < ready + 10
        await coming
        await asyncio.wait(others)
        assert [task.result().id for task in others] == ids[1:]

    virtually(run, count=600, page=2)


def test_new_watches_of_all_do_not_restart_the_walk() -> None:
    async def run(account: Account) -> None:
        account.latency = 0.05
        containers = account.containers()
        ids = list(account.truth)
        waiting = asyncio.create_task(containers.wait_all(ids, until=running, timeout=1e5))
        await asyncio.sleep(20)
        for container_id in ids:
            account.set(container_id, 1)
        began = account.loop.time()
        seen: list[Any] = []

        async def read() -> None:
            async for change in containers.watch():
                seen.append(change)

        readers: list[asyncio.Task[None]] = []
        while not waiting.done():
            readers.append(asyncio.create_task(read()))
            await asyncio.sleep(2)
        # A walk takes five seconds.
        assert account.loop.time() < began + 15
        await asyncio.sleep(20)
        account.set(ids[7], 2)
        await asyncio.sleep(20)
        assert [change.container_id for change in seen if change.after.status == 2] == [ids[7]] * len(readers)
        await cancel(*readers)

    virtually(run, count=1000, page=10)


@pytest.mark.parametrize("wanted", [200, 1000, 3000])
def test_containers_beyond_the_first_page_are_walked_to(wanted: int) -> None:
    async def run(account: Account) -> None:
        ids = list(account.truth)[100:]
        account.latency = 0.0001
        waiting = asyncio.create_task(account.containers().wait_all(ids, until=running, timeout=1e6))
        await asyncio.sleep(1)
        assert set(asked(account)) == {"L"}
        await cancel(waiting)

    virtually(run, count=wanted + 100, page=100)


def test_pages_are_kept_only_while_rounds_need_them() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        waiting = asyncio.create_task(containers.wait(next(iter(account.truth)), until=running, timeout=1e6))
        for _ in range(40):
            new = [account.create() for _ in range(12)]
            await containers.wait_all(new, until=status_in(0), timeout=100)
            for container_id in new:
                account.delete(container_id)
            await asyncio.sleep(7)
            assert len(containers._poller._poller._pages) <= 4
            assert len(containers._poller._snapshots._shown) <= 15
        await cancel(waiting)

    virtually(run, count=2, page=5)


async def test_unanswered_request_does_not_use_up_the_deadline_of_a_wait() -> None:
    found = answer({**CONTAINER, "ssh": "ssh root@h -p 1"})
    async with Hostile([stall, found]) as server, AsyncRentGPU("token", base_url=server.url) as gpu:
        gpu.containers._poller._poller.first_read_timeout = 0.2
        began = time.monotonic()
        assert (await gpu.containers.wait(1, until=has_ssh, timeout=50)).id == 1
        assert time.monotonic() < began + 40


async def test_closed_client_ends_waits_that_sleep() -> None:
    async with Hostile([answer({}, 429, **{"Retry-After": "3000"})]) as server:
        gpu = AsyncRentGPU("token", base_url=server.url)
        waits = [
            asyncio.create_task(gpu.containers.wait(container_id, until=has_ssh, timeout=600))
            for container_id in (1, 2)
        ]
        while gpu.containers._poller._nap is None:
            await asyncio.sleep(0.001)
        await gpu.close()
        async with asyncio.timeout(30):
            for task in waits:
                with pytest.raises(ClientStateError):
                    await task
