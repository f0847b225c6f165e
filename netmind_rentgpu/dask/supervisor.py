"""The supervisor of a cluster's machines: it rents them, runs their workers, and replaces what is lost.

Each entry of the cluster's specification has one task, `run`, which takes it through the phases of `WorkersPhase`. If the
workers end without a wish of the cluster, another entry with another name takes their place, in the same container if that
still lives.
"""

# Because the annotations of dask and distributed are incomplete:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.dask.endings import error_without_rentals
from netmind_rentgpu.dask.failures import SHORT_LIFE, FailuresInARow
from netmind_rentgpu.dask.machine_runs import ClusterCalls, FreeMachine, MachineRun
from netmind_rentgpu.dask.machine_workers import MachineWorkers, WorkersPhase
from netmind_rentgpu.dask.mesh import Mesh, MeshMember
from netmind_rentgpu.dask.software import prepare, versions_here
from netmind_rentgpu.dask.worker_jobs import (
    WorkerPlan,
    check_gpus,
    last_lines,
    worker_command,
    worker_environment,
    worker_input,
)
from netmind_rentgpu.errors import (
    BudgetExceededError,
    InsufficientBudgetError,
    RentalExpiredError,
    RentGPUError,
    SSHError,
    TransportError,
    WaitTimeoutError,
)
from netmind_rentgpu.rentals.fleet_rentals import HOPELESS, FleetRentals
from netmind_rentgpu.ssh.connection_source import LONGEST_OUTAGE

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

    from netmind_rentgpu.rentals.lifecycle.events import RentalEvent
    from netmind_rentgpu.rentals.rental import AsyncRental
    from netmind_rentgpu.ssh.jobs import AsyncJob

