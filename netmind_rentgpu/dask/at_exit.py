"""The end of clusters that are still open when the interpreter exits."""

from __future__ import annotations

import os
from functools import cache, partial
from typing import Final
from weakref import WeakSet

from distributed.core import Status
from distributed.deploy.spec import SpecCluster

from netmind_rentgpu.concurrency.exit_hooks import at_exit, report_problem, wait_despite_interrupts
from netmind_rentgpu.errors import RentGPUError
from netmind_rentgpu.rentals.at_exit import release_at_exit

__all__ = ["close_at_exit"]

# Seconds for each cluster.
_LONGEST_CLOSE: Final = 90.0
_clusters: Final[WeakSet[SpecCluster]] = WeakSet()


def close_at_exit(cluster: SpecCluster) -> None:
    """Close a cluster when this process exits: before its rentals are deleted one by one, and before Dask closes it."""
    _clusters.add(cluster)
    _register(os.getpid())


@cache
def _register(process_id: int) -> None:
    del process_id  # only the cache's key, because a forked child registers for itself
    release_at_exit()
    at_exit(_close_all)


def _close_all() -> None:
    for cluster in tuple(_clusters):
        # Asynchronous ones have no event loop any longer.
        if not cluster.asynchronous and cluster.status is not Status.closed:
            try:
                wait_despite_interrupts(partial(cluster.close, timeout=_LONGEST_CLOSE))
            except (RentGPUError, TimeoutError) as error:
                report_problem(f"the cluster could not be closed: {error}")
