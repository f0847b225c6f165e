"""`wait` and `wait_all`: their results, their errors and their arguments."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from virtual import Account, virtually

from netmind_rentgpu import (
    AsyncRentGPU,
    ClientStateError,
    Container,
    ContainerFailedError,
    ContainerGoneError,
    InvalidArgumentError,
    WaitProgress,
    WaitTimeoutError,
)
from netmind_rentgpu.conditions import all_of, any_of, gone, has_ssh, status_in
from netmind_rentgpu.emulator import Emulator

LOGIN = "ssh root@h -p 1"


def test_wait_all_returns_containers_in_the_order_of_the_ids() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        progress: list[WaitProgress] = []
        wanted = [ids[3], ids[0], ids[3], ids[1]]
        task = asyncio.create_task(containers.wait_all(iter(wanted), until=status_in(1), on_progress=progress.append))
        await asyncio.sleep(1)
        account.set(ids[3], 1)
        await asyncio.sleep(10)
        # A container that has met the condition may change again, because it was seen.
        account.set(ids[3], 2)
        account.set(ids[0], 1)
        account.set(ids[1], 1)
        found = await task
        assert [(container.id, container.status) for container in found] == [
            (container_id, 1) for container_id in wanted
        ]
        assert progress[0] == WaitProgress(total=3, arrived=0)
        assert progress[-1] == WaitProgress(total=3, arrived=3)
        assert [step.arrived for step in progress] == sorted({step.arrived for step in progress})
        assert [step.pending for step in progress] == [3 - step.arrived for step in progress]

    virtually(run, count=5)


def test_wait_all_without_ids_sends_nothing() -> None:
    async def run(account: Account) -> None:
        assert await account.containers().wait_all([], until=has_ssh) == []
        assert account.asked == []

    virtually(run, count=2)


def test_wait_timeout_lists_arrived_and_pending_containers() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        account.set(ids[0], 1)
        account.set(ids[1], 0, "see the console")
        with pytest.raises(WaitTimeoutError) as caught:
            await containers.wait_all(ids, until=status_in(1, "up"), timeout=3)
        error = caught.value
        assert isinstance(error, TimeoutError)
        assert {container_id: found.status for container_id, found in error.arrived.items()} == {ids[0]: 1}
        assert {container_id: found and found.status for container_id, found in error.pending.items()} == dict.fromkeys(
            ids[1:], 0
        )
        assert str(error) == (
            "7 of 8 containers: status_in(1, 'up') was not met within 3 s: "
            "container 101 (n101) has status 0, ssh 'see the console', in which no endpoint can be read; "
            "container 102 (n102) has status 0, ssh ''; container 103 (n103) has status 0, ssh ''; "
            "container 104 (n104) has status 0, ssh ''; container 105 (n105) has status 0, ssh ''; and 2 more"
        )
        again = pickle.loads(pickle.dumps(error))
        assert (again.arrived, again.pending, str(again)) == (error.arrived, error.pending, str(error))

    virtually(run, count=8)


def test_wait_timeout_names_a_container_that_was_never_seen() -> None:
    async def run(account: Account) -> None:
        account.latency = 100
        with pytest.raises(WaitTimeoutError, match=r"^has_ssh was not met within 3 s: container 100 was not seen$"):
            await account.containers().wait(100, until=has_ssh, timeout=3)

    virtually(run, count=1)


def test_failed_container_ends_the_wait_at_once() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        ids = list(account.truth)
        account.set(ids[0], 1)
        task = asyncio.create_task(containers.wait_all(ids, until=status_in(1), fail=status_in(3)))
        await asyncio.sleep(1)
        account.set(ids[1], 3)
        with pytest.raises(ContainerFailedError) as caught:
            await task
        assert account.loop.time() < 10
        assert caught.value.container.id == ids[1]
        assert list(caught.value.arrived) == ids[:1]
        assert list(caught.value.pending) == ids[2:]
        assert str(caught.value) == "container 101 (n101) has status 3, ssh '': status_in(3) is met"

    virtually(run, count=3)


def test_failure_counts_more_than_a_met_condition() -> None:
    async def run(account: Account) -> None:
        account.set(100, 3, LOGIN)
        with pytest.raises(ContainerFailedError):
            await account.containers().wait(100, until=has_ssh, fail=status_in(3))

    virtually(run, count=1)


def test_container_gone_ends_the_wait_at_once() -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        task = asyncio.create_task(containers.wait(100, until=has_ssh))
        await asyncio.sleep(1)
        account.delete(100)
        with pytest.raises(ContainerGoneError, match=r"^container 100 \(n100\) does not exist any more$") as caught:
            await task
        assert caught.value.container_id == 100
        assert caught.value.container is not None
        assert caught.value.container.status == 0
        with pytest.raises(
            ContainerGoneError, match=r"^container 999 does not exist any more, or never did$"
        ) as caught:
            await containers.wait(999, until=has_ssh)
        assert caught.value.container is None

    virtually(run, count=2)


@pytest.mark.parametrize("until", [gone, any_of(gone, status_in(9)), all_of(gone)])
def test_wait_for_gone_returns_once_the_container_is_deleted(until: Any) -> None:
    async def run(account: Account) -> None:
        containers = account.containers()
        task = asyncio.create_task(containers.wait(100, until=until))
        await asyncio.sleep(10)
        assert not task.done()
        account.delete(100)
        assert (await task).name == "n100"
        assert (await containers.wait(100, until=until)) == Container(id=100)

    virtually(run, count=2)


def test_wait_refuses_arguments_of_a_wrong_type() -> None:
    async def coroutine(_: Container) -> bool:
        return True

    async def run(account: Account) -> None:
        containers = account.containers()
        for bad in (None, 1, "has_ssh", coroutine):
            with pytest.raises(InvalidArgumentError, match="until"):
                await containers.wait(100, until=bad)  # type: ignore[arg-type]  # a wrong type on purpose
            if bad is not None:
                with pytest.raises(InvalidArgumentError, match="fail"):
                    await containers.wait(100, until=has_ssh, fail=bad)  # type: ignore[arg-type]  # a wrong type on purpose
        for timeout in (0, -1, None, True, "5", float("nan"), float("inf"), 10**400, 10**5000):
            with pytest.raises(InvalidArgumentError, match="timeout"):
                await containers.wait(100, until=has_ssh, timeout=timeout)  # type: ignore[arg-type]  # a wrong type on purpose
            with pytest.raises(InvalidArgumentError, match="timeout"):
                await containers.wait_reachable(100, timeout=timeout)  # type: ignore[arg-type]  # a wrong type on purpose
        for ids in (None, 5, ["a"], [None], [True], "12"):
            with pytest.raises(InvalidArgumentError, match="ids"):
                await containers.wait_all(ids, until=has_ssh)  # type: ignore[arg-type]  # a wrong type on purpose
        for container_id in (None, "a", True):
            with pytest.raises(InvalidArgumentError, match="container_id"):
                await containers.wait(container_id, until=has_ssh)  # type: ignore[arg-type]  # a wrong type on purpose
            with pytest.raises(InvalidArgumentError, match="container_id"):
                await containers.wait_reachable(container_id)  # type: ignore[arg-type]  # a wrong type on purpose
        assert account.asked == []
        assert containers._poller._snapshots.nobody

    virtually(run, count=1)


def test_error_from_on_progress_ends_the_wait() -> None:
    async def run(account: Account) -> None:
        def broken(_: WaitProgress) -> None:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await account.containers().wait_all([100], until=has_ssh, on_progress=broken)
        assert account.asked == []

    virtually(run, count=1)


async def test_wait_on_a_closed_client_or_in_another_loop_is_refused(emulator: Emulator) -> None:
    gpu = AsyncRentGPU(emulator.token, base_url=emulator.url)
    async with gpu:
        await gpu.machines.list()

        def elsewhere() -> None:
            with pytest.raises(ClientStateError, match="loop"):
                asyncio.run(gpu.containers.wait(1, until=has_ssh))

        await asyncio.to_thread(elsewhere)
        task = asyncio.create_task(gpu.containers.wait_all([1001, 1002], until=has_ssh, timeout=30))
        await asyncio.sleep(0)
    with pytest.raises((ClientStateError, ContainerGoneError)):
        await task
    with pytest.raises(ClientStateError):
        await gpu.containers.wait(1, until=has_ssh)
    with pytest.raises(ClientStateError):
        await anext(gpu.containers.watch())