__all__ = ["Supervisor"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

# Seconds.
_LONGEST_RETIREMENT: Final = 300.0
_AFTER_OUTAGE: Final = 5.0
_BETWEEN_LOOKS: Final = 0.2
# For what a machine with lost workers answers, which may not answer at all.
_LONGEST_LOOK: Final = 20.0
# A worker that the scheduler has lost may come back, because its nanny restarts it.
_LONGEST_ABSENCE: Final = 60.0
# The deadlines of a cluster and of its machines are set one after the other.
_SAME_TIME: Final = timedelta(seconds=10)
# The errors of a start that no other machine would be spared.
_HOPELESS: Final = (*HOPELESS, InsufficientBudgetError, BudgetExceededError, RentalExpiredError)
_HAVE_MACHINE: Final = frozenset({WorkersPhase.JOINING, WorkersPhase.RUNNING, WorkersPhase.RETIRING})


class Supervisor:
    """The machines of one cluster.

    Attributes:
        reason: the cause for which no more machines are rented; None as long as they are.
        problems: the errors of machines that could not be deleted.
    """

    def __init__(
        self,
        rentals: FleetRentals,
        plan: WorkerPlan,
        cluster: ClusterCalls,
        *,
        security: Mapping[str, Any],
        config: Any,
        most_failures: int,
        start_timeout: float,
        replaces: bool,
    ) -> None:
        """Initialize; nothing is rented before `run`.

        Args:
            security: the keyword arguments of Dask's `Security` on a worker.
            config: Dask's configuration for the workers.
            most_failures: the number of failures in a row after which no more machines are rented.
            start_timeout: the seconds in which started workers must join the cluster.
            replaces: True to start other workers for those that are lost.
        """
        self.reason: RentGPUError | None = None
        self.problems: list[RentGPUError] = []
        self._rentals = rentals
        self._plan = plan
        self._cluster = cluster
        self._mesh = Mesh()
        self._security = security
        self._config = config
        self._failures = FailuresInARow(most_failures)
        self._start_timeout = start_timeout
        self._replaces = replaces
        self._runs: dict[MachineWorkers, MachineRun] = {}
        # By the name of the entry that each is kept for.
        self._free: dict[str, FreeMachine] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        # True once any workers have lasted, so that the service is known to be reached from here.
        self._has_worked = False
        self._is_ending = False

    @property
    def rentals(self) -> dict[str, AsyncRental]:
        """The machines whose workers run or are being started, by the names of their entries."""
        # A copy, because any thread may ask.
        return {
            workers.name: workers.rental
            for workers in tuple(self._runs)
            if workers.rental is not None and workers.phase in _HAVE_MACHINE
        }

    @property
    def seen_workers(self) -> set[str]:
        """The names of the workers that are connected to the scheduler."""
        return {str(worker.name) for worker in self._cluster.scheduler().workers.values()}

    def names(self, of_machine: str) -> tuple[str, ...]:
        """Return the names of the workers of one machine."""
        return self._plan.names(of_machine)

    def note_change(self) -> None:
        """Wake the tasks that wait for workers."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait until the workers that the scheduler sees may have changed, or no more machines are rented."""
        await self._changed.wait()

    async def run(self, workers: MachineWorkers) -> None:
        """Run workers on a machine until they have ended, and give the machine back; a cancellation ends that."""
        if self._is_ending:
            return
        run = self._runs[workers] = MachineRun(workers)
        loss: RentGPUError | None = None
        try:
            await self._work(run)
        except RentGPUError as error:
            loss = error
        except Exception as error:
            # For example too many open files. Otherwise the entry would stay without a machine, and clients would wait.
            logger.exception("the workers %s could not be run", workers.name)
            loss = RentGPUError(f"the workers {workers.name} could not be run: {error!r}")
        finally:
            await self._end_run(run, loss)

    def retire(self, workers: MachineWorkers) -> None:
        """Begin to end workers: let them hand their data over if they run, and give the machine back."""
        run = self._runs.get(workers)
        if run is not None:
            run.is_wanted = False
        if workers.phase is WorkersPhase.RUNNING and not self._is_ending:
            workers.phase = WorkersPhase.RETIRING
            self._begin(self._retire(workers))
        # Otherwise a machine that is kept for others would be forgotten.
        elif workers.phase not in (WorkersPhase.RETIRING, WorkersPhase.ENDED):
            _cancel(workers)

    def forget(self, entry: str) -> None:
        """Release the machine that was kept for an entry, because that is not wanted any more."""
        if (free := self._free.pop(entry, None)) is not None:
            self._begin(self._release(free.rental))

    def on_event(self, event: RentalEvent) -> None:
        """Begin to end the workers of a machine that is about to expire before the cluster does."""
        until = self._rentals.until
        if event.kind != "expiring" or self._is_ending or event.expires_at is None or until is None:
            return
        if event.expires_at >= until - _SAME_TIME:
            return
        for workers in tuple(self._runs):
            if workers.phase in _HAVE_MACHINE and workers.rental is not None and workers.rental.name == event.name:
                self._end_before_expiry(workers)

    def _end_before_expiry(self, workers: MachineWorkers) -> None:
        if self._rentals.can_rent and self.reason is None:
            logger.warning("the workers %s are replaced, because their machine expires", workers.name)
            self._cluster.replace(workers)
            return
        self._give_up(error_without_rentals(self._rentals))
        # The last ones work until their machine expires, because no others could have their data.
        if any(run.is_wanted and run.has_joined for other, run in self._runs.items() if other is not workers):
            logger.warning("the workers %s are retired, because their machine expires", workers.name)
            # At once, because the next machine may expire before the cluster closes this entry.
            self._runs[workers].is_wanted = False
            self._cluster.drop(workers)

    async def end(self) -> None:
        """End all workers, without their data, and give all machines back, however often this is cancelled."""
        self._is_ending = True
        ending = asyncio.get_running_loop().create_task(self._end())
        await wait_shielded(ending, cancelled=self._rentals.interrupt)
        ending.result()

    async def _end(self) -> None:
        tasks = [*self._tasks, *(workers.task for workers in self._runs if workers.task is not None)]
        for task in self._tasks:
            task.cancel()
        for workers in self._runs:
            _cancel(workers)
        if tasks:
            await asyncio.wait(tasks)
        for end in await asyncio.gather(*(rental.close() for rental in self._rentals.begun), return_exceptions=True):
            if isinstance(end, RentGPUError) and end not in self.problems:
                self.problems.append(end)
            elif isinstance(end, BaseException) and end not in self.problems:
                logger.error("a machine of the cluster could not be deleted", exc_info=end)
        # Because the tasks above have begun others, which close forwards.
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._rentals.end()

    def raise_problems(self) -> None:
        """Raise, once, the error of a machine that could not be deleted, with notes of the others."""
        problems, self.problems = self.problems, []
        for problem in problems[1:]:
            problems[0].add_note(str(problem))
        if problems:
            raise problems[0]

    async def _work(self, run: MachineRun) -> None:
        """Run workers through their phases.

        Raises:
            RentGPUError: the workers could not be started, or have ended.
        """
        workers = run.workers
        pause = self._failures.pause
        if pause and self.reason is None:
            workers.phase = WorkersPhase.WAITING
            await asyncio.sleep(pause)
        if self.reason is not None:
            raise self.reason
        rental, run.python = await self._machine_for(workers)
        workers.phase = WorkersPhase.JOINING
        member = await self._mesh.join(rental, self._plan.on_each, _port_of(self._cluster.scheduler()))
        try:
            starting = [
                self._start_worker(rental, run.python, name, number, member)
                for number, name in enumerate(workers.worker_names)
            ]
            run.jobs = tuple(await asyncio.gather(*starting))
            try:
                await self._watch(run)
            except RentGPUError:
                # While the mesh still leads to those that are left.
                if run.has_joined and (left := self.seen_workers.intersection(workers.worker_names)):
                    await self._move_data_off(left)
                raise
        finally:
            self._begin(self._mesh.leave(member))

    async def _machine_for(self, workers: MachineWorkers) -> tuple[AsyncRental, str]:
        """Return a machine that is ready for workers, and the path of its Python."""
        free = self._free.pop(workers.name, None)
        if free is not None and not free.rental.ended:
            workers.rental = free.rental
            return free.rental, free.python
        workers.phase = WorkersPhase.RENTING
        if not self._rentals.can_rent:
            raise error_without_rentals(self._rentals)
        rental = workers.rental = self._rentals.new()
        await rental.open()
        workers.phase = WorkersPhase.PREPARING
        python = await prepare(rental, self._plan.software, self._plan.environment, versions_here())
        if self._plan.per_gpu:
            await check_gpus(rental, self._plan.on_each)
        return rental, python

    async def _start_worker(
        self, rental: AsyncRental, python: str, name: str, number: int, member: MeshMember
    ) -> AsyncJob:
        given = worker_input(
            self._plan,
            name=name,
            scheduler=str(self._cluster.scheduler().address),
            ports=member.ports[number],
            security=self._security,
            config=self._config,
        )
        variables = worker_environment(self._plan, number)
        return await rental.start(worker_command(python), name=f"dask-{name}", environment=variables, input=given)

    async def _watch(self, run: MachineRun) -> None:
        """Wait until workers have joined, and then until one has ended.

        Raises:
            RentGPUError: they have not joined, or one has ended.
        """
        workers = run.workers
        names = frozenset(workers.worker_names)
        ends = [
            asyncio.create_task(self._end_of(job, name))
            for job, name in zip(run.jobs, workers.worker_names, strict=True)
        ]
        success: asyncio.TimerHandle | None = None
        try:
            seen = asyncio.create_task(self._seen(names, self._start_timeout))
            ends.append(seen)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            _raise_first(ends)
            run.has_joined = True
            if workers.phase is WorkersPhase.JOINING:
                workers.phase = WorkersPhase.RUNNING
            logger.info("the workers %s have joined the cluster, on %s", workers.name, workers.rental)
            success = asyncio.get_running_loop().call_later(SHORT_LIFE, self._note_success, run)
            ends[-1] = asyncio.create_task(self._unseen(names))
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            _raise_first(ends)
        finally:
            if success is not None:
                success.cancel()
            for task in ends:
                task.cancel()
            # Several may have failed, and asyncio logs an error that no task has retrieved.
            await asyncio.gather(*ends, return_exceptions=True)

    def _note_success(self, run: MachineRun) -> None:
        run.has_lasted = self._has_worked = True
        self._failures = self._failures.after_success()

    async def _seen(self, names: Collection[str], longest: float) -> None:
        """Wait until the scheduler sees workers.

        Raises:
            WaitTimeoutError: it has not, for so many seconds.
        """
        missing = set(names)
        try:
            async with asyncio.timeout(longest):
                while missing := set(names) - self.seen_workers:
                    await self.changed()
        except TimeoutError as error:
            text = f"the scheduler has not seen {', '.join(sorted(missing))} for {longest:g} s"
            raise WaitTimeoutError(text, arrived={}, pending={}) from error

    async def _unseen(self, names: Collection[str]) -> None:
        """Wait until the scheduler does not see workers for longer than a restart takes.

        Raises:
            WaitTimeoutError: always, in the end.
        """
        while True:
            await self._seen(names, _LONGEST_ABSENCE)
            await self.changed()

    async def _end_of(self, job: AsyncJob, name: str) -> None:
        """Wait for the end of a worker's job.

        Raises:
            RentGPUError: always, in the end.
        """
        status = await job.wait()
        how = f"signal {status.exit_signal}" if status.exit_signal else f"status {status.exit_status}"
        text = f"worker {name} has ended: {'it was lost' if status.state == 'lost' else how}"
        raise SSHError(text + await last_lines(job), stage="command")

    async def _retire(self, workers: MachineWorkers) -> None:
        try:
            await self._move_data_off(workers.worker_names)
        finally:
            _cancel(workers)

    async def _move_data_off(self, names: Collection[str]) -> None:
        """Move the data that only some workers have to others, for a limited time. They get no more work."""
        try:
            async with asyncio.timeout(_LONGEST_RETIREMENT):
                while self._must_wait_for_others():  # noqa: ASYNC110  # Dask has no event for a worker that can take data
                    await asyncio.sleep(_BETWEEN_LOOKS)
                await self._cluster.scheduler().retire_workers(names=list(names))
        except Exception as error:  # noqa: BLE001  # of Dask, or of its connections
            cause = str(error) or type(error).__name__
            logger.warning("the workers %s could not hand their data over: %s", ", ".join(names), cause)

    def _must_wait_for_others(self) -> bool:
        """Check if other workers are about to start, and none that stays can take data yet."""
        wanted = {name for entry in self._cluster.wanted() for name in self.names(entry)}
        return bool(wanted) and wanted.isdisjoint(str(worker.name) for worker in self._cluster.scheduler().running)

    async def _end_run(self, run: MachineRun, loss: RentGPUError | None) -> None:
        """Delete the machine of workers, or keep it for others, and replace workers that were lost."""
        workers = run.workers
        phase, workers.phase = workers.phase, WorkersPhase.ENDED
        try:
            if loss is None or not run.is_wanted or self._is_ending:
                await self._release(workers.rental)
                return
            logger.warning("the workers %s are lost: %s", workers.name, loss)
            if self._has_worked and isinstance(loss, TransportError):
                # The network of this machine is down: no machine is at fault, and nothing is rented meanwhile.
                await asyncio.sleep(_AFTER_OUTAGE)
            elif not run.has_lasted:
                self._failures = self._failures.and_one_more()
            if self._failures.are_too_many or (phase is WorkersPhase.RENTING and isinstance(loss, _HOPELESS)):
                self._give_up(loss)
            starts_others = self._replaces or not run.has_joined
            if not starts_others and not any(other.is_wanted for other in self._runs.values() if other is not run):
                self._give_up(loss)
            kept = await self._kept(run) if starts_others and run.has_joined and self.reason is None else None
            entry = self._cluster.replace(workers) if starts_others and self.reason is None else None
            if kept is not None and entry is not None:
                self._free[entry] = kept
            else:
                self._begin(self._release(workers.rental))
            if entry is None:
                self._cluster.drop(workers)
        finally:
            del self._runs[workers]
            if self.reason is not None and not self._runs and not self._is_ending:
                self._cluster.end()

    async def _kept(self, run: MachineRun) -> FreeMachine | None:
        """Return the machine of lost workers for others; None if it cannot run them."""
        rental = run.workers.rental
        if rental is None or run.python is None:
            return None
        try:
            # If all workers are lost at once, the network of this machine may be down for a while.
            async with asyncio.timeout(_LONGEST_LOOK if self.seen_workers else LONGEST_OUTAGE):
                await asyncio.gather(*(job.stop(grace=1) for job in run.jobs))
        except (RentGPUError, TimeoutError):
            return None
        return None if rental.ended else FreeMachine(rental, run.python)

    def _give_up(self, loss: RentGPUError) -> None:
        if self.reason is not None:
            return
        self.reason = loss
        logger.error("the cluster rents no more machines: %s", loss)
        self.note_change()
        for workers in tuple(self._runs):
            # Others have a machine, or are about to have one, and may be the only workers that the cluster gets.
            if workers.phase is WorkersPhase.WAITING:
                self._cluster.drop(workers)
        for entry in tuple(self._free):
            self.forget(entry)

    async def _release(self, rental: AsyncRental | None) -> None:
        if rental is None:
            return
        try:
            await rental.close()
        except RentGPUError as error:  # it stays on record
            self.problems.append(error)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _cancel(workers: MachineWorkers) -> None:
    """Cancel the task of workers once, because a rental takes a second cancellation for a wish to give its deletion up."""
    if workers.task is not None and not workers.task.cancelling():
        workers.task.cancel()


def _port_of(scheduler: Scheduler) -> int:
    return int(scheduler.address.rpartition(":")[2])


def _raise_first(ends: Collection[asyncio.Task[None]]) -> None:
    for task in ends:
        if task.done():
            task.result()
