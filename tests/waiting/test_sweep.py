"""The looks that all waits share: who makes them, what they ask for, and what they cost."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from virtual import Account, answered, virtually

from netmind_rentgpu.conditions import gone, has_ssh, status_in
from netmind_rentgpu.errors import APIConnectionError, ClientStateError, ContainerGoneError, WaitTimeoutError
from netmind_rentgpu.models import Container, PaymentType
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.waiting.snapshots import Seat, Snapshots
from netmind_rentgpu.wire.codec import Codec
from netmind_rentgpu.wire.outcome import Answer, Request


def running(container: Container) -> bool:
    return container.status == 1


def asked(account: Account) -> list[str]:
    """Return what was asked for: L for a page of the list, the id for a container by itself."""
    return [path.rpartition("/")[2] or "L" for path in account.asked]


def waits(account: Account, *ids: int, timeout: float = 1000) -> list[asyncio.Task[Container]]:
    containers = account.containers()
    return [asyncio.create_task(containers.wait(one, until=running, timeout=timeout)) for one in ids]


async def ended(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


# What is asked for.


def test_all_who_begin_together_are_in_the_first_look() -> None:
    async def run(account: Account) -> None:
        tasks = waits(account, *account.truth)
        await asyncio.sleep(0.2)
        # Three on a page, and nothing behind the last one is wanted.
        assert asked(account) == ["L"] * 4
        await ended(*tasks)

    virtually(run, count=12)


def test_a_look_ends_with_the_last_that_is_wanted() -> None:
    async def run(account: Account) -> None:
        tasks = waits(account, *list(account.truth)[:5])
        await asyncio.sleep(0.2)
        assert asked(account) == ["L"] * 2
        await ended(*tasks)

    virtually(run, count=12)


def test_one_who_comes_while_others_look_is_in_the_same_look() -> None:
    async def run(account: Account) -> None:
        ids = list(account.truth)
        containers = account.containers()

        def wait(one: int) -> asyncio.Task[Container]:
            return asyncio.create_task(containers.wait(one, until=running))

        tasks = [wait(one) for one in ids[:9]]
        while len(account.asked) < 2:
            await asyncio.sleep(0.001)
        # Those behind where the look is, and one that it has passed.
        tasks += [wait(one) for one in (*ids[9:], ids[0])]
        await asyncio.sleep(0.15)
        assert asked(account) == ["L"] * 4 + [str(ids[0])]
        await ended(*tasks)

    virtually(run, count=12)


def creating(account: Account, containers: AsyncContainers, seconds: float) -> Callable[[], Awaitable[int]]:
    """Have creates answered after a while; return what sends one, and returns its container's id."""

    async def meet(request: Request) -> Answer | None:
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


def test_what_is_being_created_is_in_the_first_look() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        create = creating(account, containers, 0.1)

        async def create_and_wait(after: float) -> Container:
            await asyncio.sleep(after)
            return await containers.wait(await create(), until=running)

        tasks = [asyncio.create_task(create_and_wait(after / 50)) for after in range(6)]
        await asyncio.sleep(0.4)
        # Six creates, each of which would have begun a look of its own, and two pages.
        assert asked(account) == ["L"] * 8
        assert len(account.truth) == 6
        await ended(*tasks)

    virtually(run)


def test_no_look_waits_long_for_a_create() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        making = asyncio.create_task(creating(account, containers, 1000)())
        await asyncio.sleep(0.1)
        [only] = account.truth
        task = asyncio.create_task(containers.wait(only, until=running))
        await asyncio.sleep(0.3)
        assert asked(account) == ["L", str(only)]
        # Nor does any of those that follow.
        account.set(only, 1)
        assert (await task).status == 1
        assert account.loop.time() < 1.2
        await ended(making)

    virtually(run, count=1)


def test_one_who_comes_later_is_told_what_is_known_and_asks_for_what_is_not() -> None:
    async def run(account: Account) -> None:
        ids = list(account.truth)
        containers = account.containers()
        others = [asyncio.create_task(containers.wait(one, until=running)) for one in ids[:6]]
        await asyncio.sleep(0.1)
        assert asked(account) == ["L"] * 2
        # What others wait for was seen a moment ago.
        assert (await containers.wait(ids[1], until=status_in(0))).id == ids[1]
        assert asked(account) == ["L"] * 2
        # What nobody waits for was on the same page, and was not kept.
        assert (await containers.wait(ids[8], until=status_in(0))).id == ids[8]
        assert asked(account) == ["L", "L", str(ids[8])]
        await ended(*others)

    virtually(run, count=12)


