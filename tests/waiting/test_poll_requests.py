"""The poll rounds that all waits share: their requests, and the cost of unchanged answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from polling import asked, cancel, running, start_waits
from virtual import Account, answered, virtually

from netmind_rentgpu.conditions import status_in
from netmind_rentgpu.errors import ContainerGoneError
from netmind_rentgpu.models import Container, PaymentType
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.waiting.snapshots import Subscription
from netmind_rentgpu.wire.codec import Codec
from netmind_rentgpu.wire.messages import RawResponse, Request


def test_waits_begun_together_share_the_first_round() -> None:
    async def run(account: Account) -> None:
        tasks = start_waits(account, *account.truth)
        await asyncio.sleep(0.2)
        # Three containers are on a page, and no wanted container stands behind the last.
        assert asked(account) == ["L"] * 4
        await cancel(*tasks)

    virtually(run, count=12)


def test_poll_round_ends_with_the_last_wanted_container() -> None:
    async def run(account: Account) -> None:
        tasks = start_waits(account, *list(account.truth)[:5])
        await asyncio.sleep(0.2)
        assert asked(account) == ["L"] * 2
        await cancel(*tasks)

    virtually(run, count=12)


def test_wait_begun_during_a_round_joins_that_round() -> None:
    async def run(account: Account) -> None:
        ids = list(account.truth)
        containers = account.containers()

        def wait(container_id: int) -> asyncio.Task[Container]:
            return asyncio.create_task(containers.wait(container_id, until=running))

        tasks = [wait(container_id) for container_id in ids[:9]]
        while len(account.asked) < 2:
            await asyncio.sleep(0.001)
        # Containers that the poll round has not reached, and a container that it has passed.
        tasks += [wait(container_id) for container_id in (*ids[9:], ids[0])]
        await asyncio.sleep(0.15)
        assert asked(account) == ["L"] * 4 + [str(ids[0])]
        await cancel(*tasks)

    virtually(run, count=12)


def creating(account: Account, containers: AsyncContainers, seconds: float) -> Callable[[], Awaitable[int]]:
    """Answer creates after some seconds; return a function that sends a create and returns the container's id."""

    async def meet(request: Request) -> RawResponse | None:
        if request.method != "POST":
            return None
        await asyncio.sleep(seconds)
        return answered(200, account.truth[account.create()])

    async def create() -> int:
        made = await containers.create(
            name="n", auth_id=1, node_name="node", image_template_id=1, payment_type=PaymentType.USD
        )
        return made.id

    account.meets = meet
    return create


def test_containers_being_created_join_the_first_round() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        create = creating(account, containers, 0.1)

        async def create_and_wait(after: float) -> Container:
            await asyncio.sleep(after)
            return await containers.wait(await create(), until=running)

        tasks = [asyncio.create_task(create_and_wait(after / 50)) for after in range(6)]
        await asyncio.sleep(0.4)
        # Six creates, each of which would have begun a poll round of its own, and two pages.
        assert asked(account) == ["L"] * 8
        assert len(account.truth) == 6
        await cancel(*tasks)

    virtually(run)


def test_poll_round_does_not_wait_long_for_a_slow_create() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        making = asyncio.create_task(creating(account, containers, 1000)())
        await asyncio.sleep(0.1)
        [only] = account.truth
        task = asyncio.create_task(containers.wait(only, until=running))
        await asyncio.sleep(0.3)
        assert asked(account) == ["L", str(only)]
        # Nor does any later round wait.
        account.set(only, 1)
        assert (await task).status == 1
        assert account.loop.time() < 1.2
        await cancel(making)

    virtually(run, count=1)


def test_later_wait_reuses_known_containers_and_gets_unknown_ones() -> None:
    async def run(account: Account) -> None:
        ids = list(account.truth)
        containers = account.containers()
        others = [asyncio.create_task(containers.wait(container_id, until=running)) for container_id in ids[:6]]
        await asyncio.sleep(0.1)
        assert asked(account) == ["L"] * 2
        # Another wait saw this container a moment ago.
        assert (await containers.wait(ids[1], until=status_in(0))).id == ids[1]
        assert asked(account) == ["L"] * 2
        # A container without a wait was on the same page, and was not kept.
        assert (await containers.wait(ids[8], until=status_in(0))).id == ids[8]
        assert asked(account) == ["L", "L", str(ids[8])]
        await cancel(*others)

    virtually(run, count=12)


def test_later_wait_is_not_given_an_outdated_container() -> None:
    async def run(account: Account) -> None:
        ids = list(account.truth)
        containers = account.containers()
        others = [
            asyncio.create_task(containers.wait(container_id, until=running, timeout=1000)) for container_id in ids[:4]
        ]
        await asyncio.sleep(100)
        account.set(ids[0], 7)
        for _ in range(20):
            await asyncio.sleep(0.37)
            # As old as the last poll round, which was at most one interval ago.
            if (await containers.wait(ids[0], until=lambda _: True)).status == 7:
                break
        else:
            pytest.fail("never seen")
        assert account.loop.time() <= 106
        # Once no wait is left, nothing is remembered.
        await cancel(*others)
        account.set(ids[0], 8)
        assert (await containers.wait(ids[0], until=lambda _: True)).status == 8

    virtually(run, count=4)


