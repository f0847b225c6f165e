"""Poll rounds that fail: their retries, the errors of waits, and the pauses that the service asks for."""

from __future__ import annotations

import asyncio
import json

import pytest
from polling import cancel, running, start_waits
from virtual import Account, answered, virtually

from netmind_rentgpu.conditions import status_in
from netmind_rentgpu.errors import APIConnectionError, ClientStateError, WaitTimeoutError
from netmind_rentgpu.models import Container
from netmind_rentgpu.wire.messages import RawResponse, Request


def test_failed_round_is_only_the_cause_of_a_wait_that_times_out() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        (container_id,) = account.truth

        async def meets(_: Request) -> RawResponse | None:
            raise APIConnectionError("reset", maybe_processed=True)

        account.meets = meets
        task = asyncio.create_task(containers.wait(container_id, until=running, timeout=20))
        with pytest.raises(WaitTimeoutError) as caught:
            await task
        assert isinstance(caught.value.__cause__, APIConnectionError)
        assert caught.value.pending == {container_id: None}
        assert account.loop.time() == pytest.approx(20, abs=0.1)
        account.meets = None
        account.asked.clear()
        with pytest.raises(WaitTimeoutError) as caught:
            await containers.wait(container_id, until=running, timeout=20)
        assert caught.value.__cause__ is None

    virtually(run, count=1)


def test_round_that_failed_halfway_resumes_from_its_marker() -> None:
    async def run(account: Account) -> None:
        failures = iter([False, True, True, True, False])

        async def meets(request: Request) -> RawResponse | None:
            if next(failures, False):
                raise APIConnectionError("reset", maybe_processed=True)
            markers.append(request.query.get("marker"))
            return None

        markers: list[str | None] = []
        account.meets = meets
        ids = list(account.truth)
        tasks = start_waits(account, *ids)
        await asyncio.sleep(1.5)
        assert markers[:3] == [None, str(ids[2]), str(ids[5])]
        await cancel(*tasks)

    virtually(run, count=9)


def test_failed_get_is_retried_and_leaves_other_waits_alone() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        account.lag = 1000
        bad = True

        async def meets(request: Request) -> RawResponse | None:
            if bad and request.path.endswith(str(ids[0])):
                return answered(502, {})
            return None

        account.meets = meets
        tasks = [
            asyncio.create_task(containers.wait(container_id, until=status_in(0), timeout=100)) for container_id in ids
        ]
        await asyncio.wait(tasks[1:])
        assert [task.result().id for task in tasks[1:]] == ids[1:]
        assert not tasks[0].done()
        bad = False
        assert (await tasks[0]).id == ids[0]

    virtually(run, count=20)


def test_retry_after_pauses_all_polling() -> None:
    async def run(account: Account) -> None:
        async def meets(_: Request) -> RawResponse | None:
            return RawResponse(429, {"retry-after": "300"}, b"{}") if account.loop.time() < 1 else None

        account.meets = meets
        tasks = start_waits(account, *account.truth)
        await asyncio.sleep(299)
        assert len(account.asked) == 1
        containers = account.containers()
        assert containers is not None
        await asyncio.sleep(10)
        assert len(account.asked) > 1
        await cancel(*tasks)

    virtually(run, count=4)


def test_wait_begun_during_a_retry_after_sends_nothing() -> None:
    async def run(account: Account) -> None:
        async def meets(_: Request) -> RawResponse | None:
            return RawResponse(429, {"retry-after": "300"}, b"{}") if account.loop.time() < 1 else None

        account.meets = meets
        containers = account.containers()
        ids = list(account.truth)
        first = asyncio.create_task(containers.wait(ids[0], until=running, timeout=1000))
        await asyncio.sleep(100)
        second = asyncio.create_task(containers.wait(ids[1], until=running, timeout=1000))
        await asyncio.sleep(100)
        assert len(account.asked) == 1
        await cancel(first, second)

    virtually(run, count=4)


def test_deadline_ends_a_hanging_request() -> None:
    async def run(account: Account) -> None:
        async def meets(_: Request) -> RawResponse | None:
            await asyncio.sleep(10_000)
            return None

        account.meets = meets
        (task,) = start_waits(account, *account.truth, timeout=7)
        with pytest.raises(WaitTimeoutError):
            await task
        assert account.loop.time() == pytest.approx(7)
        assert account.running == 0

    virtually(run, count=1)


def test_answer_that_is_no_list_is_retried() -> None:
    async def run(account: Account) -> None:
        async def meets(request: Request) -> RawResponse | None:
            return answered(200, {"id": 5}) if request.query and account.loop.time() < 3 else None

        account.meets = meets
        for container_id in account.truth:
            account.set(container_id, 1)
        assert [(await task).status for task in start_waits(account, *account.truth)] == [1] * 4

    virtually(run, count=4)


def test_item_without_an_id_hides_no_other_item() -> None:
    async def run(account: Account) -> None:
        ids = list(account.truth)

        async def meets(request: Request) -> RawResponse | None:
            if request.query and "marker" not in request.query:
                items = [account.truth[ids[0]], {"name": "nameless"}, account.truth[ids[2]]]
                return RawResponse(200, {}, json.dumps(items).encode())
            return None

        account.meets = meets
        account.set(ids[2], 1)
        assert (await asyncio.gather(*start_waits(account, ids[2])))[0].status == 1

    virtually(run, count=6)


def test_closed_client_ends_every_wait() -> None:
    async def run(account: Account) -> None:
        tasks = start_waits(account, *account.truth)
        await asyncio.sleep(1)
        account.closed = True
        done, _ = await asyncio.wait(tasks, timeout=100)
        assert len(done) == 4
        assert all(isinstance(task.exception(), ClientStateError) for task in tasks)
        with pytest.raises(ClientStateError):
            await account.containers().wait(1, until=running)

    virtually(run, count=4)


def test_condition_that_raises_ends_only_its_own_wait() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)

        def broken(container: Container) -> bool:
            raise TimeoutError(f"mine, about {container.id}")

        bad = asyncio.create_task(containers.wait(ids[0], until=broken))
        good = [asyncio.create_task(containers.wait(container_id, until=running)) for container_id in ids]
        with pytest.raises(TimeoutError, match=f"mine, about {ids[0]}") as caught:
            await bad
        assert not isinstance(caught.value, WaitTimeoutError)
        for container_id in ids:
            account.set(container_id, 1)
        assert [container.id for container in await asyncio.gather(*good)] == ids

    virtually(run, count=4)