def test_the_old_is_not_told_as_new() -> None:
    async def run(account: Account) -> None:
        ids = list(account.truth)
        containers = account.containers()
        others = [asyncio.create_task(containers.wait(one, until=running, timeout=1000)) for one in ids[:4]]
        await asyncio.sleep(100)
        account.set(ids[0], 7)
        for _ in range(20):
            await asyncio.sleep(0.37)
            # As old as the last look, which was at most one interval ago.
            if (await containers.wait(ids[0], until=lambda _: True)).status == 7:
                break
        else:
            pytest.fail("never seen")
        assert account.loop.time() <= 106
        # Once nobody waits, nothing is remembered.
        await ended(*others)
        account.set(ids[0], 8)
        assert (await containers.wait(ids[0], until=lambda _: True)).status == 8

    virtually(run, count=4)


def test_what_the_list_does_not_show_is_got_by_itself_before_it_is_called_gone() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        account.lag = 1000
        ids = list(account.truth)
        tasks = [asyncio.create_task(containers.wait(one, until=running, timeout=50)) for one in ids]
        await asyncio.sleep(2)
        assert not any(task.done() for task in tasks)
        account.delete(ids[1])
        account.order.remove(ids[1])  # the list is behind with what is new, and not with what is gone
        account.set(ids[2], 1)
        await asyncio.sleep(10)
        assert isinstance(tasks[1].exception(), ContainerGoneError)
        assert tasks[2].result().status == 1
        await ended(*tasks)

    virtually(run, count=5)


def test_of_many_that_the_list_lags_behind_with_some_are_got_at_each_look_and_each_has_its_turn() -> None:
    async def run(account: Account) -> None:
        account.lag = 1000
        ids = list(account.truth)
        containers = account.containers()
        task = asyncio.create_task(containers.wait_all(ids, until=running, timeout=500))
        most = 0

        async def meets(request: Request) -> Answer | None:
            nonlocal most
            most = max(most, account.running)
            return None

        account.meets = meets
        await asyncio.sleep(60)
        assert most == 8
        looks = " ".join(asked(account)).split("L")
        sizes = {len(look.split()) for look in looks[1:-1]}
        # Seven more may be under way when the last of them is known.
        assert min(sizes) >= 32
        assert max(sizes) <= 32 + 7
        times = Counter(one for one in asked(account) if one != "L")
        assert len(times) == 100
        assert max(times.values()) - min(times.values()) <= 1
        for one in ids:
            account.set(one, 1)
        assert len(await task) == 100

    virtually(run, count=100)


def test_of_a_list_that_has_become_short_one_page_is_asked_for_again() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        everything = asyncio.create_task(containers.wait_all(ids, until=running, timeout=10_000))
        await asyncio.sleep(1)
        assert set(asked(account)) == {"L"}
        few = ids[-8:]
        rest = asyncio.create_task(containers.wait_all(few, until=running, timeout=10_000))
        await ended(everything)
        await asyncio.sleep(10)
        account.asked.clear()
        await asyncio.sleep(10)
        assert set(asked(account)) == set(map(str, few))
        for one in ids[:-8]:
            account.delete(one)
        # What gets have cost by now would have paid for a walk.
        await asyncio.sleep(1000)
        account.asked.clear()
        await asyncio.sleep(10)
        assert set(asked(account)) == {"L"}
        await ended(rest)

    virtually(run, count=60, page=5)


def test_the_few_among_many_are_got_by_themselves_and_a_recount_costs_a_tenth() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        wanted = list(account.truth)[-3:]
        task = asyncio.create_task(containers.wait_all(wanted, until=running, timeout=100_000))
        await asyncio.sleep(50_000)
        pages = asked(account).count("L")
        assert 0 < pages <= len(account.asked) * 0.12
        await ended(task)

    virtually(run, count=600)


# What changes nothing costs next to nothing.


