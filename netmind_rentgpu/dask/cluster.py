"""`RentGPUCluster`: a Dask cluster whose workers run on rented machines."""

# Because the annotations of dask and distributed are incomplete:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from html import escape
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Self, Unpack, cast

from dask.utils import parse_bytes, parse_timedelta
from distributed.core import Status
from distributed.deploy.adaptive import Adaptive
from distributed.deploy.spec import SpecCluster
from distributed.scheduler import Scheduler
from distributed.security import Security
from distributed.utils import NoOpAwaitable

from netmind_rentgpu import arguments
from netmind_rentgpu.amounts import in_own_context
from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.dask.adaptive import adaptive_like, checked_bounds, machine_of
from netmind_rentgpu.dask.at_exit import close_at_exit
from netmind_rentgpu.dask.endings import error_of_end
from netmind_rentgpu.dask.machine_runs import ClusterCalls
from netmind_rentgpu.dask.machine_workers import MachineWorkers, WorkersPhase
from netmind_rentgpu.dask.options import (
    config_for_workers,
    plan_of,
    scheduler_spec,
    securities_of,
    usual_client,
)
from netmind_rentgpu.dask.software import Software
from netmind_rentgpu.dask.supervisor import Supervisor
from netmind_rentgpu.dask.worker_jobs import WorkerPer
from netmind_rentgpu.errors import (
    ClientStateError,
    InvalidArgumentError,
    RentGPUError,
)
from netmind_rentgpu.rentals.renting_calls import MachineOptions, RentOptions
from netmind_rentgpu.waiting.waits import checked_timeout

if TYPE_CHECKING:
    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.literals import GPUName, RegionCode
    from netmind_rentgpu.models import Image
    from netmind_rentgpu.rentals.lifecycle.events import RentalEvent
    from netmind_rentgpu.rentals.rental import AsyncRental

