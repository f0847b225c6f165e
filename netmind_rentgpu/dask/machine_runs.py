"""The run of one machine's workers, the machines that outlive a run, and the calls by which the cluster is changed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import attrs

from netmind_rentgpu.dask.machine_workers import MachineWorkers

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

    from netmind_rentgpu.rentals.rental import AsyncRental
    from netmind_rentgpu.ssh.jobs import AsyncJob

__all__ = ["ClusterCalls", "FreeMachine", "MachineRun"]


@attrs.frozen(kw_only=True)
class ClusterCalls:
    """The calls by which the supervisor changes its cluster.

    Attributes:
        scheduler: returns the scheduler, once it was started.
        wanted: returns the names of the entries that the cluster wants.
        replace: puts a new entry in the place of one, and returns its name; None if the old entry is not wanted any more.
        drop: removes an entry.
        end: ends the cluster, because it has no workers, and gets none any more.
    """

    scheduler: Callable[[], Scheduler]
    wanted: Callable[[], Collection[str]]
    replace: Callable[[MachineWorkers], str | None]
    drop: Callable[[MachineWorkers], object]
    end: Callable[[], object]


@attrs.define(eq=False)
class MachineRun:
    """The run of one machine's workers.

    Attributes:
        python: the path of the machine's Python; None before that is ready for workers.
        jobs: the jobs of the workers.
        has_joined: True once all workers were connected to the scheduler.
        has_lasted: True once they were so for long enough to be no failure.
        is_wanted: False once the cluster has asked for the end.
    """

    workers: MachineWorkers
    python: str | None = None
    jobs: tuple[AsyncJob, ...] = ()
    has_joined: bool = False
    has_lasted: bool = False
    is_wanted: bool = True


@attrs.frozen
class FreeMachine:
    """A machine that has outlived its workers."""

    rental: AsyncRental
    python: str