def test_a_page_that_is_as_it_was_is_not_parsed_and_what_is_as_it_was_is_not_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[int] = []
    built: list[int] = []
    ids_of, one = Codec.ids, Codec.one

    def ids(self: Codec, payload: Any) -> Any:
        parsed.append(payload[0]["id"] if payload else 0)
        return ids_of(self, payload)

    def read(self: Codec, model: Any, payload: Any) -> Any:
        built.append(payload["id"])
        return one(self, model, payload)

    monkeypatch.setattr(Codec, "ids", ids)
    monkeypatch.setattr(Codec, "one", read)

    async def run(account: Account) -> None:
        ids = list(account.truth)
        tasks = waits(account, *ids)
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
        await ended(*tasks)

    virtually(run, count=12)


def test_only_those_who_wait_for_it_are_woken_by_what_changes() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        judged: list[int] = []

        def never(container: Container) -> bool:
            judged.append(container.id)
            return False

        tasks = [asyncio.create_task(containers.wait(one, until=never)) for one in [*ids, ids[3]]]
        await asyncio.sleep(0.1)
        assert sorted(judged) == sorted([*ids, ids[3]])
        steps = Counter[int]()
        until_woken = containers._sweep._until_woken

        async def counted(seat: Seat, until: float | None) -> None:
            try:
                await until_woken(seat, until)
            finally:
                assert seat.ids is not None
                steps.update(seat.ids)

        containers._sweep._until_woken = counted  # type: ignore[method-assign]  # to see who is woken
        judged.clear()
        await asyncio.sleep(50)
        assert judged == []
        account.set(ids[3], 5)
        account.set(ids[7], 5)
        await asyncio.sleep(10)
        assert sorted(judged) == [ids[3], ids[3], ids[7]]
        # They were asleep before they were counted, so the next time tells.
        account.set(ids[3], 6)
        await asyncio.sleep(10)
        assert set(steps) <= {ids[3]}
        await ended(*tasks)

    virtually(run, count=12)


# When something goes wrong.


def test_a_look_that_fails_is_told_to_nobody_but_as_the_cause_of_a_wait_that_ends() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        (one,) = account.truth

        async def meets(_: Request) -> Answer | None:
            raise APIConnectionError("reset", maybe_processed=True)

        account.meets = meets
        task = asyncio.create_task(containers.wait(one, until=running, timeout=20))
        with pytest.raises(WaitTimeoutError) as caught:
            await task
        assert isinstance(caught.value.__cause__, APIConnectionError)
        assert caught.value.pending == {one: None}
        assert account.loop.time() == pytest.approx(20, abs=0.1)
        account.meets = None
        account.asked.clear()
        with pytest.raises(WaitTimeoutError) as caught:
            await containers.wait(one, until=running, timeout=20)
        assert caught.value.__cause__ is None

    virtually(run, count=1)


def test_a_look_that_fails_half_way_goes_on_where_it_was() -> None:
    async def run(account: Account) -> None:
        failures = iter([False, True, True, True, False])

        async def meets(request: Request) -> Answer | None:
            if next(failures, False):
                raise APIConnectionError("reset", maybe_processed=True)
            markers.append(request.query.get("marker"))
            return None

        markers: list[str | None] = []
        account.meets = meets
        ids = list(account.truth)
        tasks = waits(account, *ids)
        await asyncio.sleep(1.5)
        assert markers[:3] == [None, str(ids[2]), str(ids[5])]
        await ended(*tasks)

    virtually(run, count=9)


def test_a_get_that_fails_leaves_the_others_and_is_tried_again() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        account.lag = 1000
        bad = True

        async def meets(request: Request) -> Answer | None:
            if bad and request.path.endswith(str(ids[0])):
                return answered(502, {})
            return None

        account.meets = meets
        tasks = [asyncio.create_task(containers.wait(one, until=status_in(0), timeout=100)) for one in ids]
        await asyncio.wait(tasks[1:])
        assert [task.result().id for task in tasks[1:]] == ids[1:]
        assert not tasks[0].done()
        bad = False
        assert (await tasks[0]).id == ids[0]

    virtually(run, count=20)


