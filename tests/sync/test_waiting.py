"""Waiting for containers, and watching them, with the synchronous client."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import canaries
import pytest
from until import until

from netmind_rentgpu import (
    Container,
    ContainerGoneError,
    PaymentType,
    RentGPU,
    WaitProgress,
    WaitTimeoutError,
    conditions,
)
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.sync import portal


def rent(gpu: RentGPU, name: str = "mine") -> Container:
    """Create a container."""
    auth = gpu.auths.ensure(canaries.PASSWORD)
    machine = max(gpu.machines.list(), key=lambda machine: machine.gpu_count or 0)
    return gpu.containers.create(
        name=name, auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type=PaymentType.USD
    )


def act_once(ready: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Start a thread that acts as soon as a condition is true."""

    def run() -> None:
        portal.call(until, ready)
        act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def act_after_requests(sync_emulator: Emulator, count: int, act: Callable[[], object]) -> threading.Thread:
    """Start a thread that acts as soon as a number of further requests has come."""
    wanted = len(sync_emulator.requests) + count
    return act_once(lambda: len(sync_emulator.requests) >= wanted, act)


def test_waits_return_containers_in_the_wanted_state_or_raise(gpu: RentGPU, sync_emulator: Emulator) -> None:
    ids = [rent(gpu, f"mine-{number}").id for number in range(3)]
    progress: list[WaitProgress] = []
    sync_emulator.clock.advance(60)
    found = gpu.containers.wait_all(ids, until=conditions.has_ssh, timeout=60, on_progress=progress.append)
    assert [container.id for container in found] == ids
    assert (progress[0].arrived, progress[-1].arrived, progress[-1].pending) == (0, 3, 0)
    assert gpu.containers.wait(ids[0], until=conditions.has_ssh, timeout=60) == found[0]
    with pytest.raises(WaitTimeoutError):
        gpu.containers.wait(ids[0], until=conditions.negate(conditions.has_ssh), timeout=0.05)
    with pytest.raises(WaitTimeoutError, match="no SSH server answered"):
        gpu.containers.wait_reachable(ids[0], timeout=0.3)
    gpu.containers.delete(ids[1])
    with pytest.raises(ContainerGoneError):
        gpu.containers.wait_all(ids, until=conditions.has_ssh, timeout=60)


def test_watch_yields_changes_and_an_abandoned_watch_is_closed(gpu: RentGPU, sync_emulator: Emulator) -> None:
    container = rent(gpu)
    changes = gpu.containers.watch([container.id])
    later = act_after_requests(sync_emulator, 2, lambda: sync_emulator.clock.advance(60))
    change = next(changes)
    later.join()
    assert change.container_id == container.id
    assert change.before is not None
    assert change.after is not None
    assert (change.before.ssh_endpoint is None, change.after.ssh_endpoint is None) == (True, False)
    poller = gpu._async.containers._poller
    assert not poller._snapshots.nobody
    changes.close()
    # The watch is closed in the loop's thread, some time after `close` has returned.
    portal.call(until, lambda: poller._snapshots.nobody)
    for _ in gpu.containers.watch([]):
        pytest.fail("nothing is watched")
    abandoned = gpu.containers.watch([container.id])
    gpu.containers.delete(container.id)
    for change in abandoned:
        assert change.after is None
    assert poller._snapshots.nobody
    other = rent(gpu, "other")

    def first_look_over() -> bool:
        # A change before the first look is none to the watch.
        snapshots = poller._snapshots
        return not snapshots.nobody and not snapshots.base_wanted

    later = act_once(first_look_over, lambda: sync_emulator.clock.advance(60))
    for change in gpu.containers.watch():
        assert change.container_id == other.id
        break
    later.join()
    portal.call(until, lambda: poller._snapshots.nobody)


def test_waits_in_many_threads_share_their_requests(gpu: RentGPU, sync_emulator: Emulator) -> None:
    ids = [rent(gpu, f"mine-{number}").id for number in range(4)]
    before = len(sync_emulator.requests)
    later = act_after_requests(sync_emulator, 4, lambda: sync_emulator.clock.advance(60))
    with ThreadPoolExecutor(20) as pool:
        waits = [
            pool.submit(gpu.containers.wait, container_id, until=conditions.has_ssh, timeout=60)
            for container_id in ids * 5
        ]
        assert [wait.result(60).id for wait in waits] == ids * 5
    later.join()
    # Fewer requests than waits, although each wait went through several looks.
    assert len(sync_emulator.requests) - before < 20


def test_ctrl_c_ends_a_wait(gpu: RentGPU, sync_emulator: Emulator) -> None:
    container = rent(gpu)
    main = threading.main_thread().ident
    assert main is not None
    later = act_after_requests(sync_emulator, 2, lambda: signal.pthread_kill(main, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        gpu.containers.wait(container.id, until=conditions.has_ssh, timeout=60)
    later.join()
    assert gpu._async.containers._poller._snapshots.nobody