__all__ = ["RentGPUCluster"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

# Seconds between two looks at a start that is about to fail.
_BETWEEN_LOOKS: Final = 0.01


class RentGPUCluster(SpecCluster):
    """A Dask cluster whose workers run on rented machines: `with RentGPUCluster(8) as cluster, Client(cluster): ...`.

    The scheduler runs in this process, and all traffic between workers passes through this machine, over one SSH connection
    with each rented one. Closing the cluster deletes all machines. Lost workers are replaced; after too many failures, no
    more machines are rented, and `reason` says why.

    **The owner of a rented machine can run code in this process**, because Dask unpickles what workers send.
    """

    # By the names of the entries.
    worker_spec: dict[str, dict[str, Any]]
    workers: dict[str, MachineWorkers]
    scheduler: Scheduler | None
    status: Status

    def __init__(
        self,
        n_workers: int = 0,
        *,
        image: int | str | Image | None = None,
        gpu_name: GPUName | Iterable[GPUName] | None = None,
        gpus: int = 1,
        regions: RegionCode | Iterable[RegionCode] | None = None,
        max_price: Decimal | float | None = None,
        budget: Decimal | float | None = None,
        shared_budget: str | None = None,
        ttl: timedelta = timedelta(hours=8),
        idle_timeout: timedelta | None = timedelta(minutes=30),
        max_workers: int = 16,
        worker_per: WorkerPer = "gpu",
        nthreads: int | None = None,
        memory_limit: str | float | None = "auto",
        resources: Mapping[str, float] | None = None,
        software: Software = Software(),  # noqa: B008  # frozen
        environment: Mapping[str, str] | None = None,
        security: Security | bool = True,
        client: Callable[[], AsyncRentGPU] | None = None,
        start_timeout: float = 900,
        max_failures: int = 3,
        replace: bool = True,
        dashboard_address: str | None = "127.0.0.1:0",
        asynchronous: bool = False,
        name: str | None = None,
        **options: Unpack[MachineOptions],
    ) -> None:
        """Start the scheduler, and begin to rent machines; `wait_for_workers` waits for them.

        Args:
            n_workers: the number of workers to begin with. A machine with several GPUs has several.
            image, gpu_name, gpus, regions, max_price: as for `AsyncRentGPU.rent`, for each machine.
            budget: the most that the cluster may cost, machines that did not start or were lost included. Each machine
                reserves its price for ten minutes, again and again while this process lives.
            shared_budget: the name of a budget that the cluster shares with other rentals; not with `budget`.
            ttl: the longest duration of the cluster, counted from its start.
            idle_timeout: how long the cluster may have no tasks before it is closed, also while machines start or are waited
                for; None for no limit.
            max_workers: the most workers. All traffic between them passes through this machine.
            worker_per: `gpu` for a worker with one GPU each, `container` for one worker for each machine.
            nthreads: the threads of a worker; None for one with `gpu`, and for as many as there are processors else.
            memory_limit: the memory of a worker, as Dask reads it; "auto" for its part of the machine's.
            resources: Dask's abstract resources of a worker. With `gpu`, each has one GPU in any case.
            software: what must be installed on the machines.
            environment: variables for the workers, and for what installs software. They stand on no command line.
            security: True for encrypted connections with certificates of the cluster's own, a `Security` for others, False
                for none: SSH encrypts the traffic in any case, but each process on a machine can reach the scheduler then.
            client: a function that returns the client to rent with; by default an `AsyncRentGPU()`, with a guardian where
                the system allows one. The cluster closes it.
            start_timeout: the seconds in which a machine must accept the login, and, once its software is installed, its
                workers must have joined.
            max_failures: the number of failures in a row after which no more machines are rented.
            replace: True to replace lost workers.
            dashboard_address: the address of Dask's dashboard; None for no dashboard.
            asynchronous: True to use the cluster in the running event loop, with `async with`.
            name: the cluster's name; None for a new one.
            options: the other arguments of `AsyncRentGPU.rent` that choose the machines.

        Raises:
            InvalidArgumentError: an argument cannot be used.
            ConfigurationError: the client cannot be made, or asyncssh is missing.
        """
        if unknown := options.keys() - MachineOptions.__annotations__:
            raise TypeError(f"RentGPUCluster() got an unexpected keyword argument {min(unknown)!r}")
        self._plan = plan_of(
            worker_per=worker_per,
            gpus=gpus,
            nthreads=nthreads,
            memory_limit=memory_limit,
            resources=resources,
            environment=environment,
            software=software,
        )
        self._process_id = os.getpid()
        self._max_workers = arguments.count("max_workers", max_workers)
        if self._max_workers < self._plan.on_each:
            raise InvalidArgumentError("max_workers", f"must be at least gpus, {self._plan.on_each}: {max_workers}")
        self._numbers = count(1)
        self._idle_timeout = arguments.duration("idle_timeout", idle_timeout)
        arguments.duration("ttl", ttl)
        arguments.count("max_failures", max_failures)
        checked_timeout(start_timeout, argument="start_timeout")
        machines = self._machines_for(n_workers, "n_workers")
        own, of_workers = securities_of(ttl, security=security)
        config = config_for_workers()
        self._client = (client or usual_client)()
        rent_options: RentOptions = {
            "image": image,
            "gpu_name": gpu_name,
            "gpus": gpus,
            "regions": regions,
            "max_price": max_price,
            "shared_budget": shared_budget,
            "start_timeout": start_timeout,
            "on_event": self._on_event,
        }
        rent_options.update(cast("RentOptions", options))
        self._rentals = self._client._fleet_rentals(  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a cluster is a fleet
            rent_options, ttl=ttl, extendable_to=None, budget=budget, timeout=2 * start_timeout
        )
        self._supervisor = Supervisor(
            self._rentals,
            self._plan,
            ClusterCalls(
                scheduler=self._started_scheduler,
                wanted=lambda: tuple(self.worker_spec),
                replace=self._replace,
                drop=self._drop,
                end=self._end_without_workers,
            ),
            security=of_workers,
            config=config,
            most_failures=max_failures,
            start_timeout=start_timeout,
            replaces=bool(replace),
        )
        self._closing: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._reason: RentGPUError | None = None
        worker: dict[str, Any] = {"cls": MachineWorkers, "options": {"runner": self._supervisor}}
        if self._plan.suffixes:
            worker["group"] = self._plan.suffixes
        first = {self._new_worker_name(0): worker for _ in range(machines)}
        try:
            super().__init__(
                workers=first,
                scheduler=scheduler_spec(own, dashboard_address, self._idle_timeout),
                worker=worker,
                asynchronous=asynchronous,
                security=own,
                silence_logs=logging.WARNING,  # pyright: ignore[reportArgumentType]  # a level, as LocalCluster gives it
                name=name,
            )
        except BaseException:
            # An interrupt here must not leave machines behind, because the caller has no cluster to close.
            if self._loop_runner.is_started():
                self.close()
            raise

    @property
    @in_own_context
    def spent(self) -> Decimal | None:
        """The estimated cost of all machines so far, lost ones included; None if a price could not be read."""
        return self._rentals.spent

    @property
    @in_own_context
    def hourly_price(self) -> Decimal | None:
        """The price of an hour of all present machines together, as listed; None if one could not be read."""
        return self._rentals.hourly_price

    @property
    def expires_at(self) -> datetime | None:
        """The time at which all machines end at the latest, in UTC; None before the cluster was started."""
        return self._rentals.until

    @property
    def rentals(self) -> Mapping[str, AsyncRental]:
        """The machines whose workers run or are being started, by the names of the workers, or the first part of those."""
        return self._supervisor.rentals

    @property
    def reason(self) -> RentGPUError | None:
        """The error for which no more machines are rented, or the cluster has ended by itself; None without one."""
        return self._supervisor.reason or self._reason

    def scale(self, n: int = 0, memory: str | float | None = None, cores: int | None = None) -> Any:
        """Start or end workers, until there are as many as wanted; those that end hand their data over.

        Args:
            n: the number of workers; with several on a machine, it is rounded up. `max_workers` bounds it.
            memory: the memory of all workers together; needs `memory_limit` as a number.
            cores: the threads of all workers together; needs `nthreads`.

        Raises:
            InvalidArgumentError: the number cannot be used, or a needed argument was not given to the cluster.
        """
        if memory is not None:
            n = max(n, math.ceil(parse_bytes(memory) / self._plan.memory_of_worker))
        if cores is not None:
            n = max(n, math.ceil(cores / self._plan.threads_of_worker))
        machines = self._machines_for(n)
        if self.asynchronous:
            self._scale_to(machines)
            return NoOpAwaitable()
        return self.sync(self._scale_soon, machines)

    def adapt(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]  # its options have names here
        self,
        Adaptive: type[Adaptive] | None = None,  # noqa: N803  # as Dask names it
        *,
        minimum: int = 0,
        maximum: int | None = None,
        interval: str | float | timedelta = "5s",
        wait_count: int = 60,
        target_duration: str | float | timedelta = "5m",
        **options: Any,
    ) -> Adaptive:
        """Start and end workers by the load, between two bounds. The defaults suit machines that take a minute to boot.

        Args:
            minimum, maximum: the bounds of the number of workers; None for `max_workers`.
            interval: the time between two looks at the load.
            wait_count: the number of looks in a row that find a worker to be too many, before it ends.
            target_duration: the time in which the present work is to be done.
            options: other arguments of `distributed.deploy.Adaptive`.

        Raises:
            InvalidArgumentError: a bound cannot be used.
        """
        most = checked_bounds(minimum, maximum, self._max_workers)
        if self._plan.suffixes:
            options.setdefault("worker_key", machine_of)
        return super().adapt(
            Adaptive=adaptive_like(Adaptive),
            minimum=minimum,
            maximum=most,
            interval=interval,
            wait_count=wait_count,
            target_duration=target_duration,
            **options,
        )

    async def scale_down(self, workers: Iterable[str]) -> None:
        """End workers by their names; a machine with several is given back once all of them are named."""
        named = frozenset(workers)
        for entry in tuple(self.worker_spec):
            if named.issuperset(self._plan.names(entry)):
                self._remove(entry)
        await self._correct_state()

    def _started_scheduler(self) -> Scheduler:
        if self.scheduler is None:
            raise ClientStateError("this cluster was not started; use it with 'with', or 'async with'")
        return self.scheduler

    def _replace(self, workers: MachineWorkers) -> str | None:
        if workers.name not in self.worker_spec:
            return None
        new = self.new_worker_spec()
        self.worker_spec.update(new)
        self._drop(workers)
        return str(next(iter(new)))

    def _drop(self, workers: MachineWorkers) -> None:
        self._remove(workers.name)
        self._supervisor.note_change()
        self._correct_soon()

    def _remove(self, entry: str) -> None:
        self.worker_spec.pop(entry, None)
        self._supervisor.forget(entry)

    def _end_without_workers(self) -> None:
        # Otherwise the clients would wait without an end.
        if not self.worker_spec:
            self._begin_close()

    def _correct_state(self) -> asyncio.Future[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]  # awaited alone
        # All callers share one task, which Dask never replaces once one of them is cancelled.
        return asyncio.shield(super()._correct_state())

    def _correct_soon(self) -> None:
        """Start and close entries as the specification has them now."""
        if self.loop is not None:
            self.loop.add_callback(self._correct_state)

    def _machines_for(self, workers: int, argument: str = "n") -> int:
        """Return the number of machines for a number of workers."""
        if type(workers) is not int or workers < 0:
            raise InvalidArgumentError(argument, f"must be a number of workers: {arguments.shown_value(workers)}")
        if workers > self._max_workers:
            logger.warning("%d workers are wanted, and max_workers allows %d", workers, self._max_workers)
        return min(math.ceil(workers / self._plan.on_each), self._max_workers // self._plan.on_each)

    def _new_worker_name(self, worker_number: int) -> str:
        del worker_number  # names are never used again
        return f"{'gpu' if self._plan.per_gpu else 'machine'}-{next(self._numbers)}"

    async def _scale_soon(self, machines: int) -> None:
        self._scale_to(machines)

    def _scale_to(self, machines: int) -> None:
        spec = self.worker_spec
        # Those first whose workers do not run yet, and of those that run the newest.
        running = {entry for entry, workers in self.workers.items() if workers.phase is WorkersPhase.RUNNING}
        by_value = sorted(spec, key=lambda entry: (entry in running, -int(entry.rpartition("-")[2])))
        for entry in by_value[: max(0, len(spec) - machines)]:
            self._remove(entry)
        if self.reason is None and self.status not in (Status.closing, Status.closed):
            while len(spec) < machines:
                spec.update(self.new_worker_spec())
        self._correct_soon()

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # Not that of SpecCluster, which closes lost workers and starts others of the same name.
        super(SpecCluster, self)._update_worker_status(op, msg)
        self._supervisor.note_change()

    async def _wait_for_workers(self, n_workers: int = 0, timeout: str | float | timedelta | None = None) -> None:
        if n_workers > self._max_workers:
            raise InvalidArgumentError("n_workers", f"is {n_workers}, and max_workers allows {self._max_workers}")
        deadline = asyncio.timeout(None if timeout is None else parse_timedelta(timeout))
        try:
            async with deadline:
                while len(self._supervisor.seen_workers) < n_workers:
                    if self.reason is not None and len(self.plan) < n_workers:
                        raise self.reason
                    if self._closing is not None:
                        raise self.reason or ClientStateError("this cluster is closed, and starts no more workers")
                    await self._supervisor.changed()
        except TimeoutError as error:
            if not deadline.expired():  # it is the reason
                raise
            seen = self._supervisor.seen_workers
            raise TimeoutError(f"{len(seen)} of {n_workers} workers have joined within {timeout}") from error

    def _on_event(self, event: RentalEvent) -> None:
        self._supervisor.on_event(event)

    async def _start(self) -> None:
        if self.status is not Status.created:
            await super()._start()
            return
        try:
            await self._client.__aenter__()
            await self._rentals.begin()
            close_at_exit(self)
            await super()._start()
        except BaseException:
            if cast("Status", self.status) is not Status.closed:  # otherwise Dask waits for the start, which has ended
                self.status = Status.failed
            # The caller may have no cluster to close.
            await self._close()
            raise
        self._following = asyncio.create_task(self._follow_scheduler())

    async def __aenter__(self) -> Self:
        try:
            await super().__aenter__()
        except BaseException:
            await self._close()
            raise
        return self

    async def _follow_scheduler(self) -> None:
        """Close the cluster when its scheduler has ended by itself: otherwise it would rent for a dead one."""
        await self._started_scheduler().finished()
        if self._closing is None:
            self._reason = error_of_end(self._started_scheduler(), self._idle_timeout)
            logger.warning("%s", self._reason)
            self._begin_close()

    def close(self, timeout: float | None = None) -> Any:
        """Delete all machines, and end the cluster. A second call does nothing, nor does a call in a forked child.

        Args:
            timeout: the seconds to wait; the deletion goes on after them. In an event loop, the whole end is waited for.

        Raises:
            ReleaseError: a machine could not be deleted, and stays on record.
            TimeoutError: the time is over.
        """
        if os.getpid() != self._process_id:  # a forked child has no event loop, and would wait without an end
            return None
        if self.status is Status.closed:
            self._supervisor.raise_problems()
        return super().close(timeout)

    def _begin_close(self) -> asyncio.Task[None]:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close_all())
            self._supervisor.note_change()
            # Mark the error as retrieved: otherwise asyncio logs it where the cluster ends by itself.
            self._closing.add_done_callback(lambda done: done.cancelled() or done.exception())
        return self._closing

    async def _close(self) -> None:
        # However often this is cancelled, because an event loop may end with its last caller.
        await wait_shielded(closing := self._begin_close())
        closing.result()
        self._supervisor.raise_problems()

    async def _close_all(self) -> None:
        """Delete all machines, then close the scheduler and the client."""
        if self._adaptive is not None:
            self._adaptive.stop()
        while self.status is Status.starting:  # noqa: ASYNC110  # Dask looks so, too, and has no event
            await asyncio.sleep(_BETWEEN_LOOKS)
        try:
            await self._supervisor.end()
            if not self.scheduler_comm:
                if self.scheduler is not None:
                    await self.scheduler.close()
                # Not failed, of which Dask's own method would warn.
                self.status = Status.created
            elif self.scheduler is not None and self.scheduler.status is not Status.running:
                self.shutdown_scheduler = False
            await super()._close()
            if self._following is not None:
                self._following.cancel()
        finally:
            await self._client.close()

    def _repr_html_(self, cluster_status: str | None = None) -> str:
        rows = {
            "Machines": len(self._rentals.running),
            "An hour costs": self.hourly_price,
            "Spent": self.spent,
            "Ends at": self.expires_at,
            "Rents no more": self.reason,
        }
        cells = "".join(f"<tr><td>{name}: {escape(str(value))}</td></tr>" for name, value in rows.items() if value)
        return str(super()._repr_html_(cluster_status=(cluster_status or "") + f"<table>{cells}</table>"))