def test_nothing_is_asked_for_as_long_as_the_service_says() -> None:
    async def run(account: Account) -> None:
        async def meets(_: Request) -> Answer | None:
            return Answer(429, {"retry-after": "300"}, b"{}") if account.loop.time() < 1 else None

        account.meets = meets
        tasks = waits(account, *account.truth)
        await asyncio.sleep(299)
        assert len(account.asked) == 1
        # Nor does one who comes meanwhile.
        containers = account.containers()
        assert containers is not None
        await asyncio.sleep(10)
        assert len(account.asked) > 1
        await ended(*tasks)

    virtually(run, count=4)


def test_one_who_comes_while_the_service_wants_to_be_left_alone_does_not_ask_either() -> None:
    async def run(account: Account) -> None:
        async def meets(_: Request) -> Answer | None:
            return Answer(429, {"retry-after": "300"}, b"{}") if account.loop.time() < 1 else None

        account.meets = meets
        containers = account.containers()
        ids = list(account.truth)
        first = asyncio.create_task(containers.wait(ids[0], until=running, timeout=1000))
        await asyncio.sleep(100)
        second = asyncio.create_task(containers.wait(ids[1], until=running, timeout=1000))
        await asyncio.sleep(100)
        assert len(account.asked) == 1
        await ended(first, second)

    virtually(run, count=4)


def test_a_deadline_ends_the_request_that_hangs() -> None:
    async def run(account: Account) -> None:
        async def meets(_: Request) -> Answer | None:
            await asyncio.sleep(10_000)
            return None

        account.meets = meets
        (task,) = waits(account, *account.truth, timeout=7)
        with pytest.raises(WaitTimeoutError):
            await task
        assert account.loop.time() == pytest.approx(7)
        assert account.running == 0

    virtually(run, count=1)


def test_what_is_no_list_is_a_failure_like_any_other() -> None:
    async def run(account: Account) -> None:
        async def meets(request: Request) -> Answer | None:
            return answered(200, {"id": 5}) if request.query and account.loop.time() < 3 else None

        account.meets = meets
        for one in account.truth:
            account.set(one, 1)
        assert [(await task).status for task in waits(account, *account.truth)] == [1] * 4

    virtually(run, count=4)


def test_an_item_that_has_no_id_hides_no_other() -> None:
    async def run(account: Account) -> None:
        ids = list(account.truth)

        async def meets(request: Request) -> Answer | None:
            if request.query and "marker" not in request.query:
                items = [account.truth[ids[0]], {"name": "nameless"}, account.truth[ids[2]]]
                return Answer(200, {}, json.dumps(items).encode())
            return None

        account.meets = meets
        account.set(ids[2], 1)
        assert (await asyncio.gather(*waits(account, ids[2])))[0].status == 1

    virtually(run, count=6)


def test_a_client_that_is_closed_ends_every_wait() -> None:
    async def run(account: Account) -> None:
        tasks = waits(account, *account.truth)
        await asyncio.sleep(1)
        account.closed = True
        done, _ = await asyncio.wait(tasks, timeout=100)
        assert len(done) == 4
        assert all(isinstance(task.exception(), ClientStateError) for task in tasks)
        with pytest.raises(ClientStateError):
            await account.containers().wait(1, until=running)

    virtually(run, count=4)


# Calls of our own.


@pytest.mark.parametrize("call", ["stop", "restart", "delete"])
def test_what_a_call_of_our_own_changed_is_looked_at_anew(call: str) -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        for one in ids:
            account.set(one, 1, "ssh root@h -p 1")

        async def meets(request: Request) -> Answer | None:
            if request.method == "GET":
                return None
            if call == "delete":
                account.delete(ids[0])
            else:
                account.set(ids[0], 2)
            return answered(200, account.truth.get(ids[0], {"id": ids[0], "name": "n"}))

        account.meets = meets
        others = [asyncio.create_task(containers.wait(one, until=status_in(9))) for one in ids]
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
        await ended(*others)

    virtually(run, count=4)


def test_what_was_asked_for_before_a_call_of_our_own_does_not_count() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        account.set(ids[0], 1, "ssh root@h -p 1")
        old = json.dumps(list(account.truth.values())[:3]).encode()
        slow = True

        async def meets(request: Request) -> Answer | None:
            nonlocal slow
            if request.method == "POST":
                account.set(ids[0], 2)
                return answered(200, account.truth[ids[0]])
            if slow:
                # The page is made, and the answer takes its time.
                slow = False
                await asyncio.sleep(1)
                return Answer(200, {}, old)
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


