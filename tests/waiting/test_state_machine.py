"""Random histories: no change is missed, invented or doubled, and no wait outlives its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from virtual import Account, VirtualLoop

from netmind_rentgpu.errors import ContainerGoneError, RentGPUError, WaitTimeoutError
from netmind_rentgpu.models import Container
from netmind_rentgpu.waiting.watching import Change

# Seconds for a whole poll round with its retries and the longest pause before it, without trouble.
SETTLED = 60.0
ROUNDING = 0.01


def state(container: Container | None) -> dict[str, Any] | None:
    if container is None:
        return None
    return {name: getattr(container, name) for name in ("id", "name", "status", "ssh")}


@attrs.define(eq=False)
class Waiter:
    """A wait that is under way."""

    task: asyncio.Task[Container]
    container_id: int
    status: int
    began: float
    timeout: float
    ended: float | None = None


@attrs.define(eq=False)
class Watcher:
    """A watch that is under way, and the changes that it has read."""

    ids: set[int] | None
    slow: bool
    task: asyncio.Task[None] | None = None
    read: list[Change] = attrs.field(factory=list[Change])
    known: dict[int, dict[str, Any] | None] = attrs.field(factory=dict[int, "dict[str, Any] | None"])


class Waiting(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.waiters: list[Waiter] = []
        self.watchers: list[Watcher] = []

    @initialize(seed=st.integers(0, 2**16), page=st.integers(2, 5), count=st.integers(0, 12))
    def begin(self, seed: int, page: int, count: int) -> None:
        self.account = Account(self.loop, seed, page=page)
        self.containers = self.account.containers()
        for _ in range(count):
            self.account.create()

    def teardown(self) -> None:
        try:
            if hasattr(self, "account"):
                self.come_to_rest()
        finally:
            self.end()

    def end(self) -> None:
        tasks = [waiter.task for waiter in self.waiters] + [watcher.task for watcher in self.watchers if watcher.task]
        try:
            for task in tasks:
                task.cancel()
            if tasks:
                self.loop.run_until_complete(asyncio.wait(tasks))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()
        if hasattr(self, "account"):
            assert self.account.running == 0
            assert self.containers._poller._snapshots.nobody

    def run(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def pick(self, number: int, ids: list[int]) -> int | None:
        return ids[number % len(ids)] if ids else None

    # Changes of the account.

    @rule()
    def create(self) -> None:
        self.account.create()

    @rule(number=st.integers(0, 50), ssh=st.sampled_from([None, "", "ssh root@h -p 1"]))
    def change(self, number: int, ssh: str | None) -> None:
        container_id = self.pick(number, sorted(self.account.truth))
        if container_id is not None:
            self.account.set(container_id, self.account.truth[container_id]["status"] + 1, ssh)

    @rule(number=st.integers(0, 50))
    def revert(self, number: int) -> None:
        """Change a container back, so that it is read as before."""
        container_id = self.pick(number, sorted(self.account.truth))
        if container_id is not None:
            self.account.revert(container_id)

    @rule(number=st.integers(0, 50))
    def delete(self, number: int) -> None:
        container_id = self.pick(number, sorted(self.account.truth))
        if container_id is not None:
            self.account.delete(container_id)

    @rule(swap=st.randoms(use_true_random=False))
    def reorder(self, swap: Any) -> None:
        swap.shuffle(self.account.order)

    @rule(lag=st.sampled_from([0.0, 5.0, 25.0]))
    def lag(self, lag: float) -> None:
        self.account.lag = lag

    @rule(what=st.sampled_from(["by value", "404", "from the start"]))
    def dead_marker(self, what: str) -> None:
        self.account.dead_marker = what

    @rule(trouble=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    def trouble(self, trouble: float) -> None:
        self.account.trouble = trouble

    # Calls of the users.

    @rule(number=st.integers(0, 50), call=st.sampled_from(["stop", "restart", "delete"]))
    def call(self, number: int, call: str) -> None:
        container_id = self.pick(number, sorted(self.account.truth))
        if container_id is not None:
            with suppress(RentGPUError):
                self.loop.run_until_complete(getattr(self.containers, call)(container_id, timeout=5))

    @rule(number=st.integers(0, 50), more=st.integers(0, 3), timeout=st.sampled_from([0.5, 10.0, 100.0]))
    def wait(self, number: int, more: int, timeout: float) -> None:
        container_id = self.pick(number, [*self.account.history, 999])
        assert container_id is not None
        now = self.account.truth.get(container_id, {"status": 0})["status"]
        status = now + more

        async def run() -> Container:
            try:
                return await self.containers.wait(
                    container_id, until=lambda container: container.status >= status, timeout=timeout
                )
            finally:
                waiter.ended = self.loop.time()

        waiter = Waiter(self.loop.create_task(run()), container_id, status, self.loop.time(), timeout)
        self.waiters.append(waiter)

    @rule(every=st.booleans(), slow=st.booleans())
    def watch(self, every: bool, slow: bool) -> None:
        ids = None if every else set(list(self.account.truth)[::2])
        watcher = Watcher(ids, slow)

        async def run() -> None:
            changes: AsyncGenerator[Change] = self.containers.watch(ids)
            async for change in changes:
                watcher.read.append(change)
                await asyncio.sleep(7 if watcher.slow else 0)

        watcher.task = self.loop.create_task(run())
        self.watchers.append(watcher)

    @rule(number=st.integers(0, 50))
    def cancel(self, number: int) -> None:
        tasks = [waiter.task for waiter in self.waiters] + [watcher.task for watcher in self.watchers if watcher.task]
        alive = [task for task in tasks if not task.done()]
        if alive:
            alive[number % len(alive)].cancel()

    @rule(seconds=st.sampled_from([0.005, 0.02, 0.3, 2.0, 11.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(seconds)

    # Invariants.

    @invariant()
    def waits_end_in_time_and_tell_the_truth(self) -> None:
        for waiter in self.waiters:
            if waiter.task.cancelled():
                continue
            elapsed = (self.loop.time() if waiter.ended is None else waiter.ended) - waiter.began
            assert elapsed <= waiter.timeout + ROUNDING
            if not waiter.task.done():
                continue
            error = waiter.task.exception()
            states = self.account.history.get(waiter.container_id, [None])
            if error is None:
                found = state(waiter.task.result())
                assert found in states
                assert found is not None
                assert found["status"] >= waiter.status
            elif isinstance(error, ContainerGoneError):
                assert states[-1] is None
                assert error.container is None or state(error.container) in states
            else:
                assert isinstance(error, WaitTimeoutError)
                assert elapsed >= waiter.timeout - ROUNDING
                last = error.pending[waiter.container_id]
                assert last is None or state(last) in states

    @invariant()
    def changes_follow_from_earlier_changes_and_really_happened(self) -> None:
        for watcher in self.watchers:
            known: dict[int, dict[str, Any] | None] = {}
            # The index of the last state read, because a container may have had the same state twice.
            reached: dict[int, int] = {}
            for change in watcher.read:
                before, after = state(change.before), state(change.after)
                container_id = change.container_id
                states = self.account.history[container_id]
                assert before != after
                if container_id in known:
                    assert before == known[container_id]
                elif before is not None:
                    # The state in the first poll round, which came after the watch had begun.
                    reached[container_id] = states.index(before)
                reached[container_id] = states.index(after, reached.get(container_id, -1) + 1)
                known[container_id] = after
            watcher.known = known

    @rule()
    def come_to_rest(self) -> None:
        """Check that every wait and watch has the true states once nothing changes any more."""
        self.account.trouble = 0.0
        self.account.lag = 0.0
        for watcher in self.watchers:
            watcher.slow = False
        self.run(SETTLED)
        self.waits_end_in_time_and_tell_the_truth()
        self.changes_follow_from_earlier_changes_and_really_happened()
        for waiter in self.waiters:
            if not waiter.task.done():
                assert self.account.truth[waiter.container_id]["status"] < waiter.status
        # By now each watch has had its first poll round, so that all that follows is a change.
        gone = [*self.account.truth][:1]
        for container_id in gone:
            self.account.delete(container_id)
        for container_id in self.account.truth:
            self.account.set(container_id, self.account.truth[container_id]["status"] + 1)
        new = self.account.create()
        self.run(SETTLED)
        self.waits_end_in_time_and_tell_the_truth()
        self.changes_follow_from_earlier_changes_and_really_happened()
        for watcher in self.watchers:
            assert watcher.task is not None
            if watcher.task.cancelled():
                continue
            watched = self.account.history.keys() if watcher.ids is None else watcher.ids
            alive = watched & self.account.truth.keys()
            assert {container_id: watcher.known.get(container_id) for container_id in alive} == {
                container_id: self.account.truth[container_id] for container_id in alive
            }
            assert all(watcher.known[container_id] is None for container_id in gone if container_id in watched)
            assert (new in watcher.known) == (watcher.ids is None)
            if watcher.task.done():
                assert watcher.task.exception() is None
                assert watcher.ids is not None
                assert not alive
            else:
                assert watcher.ids is None or alive


@pytest.mark.slow
def test_waits_and_watches_agree_with_the_service_whatever_happens(full: bool) -> None:
    run_state_machine_as_test(
        Waiting, settings=settings(deadline=None, max_examples=100 if full else 20, stateful_step_count=40)
    )
