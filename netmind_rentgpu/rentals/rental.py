"""`AsyncRental`: the context manager of one rented machine.

A rental ends in one way. Leaving its block (at the end, by an error or a cancellation, which `asyncio.run` makes of Ctrl-C),
`close`, `detach` and the expiry all call `_begin_end`, which starts the task `_finish`; no cancellation of a caller reaches
it, because callers wait by `wait_shielded`. `Provisioner.release_all` then ends each create attempt by `Cleanup.run`
(`rentals/lifecycle/cleanup.py`), whose `Deletion` (`rentals/lifecycle/deletion.py`) sends the request. If the block is never
left, `at_exit.py` deletes the rental.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from types import TracebackType
from typing import Self

from netmind_rentgpu.amounts import in_own_context, rounded
from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.conditions import Condition
from netmind_rentgpu.errors import (
    ClientStateError,
    InsufficientBudgetError,
    ReleaseError,
    RentalEndedError,
)
from netmind_rentgpu.models import Container, Machine
from netmind_rentgpu.rentals.at_exit import release_at_exit
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.deadlines import Extension, checked_extension
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.lifecycle import release_jobs
from netmind_rentgpu.rentals.lifecycle.events import EventOptions, RentalEvents
from netmind_rentgpu.rentals.lifecycle.expiry import ExpiryTimer, OwnerTask
from netmind_rentgpu.rentals.lifecycle.idle_clock import between_readings
from netmind_rentgpu.rentals.lifecycle.idleness import IdleOptions, IdleWatch
from netmind_rentgpu.rentals.lifecycle.provisioner import Provisioner
from netmind_rentgpu.rentals.lifecycle.release_jobs import ReleaseWhen, StartedJob
from netmind_rentgpu.rentals.lifecycle.start import RentalStart
from netmind_rentgpu.rentals.lifecycle.starting import MachineSource, StartLimits
from netmind_rentgpu.rentals.lifecycle.state import EndReason, Phase, cause_of, noted, what_to_raise
from netmind_rentgpu.rentals.rented_machine import RentedMachine
from netmind_rentgpu.rentals.signals import check_signals, until_passed_on

__all__ = ["AsyncRental"]


class AsyncRental(RentedMachine):
    """A rented machine: `async with gpu.rent(...) as rental: ...`. It is deleted when the block is left, in any way.

    Entering the block rents the machine and logs in to its container. Several tasks may use the rental. When its time is
    up, or its budget is spent, it is deleted even while the block runs: the task that entered the block is cancelled, and
    the block raises `RentalExpiredError` or `BudgetExceededError`, as every later use of the rental does.

    No cancel scope or task group is open while the block runs, so one task may enter it and another leave it. Before the
    rental is entered, its attributes raise `ClientStateError`.
    """

    def __init__(
        self,
        context: RentalContext,
        source: MachineSource,
        *,
        limits: StartLimits,
        fail: Condition | None = None,
        events: EventOptions,
        idle: IdleOptions = IdleOptions(),  # noqa: B008  # frozen
    ) -> None:
        """Initialize; nothing is rented before the rental is entered.

        Args:
            source: rents the machine.
            fail: returns True for a container that will not start.
            idle: the caller's wishes for an idle machine.
        """
        super().__init__(context)
        self._source = source
        self._limits = limits
        self._fail = fail
        self._events = RentalEvents(context, events)
        self._provisioner = Provisioner(context, self._events)
        self._ending: asyncio.Task[ReleaseError | None] | None = None
        self._expiry = ExpiryTimer(self._provisioner, context, self._events)
        self._idle = IdleWatch(context, idle, self._events)
        self._released = asyncio.Event()
        self._ended_at: datetime | None = None
        self._owner_task: OwnerTask | None = None
        # True if its shared budget has no room for a later deadline.
        self._is_out_of_budget = False
        self._is_leased = False
        self._start = RentalStart(
            context=context,
            source=source,
            limits=limits,
            fail=fail,
            provisioner=self._provisioner,
            state=self._state,
            shell=self._shell,
            expiry=self._expiry,
            events=self._events,
        )

    @property
    def name(self) -> str:
        """The name of the container, and of the rental in the state file."""
        return self._state.had.record.name

    @property
    def label(self) -> str | None:
        """The label that the rental was made with; None if it has none."""
        return self._state.had.record.label

    @property
    def container(self) -> Container:
        """The container, as it was at the login."""
        return self._state.had.container

    @property
    def machine(self) -> Machine:
        """The machine, as it was listed; for an attached rental, only its node, GPU and region are known."""
        return self._state.had.machine

    @property
    def hourly_price(self) -> Decimal | None:
        """The price of an hour, by the listed price of the machine; None if that could not be read."""
        return self._state.had.record.hourly_price

    @property
    def expires_at(self) -> datetime | None:
        """The latest time at which the rental is deleted, by its time and budget, in UTC; None for a rental that is kept."""
        return self._state.had.record.expires_at

    @property
    def max_cost(self) -> Decimal | None:
        """The most that the rental can cost until `expires_at`, by the listed price, machines that did not start included.

        It is None if the price could not be read, and for a rental that is kept. This process enforces it. If it is killed
        and no other reaps, only `rentals.reap(by_name=True)` ends the rental, at its ceiling (`max_cost_at_ceiling`).
        """
        return self._state.had.record.max_cost

    @property
    def max_cost_at_ceiling(self) -> Decimal | None:
        """The most that it can cost if only `rentals.reap(by_name=True)` is left to end it; None as for `max_cost`."""
        return self._state.had.record.max_cost_at_ceiling

    @property
    @in_own_context
    def spent(self) -> Decimal | None:
        """The estimated cost so far, by listed price and time; None if the price could not be read.

        The cost of machines that did not start is included. The service has no call that returns what a container costs.

        Raises:
            ClientStateError: the rental was not entered yet.
        """
        failed = self._source.failed
        if self._state.provisioned is None and failed:
            return failed.cost
        record = self._state.had.record
        cost = record.cost_until(self._ended_at or record.present(self._context.clock()))
        return None if cost is None or failed.cost is None else rounded(cost + record.spent_before)

    async def detach(self, *, release_when: ReleaseWhen | None = None, job: StartedJob | None = None) -> RentalRecord:
        """Leave the rental running until its expiry, unless it is attached to again and left before.

        The guardian of the client deletes it at its expiry, or with the end of a job. Without a guardian, the first
        `rentals.reap()` after its expiry does; if no process runs that, the rental goes on and costs money. This object
        cannot be used any longer.

        Args:
            release_when: `exits` to let the guardian give the machine back when the job is over, however it ends: five
                seconds later, which leave time to read the end, to about a minute later. None for the expiry alone, which
                holds in any case.
            job: the job that is meant, of this rental.

        Returns:
            The record in the state file, which `rentals.attach` takes.

        Raises:
            StateFileError: the record could not be written; leaving the block still deletes the container.
            RentalEndedError: the rental is over already, or another process has ended it meanwhile.
            ConfigurationError: the client has no guardian to see the end of the job, or whether the machine is idle; the
                rental is not detached.
            InvalidArgumentError: only one of the arguments is given, or the job is not one of this rental's container.
            SSHError: the container could not be asked for the job.
            ClientStateError: the rental was not entered yet, was left or detached before, or is kept anyway; or it has an
                `idle_when`, which no other process can call, or belongs to a fleet with a budget.
        """
        self._state.check_loop()
        record = self._state.check_deadline("detach").record
        if self._is_leased:
            raise ClientStateError(
                "this rental belongs to a fleet with a budget, which extends its time; rent it alone to detach it"
            )
        await self._guard_idleness(record)
        if (until := release_jobs.check_release(release_when, job)) is not None:
            await self._guard_job(until)
            record = self._state.check_deadline("detach").record
        detaching = asyncio.create_task(self._provisioner.detach(record, release_jobs.guarded(until, self._idle.clock)))
        try:
            await wait_shielded(detaching)
        finally:
            if isinstance(problem := detaching.exception(), RentalEndedError) and self._ending is not None:
                raise self._state.error from problem  # this process has ended it, by closing the client
            detached = detaching.result()
            has_ended = self._ending is not None
            releasing = self._begin_end(EndReason.DETACHED)
        await wait_shielded(releasing)
        if has_ended:  # by its deadline, or by a concurrent `close`, a moment before
            raise self._state.error
        return detached

    async def _guard_job(self, job: StartedJob) -> None:
        await release_jobs.check_job(job, self.job)
        await self._context.guard_detached("release_when='exits'", self._context.limits.between_job_looks)

    async def _guard_idleness(self, record: RentalRecord) -> None:
        if self._idle.is_judged_here:
            raise ClientStateError(
                "this rental has idle_when, a function that only this process can call, so that it cannot be detached; rent"
                " with idle_timeout alone"
            )
        # The guardian of the process that has rented it goes on.
        has_guardian = self._context.guardian is None and record.guardian is not None
        if record.idle_timeout is not None and not has_guardian:
            pause = between_readings(record.idle_timeout, timedelta(seconds=self._context.limits.between_job_looks))
            await self._context.guard_detached("idle_timeout", pause.total_seconds())

    async def extend(
        self,
        *,
        ttl: timedelta | None = None,
        until: datetime | None = None,
        budget: Decimal | float | None = None,
    ) -> RentalRecord:
        """Move the deadline of the rental: it never becomes earlier.

        Args:
            ttl: the time from now on, for which the container may run.
            until: the moment until which it may run, with a time zone; instead of `ttl`.
            budget: the new total of what the rental may cost, what it has cost so far included.

        Returns:
            The record, whose `expires_at` is the earlier of the two limits.

        Raises:
            InvalidArgumentError: an argument cannot be used, would end the rental earlier than before, or later than the
                `extendable_to` that it was rented with.
            RentalEndedError: the rental is over.
            StateFileError: the state file cannot be used; the deadline stays.
            ClientStateError: the rental was not entered yet, was left or detached, or is kept anyway.
        """
        self._state.check_loop()
        name = self._state.check_deadline("extend").record.name
        wanted = checked_extension(ttl=ttl, until=until, budget=budget)
        record = await self._move_deadline(name, wanted)
        self._events.emit("extended", record)
        await self._events.let_begin()
        return record

    async def _move_deadline(self, name: str, wanted: Extension) -> RentalRecord:
        record = await self._context.ledger.extend(name, wanted, self._context.clock())
        self._provisioner.move_deadline(record)
        self._state.move_deadline(record)
        self._expiry.move(record)
        return record

    def _join_fleet(self, until: datetime | None, *, is_leased: bool) -> None:
        """End the rental with its fleet; to be called before it is entered.

        Args:
            until: the end of the fleet, in UTC.
            is_leased: True if the fleet extends the rental's time while it lives.
        """
        self._source.until, self._is_leased = until, is_leased

    async def _extend_lease(self, until: datetime, *, is_whole: bool) -> None:
        """Move the deadline to a moment, without an event; keep a later deadline.

        Args:
            is_whole: False for a part of a lease, because the budget had no room for a whole one.

        Raises:
            InsufficientBudgetError: the shared budget has no room for that; the rental ends at its present deadline.
            RentalEndedError: the rental is over.
            StateFileError: the state file cannot be used; the deadline stays.
            ClientStateError: the rental was left, or has no container yet.
        """
        record = self._state.check().record
        clocks = self._context.clock()
        if record.expires_at is None or until - clocks.wall <= record.expires_at - record.present(clocks):
            return
        try:
            await self._move_deadline(record.name, Extension(until=until))
        except InsufficientBudgetError:
            self._is_out_of_budget = True
            raise
        if is_whole:
            self._is_out_of_budget = False

    async def open(self) -> Self:
        """Rent the machine without a block, as in a notebook, and return this rental; `close` deletes it.

        When its time or its budget is up, the rental is deleted, no task is cancelled, and the next use of it raises
        `RentalExpiredError` or `BudgetExceededError`. A rental that is not closed is deleted when its client is closed or
        the interpreter exits.

        Raises:
            RentGPUError: as on entering the block.
        """
        await self.__aenter__()
        if self._owner_task is not None:
            try:
                await self._owner_task.let_cancellation_come()
            except asyncio.CancelledError as cancellation:  # the time was up while the rental was being started
                await self._leave_block(cancellation)
                raise
            self._owner_task.end()
        return self

    async def close(self) -> None:
        """Delete the rental, as leaving the block does. A second call does nothing.

        Raises:
            ReleaseError: the container could not be deleted, and stays on record.
            ClientStateError: it was entered in another event loop.
        """
        self._state.check_loop()
        self._state.end(EndReason.CLOSED)
        if not self._state.is_entered_here or self._owner_task is None:
            return
        if self._state.phase is Phase.STARTING:
            # The entering task deletes what it has rented, because it alone knows of a create under way.
            self._owner_task.cut_short("this rental is closed")
            await wait_shielded(asyncio.create_task(self._released.wait()), cancelled=self._provisioner.interrupt)
        problem, cancellation = await self._end(EndReason.CLOSED)
        if cancellation is not None:
            raise noted(cancellation, problem)
        if problem is not None:
            raise problem

    async def __aenter__(self) -> Self:
        self._state.check_new()
        self._context.check_usable()
        # Here, because the rental may have been made in the parent process.
        release_at_exit()
        check_signals()
        self._state.enter()
        self._owner_task = OwnerTask()
        try:
            self._context.register(self, self._provisioner.interrupt)
            await self._start.run(self._expire)
            self._provisioner.confirm_attach()
        except BaseException as error:
            await self._leave_block(error)
            raise
        self._state.advance(Phase.ACTIVE)
        self._seen = self._seen_now
        self._idle.begin(
            self._state.had.record,
            read=self._read_activity,
            is_used=self._is_used,
            expire=self._end_idle,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A forked child must not delete the rental of its parent.
        if self._state.is_entered_here:
            self._state.check_loop()
            await self._leave_block(error)

    def __copy__(self) -> Self:
        """Return the rental as another process sees it: it has nothing to delete."""
        other = type(self)(
            self._context,
            self._source,
            limits=self._limits,
            fail=self._fail,
            events=self._events.options,
            idle=self._idle.options,
        )
        other._state.reason = self._state.reason or EndReason.OTHER_PROCESS  # noqa: SLF001  # of this class
        other._state.provisioned = self._state.provisioned  # noqa: SLF001  # of this class
        return other

    def __repr__(self) -> str:
        if self._state.provisioned is None:
            return f"<{type(self).__name__}: nothing is rented yet>"
        state = "rented" if self._state.reason is None else "over"
        record = self._state.provisioned.record
        return f"<{type(self).__name__} {record.name} on {record.node_name}, container {record.container_id}: {state}>"

    def __reduce__(self) -> str:
        raise TypeError(
            "a rental belongs to its process and cannot be pickled; detach it, and attach to its record elsewhere"
        )

    def _expire(self) -> None:
        is_spent = self._is_out_of_budget or self._state.had.record.ends_by_budget
        self._begin_end(EndReason.BUDGET_SPENT if is_spent else EndReason.EXPIRED)
        if self._owner_task is not None:
            self._owner_task.cut_short(f"{self!r} is over")

    def _end_idle(self) -> None:
        self._begin_end(EndReason.IDLE)
        if self._owner_task is not None:
            self._owner_task.cut_short(f"{self!r} is idle")

    def _begin_end(self, reason: EndReason) -> asyncio.Task[ReleaseError | None]:
        self._state.end(reason)
        self._events.note_ending()
        if self._ending is None:
            is_left = self._state.reason in (EndReason.LEFT, EndReason.CLOSED)
            returns_detached = is_left and self._state.phase is Phase.STARTING
            self._state.advance(Phase.ENDING)
            self._expiry.end()
            self._idle.end()
            provisioned = self._state.provisioned
            self._ended_at = None if provisioned is None else provisioned.record.present(self._context.clock())
            self._ending = asyncio.get_running_loop().create_task(self._finish(returns_detached=returns_detached))
            # By a callback, because an ending event loop may cancel the task before it begins.
            self._ending.add_done_callback(self._is_over)
        return self._ending

    def _is_over(self, releasing: asyncio.Task[ReleaseError | None]) -> None:
        self._state.advance(Phase.ENDED)
        if not releasing.cancelled():
            self._context.unregister(self)
        self._released.set()

    async def _finish(self, *, returns_detached: bool) -> ReleaseError | None:
        """Delete what is still tracked, which after `detach` is nothing, and close the shell.

        Args:
            returns_detached: True if a rental that could not be attached to stays detached.
        """
        try:
            if returns_detached:
                await self._provisioner.return_detached()
            cause = cause_of(self._state.reason, has_started=not self._start.has_failed)
            return await self._provisioner.release_all(cause) or self._start.unreleased
        finally:
            with suppress(asyncio.CancelledError):
                await self._expiry.let_tasks_end()
                await self._idle.let_end()
            await self._close_connections()
            with suppress(asyncio.CancelledError):
                await self._events.let_end()

    async def _end(self, reason: EndReason) -> tuple[ReleaseError | None, asyncio.CancelledError | None]:
        """Delete everything, however often this is cancelled; return the error of that, and the cancellation."""
        releasing = self._begin_end(reason)
        try:
            await wait_shielded(releasing, cancelled=self._provisioner.interrupt)
        except asyncio.CancelledError as cancellation:
            return releasing.result(), cancellation
        return releasing.result(), None

    async def _leave_block(self, error: BaseException | None) -> None:
        """Delete everything, and raise what `what_to_raise` decides."""
        owner_task, cancellation, raised, thrown = self._owner_task, None, None, None
        is_interrupted = (
            isinstance(error, (asyncio.CancelledError, KeyboardInterrupt)) and not self._start.has_interrupted
        )
        if is_interrupted and not (owner_task and owner_task.is_cut_short):
            self._provisioner.interrupt()
        try:
            problem, cancellation = await self._end(EndReason.LEFT)
            await until_passed_on()
            if owner_task is not None and cancellation is None:
                try:
                    await owner_task.let_cancellation_come()
                except asyncio.CancelledError as late:
                    cancellation = late
            raised = what_to_raise(
                body_error=error,
                cancellation=cancellation,
                was_cut_short=owner_task is not None and owner_task.was_cut_short(),
                reason=self._state.reason,
                reason_error=self._source.failed.added_to(self._state.error),
                problem=problem,
            )
            if raised is not problem:
                noted(raised, problem)
            if raised is None or raised is error:
                return
            thrown = error if cancellation is None else cancellation
            if raised is thrown or raised is problem:
                raise raised
            raise raised from thrown
        finally:
            if owner_task is not None:
                owner_task.end()
            # Break the reference cycles through their tracebacks.
            del error, cancellation, raised, thrown