def test_container_missing_in_the_list_is_got_by_id_before_it_counts_as_gone() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        account.lag = 1000
        ids = list(account.truth)
        tasks = [asyncio.create_task(containers.wait(container_id, until=running, timeout=50)) for container_id in ids]
        await asyncio.sleep(2)
        assert not any(task.done() for task in tasks)
        account.delete(ids[1])
        account.order.remove(ids[1])  # the list lags with new containers, not with deleted containers
        account.set(ids[2], 1)
        await asyncio.sleep(10)
        assert isinstance(tasks[1].exception(), ContainerGoneError)
        assert tasks[2].result().status == 1
        await cancel(*tasks)

    virtually(run, count=5)


def test_many_unlisted_containers_are_got_by_id_in_turns() -> None:
    async def run(account: Account) -> None:
        account.lag = 1000
        ids = list(account.truth)
        containers = account.containers()
        task = asyncio.create_task(containers.wait_all(ids, until=running, timeout=500))
        most = 0

        async def meets(request: Request) -> RawResponse | None:
            nonlocal most
            most = max(most, account.running)
            return None

        account.meets = meets
        await asyncio.sleep(60)
        assert most == 8
        rounds = " ".join(asked(account)).split("L")
        sizes = {len(round_.split()) for round_ in rounds[1:-1]}
        # Seven more may be under way when the last of them is known.
        assert min(sizes) >= 32
        assert max(sizes) <= 32 + 7
        times = Counter(request for request in asked(account) if request != "L")
        assert len(times) == 100
        assert max(times.values()) - min(times.values()) <= 1
        for container_id in ids:
            account.set(container_id, 1)
        assert len(await task) == 100

    virtually(run, count=100)


def test_list_that_became_short_is_polled_by_page_again() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        everything = asyncio.create_task(containers.wait_all(ids, until=running, timeout=10_000))
        await asyncio.sleep(1)
        assert set(asked(account)) == {"L"}
        few = ids[-8:]
        rest = asyncio.create_task(containers.wait_all(few, until=running, timeout=10_000))
        await cancel(everything)
        await asyncio.sleep(10)
        account.asked.clear()
        await asyncio.sleep(10)
        assert set(asked(account)) == set(map(str, few))
        for container_id in ids[:-8]:
            account.delete(container_id)
        # By now the gets have cost more than a walk.
        await asyncio.sleep(1000)
        account.asked.clear()
        await asyncio.sleep(10)
        assert set(asked(account)) == {"L"}
        await cancel(rest)

    virtually(run, count=60, page=5)


def test_few_containers_among_many_are_got_by_id_with_rare_recounts() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        wanted = list(account.truth)[-3:]
        task = asyncio.create_task(containers.wait_all(wanted, until=running, timeout=100_000))
        await asyncio.sleep(10_000)
        pages = asked(account).count("L")
        assert 0 < pages <= len(account.asked) * 0.12
        await cancel(task)

    virtually(run, count=600)


def test_unchanged_pages_are_not_parsed_and_unchanged_containers_not_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[int] = []
    built: list[int] = []
    ids_of, read_one = Codec.ids, Codec.one

    def ids(self: Codec, payload: Any) -> Any:
        parsed.append(payload[0]["id"] if payload else 0)
        return ids_of(self, payload)

    def read(self: Codec, model: Any, payload: Any) -> Any:
        built.append(payload["id"])
        return read_one(self, model, payload)

    monkeypatch.setattr(Codec, "ids", ids)
    monkeypatch.setattr(Codec, "one", read)

    async def run(account: Account) -> None:
        ids = list(account.truth)
        tasks = start_waits(account, *ids)
        await asyncio.sleep(0.1)
        assert parsed == ids[::3]
        assert built == ids
        await asyncio.sleep(100)
        assert len(account.asked) > 40
        assert parsed == ids[::3]
        assert built == ids
        account.set(ids[4], 5)
        await asyncio.sleep(10)
        assert parsed == [*ids[::3], ids[3]]
        assert built == [*ids, ids[4]]
        await cancel(*tasks)

    virtually(run, count=12)


def test_change_wakes_only_the_waits_for_that_container() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        judged: list[int] = []

        def never(container: Container) -> bool:
            judged.append(container.id)
            return False

        tasks = [asyncio.create_task(containers.wait(container_id, until=never)) for container_id in [*ids, ids[3]]]
        await asyncio.sleep(0.1)
        assert sorted(judged) == sorted([*ids, ids[3]])
        steps = Counter[int]()
        until_woken = containers._poller._until_woken

        async def counted(subscription: Subscription, until: float | None) -> None:
            try:
                await until_woken(subscription, until)
            finally:
                assert subscription.ids is not None
                steps.update(subscription.ids)

        containers._poller._until_woken = counted  # type: ignore[method-assign]  # to count the waits that are woken
        judged.clear()
        await asyncio.sleep(50)
        assert judged == []
        account.set(ids[3], 5)
        account.set(ids[7], 5)
        await asyncio.sleep(10)
        assert sorted(judged) == [ids[3], ids[3], ids[7]]
        # They slept before the counting began, so only the next wake-up counts.
        account.set(ids[3], 6)
        await asyncio.sleep(10)
        assert set(steps) <= {ids[3]}
        await cancel(*tasks)

    virtually(run, count=12)
