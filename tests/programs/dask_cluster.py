"""Make a Dask cluster of two workers, and stand still, or end, in a given way.

Arguments: how the cluster is used (`block`, `no block`, `asynchronous`), and the place where the program stands still, or
the way in which it ends. It writes `here` to a file of the folder HERE when it has come to that place.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from typing import Any

from distributed import Client
from renter import HERE, rented, until

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.dask import RentGPUCluster, Software

use, place = sys.argv[1:3]
kept: list[object] = []
wanted: dict[str, Any] = {
    "image": "PyTorch 2.4",
    "software": Software(python=sys.executable),
    "environment": {"TMPDIR": str(HERE)},
    "ttl": timedelta(minutes=30),
}
if "logs" in sys.argv:
    logging.basicConfig(level=logging.WARNING)
if "guardian" not in sys.argv:
    wanted["client"] = AsyncRentGPU


class Cluster(RentGPUCluster):
    """A cluster that tells when it starts, and when it closes."""

    async def _start(self) -> None:
        if place == "before the start":
            come_here()
        await super()._start()
        if place == "after the start":
            come_here()
            await asyncio.sleep(0.2)

    async def _close_all(self) -> None:
        if place == "closes":
            come_here()
            if "slowly" in sys.argv:
                await asyncio.sleep(1)
        await super()._close_all()


def come_here() -> None:
    """Tell the test that the program has come to the place, or give itself the signal that belongs there."""
    (HERE / "here").write_text("here")
    if "interrupts itself" in sys.argv:
        os.kill(os.getpid(), signal.SIGINT)


def wait_for_workers(client: Client) -> None:
    """Wait until both workers run, and use them."""
    client.wait_for_workers(2, timeout=60)
    assert client.submit(sum, [1, 2]).result(timeout=60) == 3


def sleep(seconds: float) -> float:
    """Be the work of a worker."""
    time.sleep(seconds)
    return seconds


def go_on(cluster: RentGPUCluster) -> None:
    """Come to the place, and stand there or end."""
    if place == "boots":
        until(lambda: len(rented()) == 2)
        come_here()
        time.sleep(60)
    if place == "forks":
        cluster.wait_for_workers(2)
        fork()
        return
    if place == "leaves work":
        client = Client(cluster)
        wait_for_workers(client)
        kept.append(client.map(sleep, [60] * 4, pure=False))
        return
    with Client(cluster) as client:
        wait_for_workers(client)
        if place == "computes":
            future = client.submit(sleep, 60)
            come_here()
            future.result()
        elif place == "exits":
            sys.exit(3)
        elif place == "raises":
            raise LookupError("of the program")
        elif place == "ends at once":
            os._exit(4)
        elif place == "thread raises":
            thread = threading.Thread(target=sys.exit)
            thread.start()
            thread.join()


def fork() -> None:
    """Let children end in three ways, which must leave the parent's machines alone."""
    for end in (sys.exit, os._exit, lambda _: None):
        child = os.fork()
        if child == 0:
            end(0)
            sys.exit(0)
        assert os.waitpid(child, 0) == (child, 0)
    assert len(rented()) == 2


async def go_on_asynchronously() -> None:
    """Do the same in an event loop."""
    async with Cluster(2, **wanted, asynchronous=True) as cluster:
        if place == "boots":
            while len(await asyncio.to_thread(rented)) < 2:
                await asyncio.sleep(0.05)
            come_here()
            await asyncio.sleep(60)
        async with Client(cluster, asynchronous=True) as client:
            await client.wait_for_workers(2, timeout=60)
            if place == "computes":
                future = client.submit(sleep, 60)
                come_here()
                await future
            elif place == "exits":
                sys.exit(3)
            elif place == "raises":
                raise LookupError("of the program")


def main() -> None:
    """Make the cluster."""
    if use == "asynchronous":
        asyncio.run(go_on_asynchronously())
    elif use == "block":
        with Cluster(2, **wanted) as cluster:
            go_on(cluster)
    else:
        cluster = Cluster(2, **wanted)
        go_on(cluster)
        if place == "closes":
            cluster.close()
    print("ended")


if __name__ == "__main__":
    main()