# Who looks.


def cancel_after(steps: int, *, lag: float, count: int = 12) -> tuple[list[str | None], int]:
    """Cancel the one who looks after so many steps of the loop, and see the others served.

    Returns:
        The markers of the pages that this look was answered with, and how many pages it asked for.
    """
    markers: list[str | None] = []
    pages = 0

    async def keep(request: Request) -> Answer | None:
        if request.query:
            markers.append(request.query.get("marker"))
        return None

    async def run(account: Account) -> None:
        nonlocal pages
        account.lag, account.meets = lag, keep
        containers = account.containers()
        tasks = {one: asyncio.create_task(containers.wait(one, until=running, timeout=100)) for one in account.truth}
        for _ in range(steps):
            await asyncio.sleep(0)
        leader = containers._sweep._leader
        assert leader is not None
        assert leader.ids is not None
        tasks.pop(*leader.ids).cancel()
        await asyncio.sleep(0.1)
        first_look, pages = len(markers), asked(account).count("L")
        for one in account.truth:
            account.set(one, 1)
        assert [(await task).id for task in tasks.values()] == list(tasks)
        del markers[first_look:]

    virtually(run, count=count)
    return markers, pages


def test_the_one_who_looks_may_be_cancelled_anywhere_and_the_walk_goes_on_from_its_marker() -> None:
    counts: set[int] = set()
    for steps in range(1, 40):
        markers, pages = cancel_after(steps, lag=0)
        assert markers == [None, "102", "105", "108"]
        counts.add(pages)
    # The request that was under way is made anew, and no other.
    assert counts == {4, 5}


def test_the_one_who_looks_may_be_cancelled_while_containers_are_got_by_themselves() -> None:
    for steps in range(1, 80):
        cancel_after(steps, lag=1000, count=20)


def test_when_all_are_cancelled_at_once_nothing_goes_on() -> None:
    for lag in (0, 1000):

        async def run(account: Account, lag: float = lag) -> None:
            account.lag = lag
            tasks = waits(account, *account.truth)
            for moment in range(30):
                await asyncio.sleep(0.007)
                if moment == 25:
                    await ended(*tasks)
                    assert account.running == 0
            count = len(account.asked)
            await asyncio.sleep(100)
            assert len(account.asked) == count

        virtually(run, count=30)


def test_no_get_is_made_twice_when_one_who_looks_has_what_it_came_for() -> None:
    async def run(account: Account) -> None:
        account.lag = 1000
        account.latency = 1
        ids = list(account.truth)
        for one in ids:
            account.set(one, 1)
        await asyncio.gather(*waits(account, *ids))
        times = Counter(one for one in asked(account) if one != "L")
        assert set(times.values()) == {1}
        assert len(times) == len(ids)

    virtually(run, count=30)


def test_a_condition_that_raises_ends_its_own_wait_alone() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)

        def broken(container: Container) -> bool:
            raise TimeoutError(f"mine, about {container.id}")

        bad = asyncio.create_task(containers.wait(ids[0], until=broken))
        good = [asyncio.create_task(containers.wait(one, until=running)) for one in ids]
        with pytest.raises(TimeoutError, match=f"mine, about {ids[0]}") as caught:
            await bad
        assert not isinstance(caught.value, WaitTimeoutError)
        for one in ids:
            account.set(one, 1)
        assert [container.id for container in await asyncio.gather(*good)] == ids

    virtually(run, count=4)


# What is kept.


def test_nothing_is_kept_of_what_nobody_asks_about() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        snapshots: Snapshots = containers._sweep._snapshots
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
        assert containers._sweep._looker._unlisted == {}
        await ended(reading)
        assert set(snapshots._entries) == set(ids[:6])
        for one in ids:
            account.set(one, 1)
        await first
        for kept in (snapshots._entries, snapshots._askers, snapshots._owed, snapshots._touched):
            assert kept == {}
        assert containers._sweep._looker._unlisted == {}
        assert containers._sweep._looker._pages == {}

    virtually(run, count=12)
