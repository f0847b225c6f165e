"""`AsyncRental`: one machine, from the choice of it until it is surely gone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import attrs

from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.conditions import Condition
from netmind_rentgpu.errors import (
    BudgetExceededError,
    ClientStateError,
    ContainerFailedError,
    ContainerGoneError,
    NoMachineError,
    NotFoundError,
    ReleaseError,
    RentalEndedError,
    RentalExpiredError,
    RentGPUError,
    SSHError,
    WaitTimeoutError,
)
from netmind_rentgpu.models import Container, Machine
from netmind_rentgpu.rentals.at_exit import release_at_exit
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.clocks import read_clocks
from netmind_rentgpu.rentals.ledger.container_index import check_not_replaced
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.lifecycle.attempt import ProvisionedRental
from netmind_rentgpu.rentals.lifecycle.expiry import ExpiryTimer, OwnerTask
from netmind_rentgpu.rentals.lifecycle.provisioner import Provisioner
from netmind_rentgpu.rentals.lifecycle.reconnecting_shell import ReconnectingShell
from netmind_rentgpu.rentals.lifecycle.starting import MachineSource, StartLimits, failure_condition, is_machines_fault
from netmind_rentgpu.rentals.lifecycle.state import RentalState

if TYPE_CHECKING:
    from netmind_rentgpu.results import CommandResult
    from netmind_rentgpu.ssh.shell import AsyncShell

__all__ = ["AsyncRental"]

Raised = TypeVar("Raised", bound=BaseException | None)

_SECONDS_IN_AN_HOUR = 3600
# So that the wait for a machine, whose error says more, ends before all of it does.
_GRACE = 0.5
_SHORTEST_WAIT = 0.01
# With less time left, no other machine is tried.
_LEAST_FOR_ANOTHER = 1.0


class AsyncRental:
    """A rented machine: `async with gpu.rent(...) as rental: ...`. It is deleted when the block is left, however that is.

    It is rented when the block is entered, and usable then: its SSH server has let us in. Several tasks may use it. When its
    time is up, or its budget spent, it is deleted whatever the block does; the task that entered the block is cancelled, and
    the block raises `RentalExpiredError` or `BudgetExceededError`, as every later use of the rental does.

    No cancel scope or task group is open while the block runs, so that it may be entered and left by different tasks. Before
    it is entered there is nothing to tell: its attributes raise `ClientStateError`.
    """

    def __init__(
        self, context: RentalContext, source: MachineSource, *, limits: StartLimits, fail: Condition | None = None
    ) -> None:
        """Prepare; nothing is rented before it is entered.

        Args:
            source: rents what is wanted.
            fail: tells by how a container is shown that it will not start.
        """
        self._context = context
        self._source = source
        self._limits = limits
        self._fail = fail
        self._provisioner = Provisioner(context)
        self._state = RentalState()
        self._entering = False
        self._shell = ReconnectingShell(context.shell_on)
        self._releasing: asyncio.Task[ReleaseError | None] | None = None
        self._expiry = ExpiryTimer(self._provisioner)
        self._released = asyncio.Event()
        self._ended_at: datetime | None = None
        self._owner_task: OwnerTask | None = None
        # Of a machine that did not start, and could not be deleted.
        self._unreleased: ReleaseError | None = None
        # The provisioner knows already that somebody does not want to wait.
        self._is_cancellation_told = False

    @property
    def name(self) -> str:
        """The container's name, which is the rental's in the state file, too."""
        return self._state.had.record.name

    @property
    def container(self) -> Container:
        """The container, as it was when it let us in."""
        return self._state.had.container

    @property
    def machine(self) -> Machine:
        """The machine, as it was listed; of one that was attached to, only its `node_name` is known."""
        return self._state.had.machine

    @property
    def hourly_price(self) -> Decimal | None:
        """What an hour costs, by the price that the machine was listed with; None where that could not be read."""
        return self._state.had.record.hourly_price

    @property
    def expires_at(self) -> datetime | None:
        """When it is deleted at the latest, as its time or its budget allows; None for what is to be kept."""
        return self._state.had.record.expires_at

    @property
    def spent(self) -> Decimal | None:
        """About what it has cost until now, by its listed price and its time; None where the price could not be read.

        The machines that did not start for it are included. The service has no call that tells what a container costs.
        """
        failed = self._source.failed
        if self._state.provisioned is None and failed:
            return failed.cost
        cost = self._cost_of(self._state.had.record)
        return None if cost is None or failed.cost is None else cost + failed.cost

    def _cost_of(self, record: RentalRecord) -> Decimal | None:
        if record.hourly_price is None:
            return None
        seconds = ((self._ended_at or record.present(read_clocks())) - record.intended_at).total_seconds()
        return record.hourly_price * Decimal(str(max(0.0, seconds))) / _SECONDS_IN_AN_HOUR

    @property
    def shell(self) -> AsyncShell:
        """The shell on its container, for what `run` does not do. Where its connection was lost, `run` makes another.

        Raises:
            RentalEndedError: the rental is over, and not because it was left.
            ClientStateError: it was not entered yet, was left, or was detached.
        """
        self._state.check()
        if self._shell.shell is None:
            raise ClientStateError("this rental has no shell yet")
        return self._shell.shell

    async def run(
        self,
        command: str,
        *,
        check: bool = False,
        timeout: float | None = None,
        environment: Mapping[str, str] | None = None,
        input: str | bytes | None = None,  # noqa: A002  # as subprocess calls it
        max_output: int = 16 * 1024 * 1024,
    ) -> CommandResult:
        """Run a command in the login's shell, and wait for it: `shell.run`, over another connection if one was lost.

        Args:
            check: raise where it does not end with status 0.
            timeout: seconds for all of it; None for no limit.
            environment: variables for it. They stand on no command line.
            input: what it reads; nothing where it is None. A text goes as UTF-8.
            max_output: how many bytes to keep, of each of what it writes and what it writes as errors; of more, the end is.

        Raises:
            RentalEndedError: the rental is over: its time or its budget was up, or its container is gone or lets nobody in.
            SSHTimeoutError: it took too long; `result` is what it had written.
            SSHError: `check` and it failed; it could not be started; or the connection was lost.
            InvalidArgumentError: an argument that cannot be used.
            ClientStateError: it was not entered yet, was left, or was detached.
        """
        self._state.check_loop()
        shell = await self._usable_shell()
        try:
            return await shell.run(
                command, check=check, timeout=timeout, environment=environment, input=input, max_output=max_output
            )
        except (SSHError, ClientStateError) as error:
            if self._releasing is None and isinstance(error, SSHError) and error.stage == "connection":
                await self._examine(self._state.had)
            if self._state.cause is not None:
                raise self._state.ended() from error
            if self._releasing is not None:  # which has ended it
                raise self._state.unusable() from error
            raise

    async def detach(self) -> RentalRecord:
        """Leave it running until its expiry: nobody deletes it before, unless it is attached to again and left.

        Whoever runs `rentals.reap()` after its expiry deletes it; with nobody to do so, it goes on, and costs. This object
        is done with it.

        Returns:
            What the state file knows of it; `rentals.attach` takes it.

        Raises:
            StateFileError: that could not be put on record; it is still to be deleted when the block is left.
            RentalEndedError: it is over already.
            ClientStateError: it was not entered yet, was left, detached, or is kept anyway.
        """
        self._state.check_loop()
        provisioned = self._state.check()
        if self._entering:
            raise ClientStateError("this rental is still being started; detach it once it is entered")
        record = provisioned.record
        if provisioned.kept:
            raise ClientStateError("this rental is kept: nobody deletes it anyway")
        detaching = asyncio.create_task(self._provisioner.detach(record))
        try:
            await wait_shielded(detaching)
        finally:
            detaching.result()
            ended = self._releasing is not None
            self._state.over = self._state.over or "it was detached"
            releasing = self._start_release()
        await wait_shielded(releasing)
        if ended:  # by its time, or by who closed it, a moment before
            raise self._state.ended() if self._state.cause is not None else self._state.unusable()
        return attrs.evolve(record, stage="detached", owner=None)

    async def close(self) -> None:
        """Delete it, as leaving the block does. Closing twice is closing once.

        Raises:
            ReleaseError: it could not be deleted, and stays on record.
            ClientStateError: it was entered in another event loop.
        """
        self._state.check_loop()
        self._state.over = self._state.over or "it was closed"
        if not self._state.is_entered_here or self._owner_task is None:
            return
        if self._entering:
            # Whoever is about to rent has to know what of it was done.
            if self._releasing is None:
                self._owner_task.cut_short("this rental is closed")
            await wait_shielded(asyncio.create_task(self._released.wait()), cancelled=self._provisioner.interrupt)
        if (problem := await self._release_surely()) is not None:
            raise problem

    async def __aenter__(self) -> Self:
        self._state.check_new()
        self._context.check_usable()
        # In whichever process that is: it may have been made in another.
        release_at_exit()
        self._state.enter()
        self._owner_task = OwnerTask()
        self._context.register(self, self._provisioner.interrupt)
        self._entering = True
        try:
            await self._start_in_time()
            self._provisioner.confirm_attach()
        except BaseException as error:
            await self._leave(error)
            raise
        finally:
            self._entering = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What a forked child inherits is its parent's.
        if self._state.is_entered_here:
            self._state.check_loop()
            await self._leave(error)

    def __copy__(self) -> Self:
        """Return what this is elsewhere, as in a forked child: nothing."""
        other = type(self)(self._context, self._source, limits=self._limits, fail=self._fail)
        other._state.over = self._state.over or "it belongs to another process"  # noqa: SLF001  # one of our own
        other._state.provisioned = self._state.provisioned  # noqa: SLF001  # one of our own
        return other

    def __repr__(self) -> str:
        if self._state.provisioned is None:
            return f"<{type(self).__name__}: nothing is rented yet>"
        state = "over" if self._state.over or self._state.cause else "rented"
        record = self._state.provisioned.record
        return f"<{type(self).__name__} {record.name} on {record.node_name}, container {record.container_id}: {state}>"

    def __reduce__(self) -> str:
        raise TypeError(
            "a rental is its process's own and cannot be pickled; rentals.attach takes one that was detached"
        )

    async def _start_in_time(self) -> None:
        seconds = self._limits.total
        time_limit = asyncio.timeout(seconds + _GRACE)
        try:
            async with time_limit:
                await self._start(asyncio.get_running_loop().time() + seconds)
        except TimeoutError:
            if not time_limit.expired():
                raise
            error = WaitTimeoutError(f"no machine let us in within {seconds:g} s", arrived={}, pending={})
            raise self._source.failed.added_to(error) from None
        finally:
            # It has the task, which has its exception, whose traceback leads here.
            del time_limit

    async def _start(self, deadline: float) -> None:
        """Have one machine after the other until one lets us in."""
        source, time = self._source, asyncio.get_running_loop().time
        while True:
            try:
                provisioned = self._state.provisioned = await source.provision(self._provisioner)
            except RentGPUError as error:
                raise source.failed.added_to(error) from error.__cause__
            self._expiry.begin(provisioned.record, self._expire)
            seconds = max(_SHORTEST_WAIT, min(self._limits.each, deadline - time()))
            try:
                await self._make_ready(provisioned, seconds)
            except RentGPUError as error:
                has_others = source.has_others and self._releasing is None and is_machines_fault(error)
                if has_others and (seconds >= self._limits.each or not isinstance(error, WaitTimeoutError)):
                    await source.remember_failure(provisioned)
                if not has_others or deadline - time() < _LEAST_FOR_ANOTHER:
                    raise source.failed.added_to(error) from error.__cause__
                if (given_up := await self._replace(provisioned, error)) is not None:
                    raise given_up from error
            else:
                return

    async def _replace(self, provisioned: ProvisionedRental, error: RentGPUError) -> NoMachineError | None:
        """Delete a machine that did not start; return the error to raise where no other is to be tried.

        Raises:
            RentGPUError: the error, because the machine could not be deleted.
        """
        self._expiry.suspend()
        releasing = asyncio.get_running_loop().create_task(self._provisioner.release(provisioned.record.name))
        try:
            await wait_shielded(releasing, cancelled=self._provisioner.interrupt)
        except asyncio.CancelledError:
            self._is_cancellation_told = True
            raise
        finally:
            # Whoever leaves is told of it.
            self._unreleased = releasing.result()
            if self._unreleased is None:
                self._state.provisioned = None
                self._source.failed.add(provisioned, error, self._cost_of(provisioned.record))
        if self._unreleased is not None:
            raise self._source.failed.added_to(error) from error.__cause__
        return await self._source.error_if_enough()

    async def _make_ready(self, provisioned: ProvisionedRental, seconds: float) -> None:
        record, containers = provisioned.record, self._context.containers
        deadline = asyncio.get_running_loop().time() + seconds

        fail = failure_condition(record, self._fail)
        try:
            # Before each login, because another container must not be told the password.
            container = await containers.wait_ready(provisioned.container.id, timeout=seconds, fail=fail)
        except ContainerFailedError as error:
            check_not_replaced(record, error.container)
            raise
        await self._shell.open(container, deadline, containers.get)
        self._source.remember_success(provisioned)
        if provisioned.kept:
            # From now on it is the user's own. With its record it would be deleted once we are gone.
            await self._provisioner.transfer_to_user(record.name)
        else:
            await self._provisioner.ready(record.name)
        self._state.provisioned = attrs.evolve(provisioned, container=container)

    async def _usable_shell(self) -> AsyncShell:
        had = self._state.check()
        try:
            return await self._shell.usable(lambda: self._examine(had))
        except SSHError as error:
            self._state.check()
            text = f"{self.name} does not let us in any more, if it still runs: {error}"
            raise RentalEndedError(text, name=had.record.name, container_id=had.record.container_id) from error

    async def _examine(self, had: ProvisionedRental) -> Container:
        """See whether the container is still there.

        Raises:
            RentalEndedError: it is not.
        """
        try:
            container = await self._context.containers.get(had.container.id)
            check_not_replaced(had.record, container)
        except (NotFoundError, ContainerGoneError) as error:
            if self._releasing is not None:  # which has deleted it
                raise self._state.unusable() from error
            if isinstance(error, NotFoundError) and not await self._context.container_index.is_unlisted(
                had.container.id
            ):
                return had.container
            self._state.cause = (
                RentalEndedError,
                f"the container of {had.record.name}, {had.container.id}, is gone",
            )
            raise self._state.ended() from error
        except RentGPUError:
            return had.container
        self._state.provisioned = attrs.evolve(had, container=container)
        return container

    def _expire(self) -> None:
        self._state.cause = (
            (BudgetExceededError, f"the budget of {self.name} is spent")
            if self._state.had.by_budget
            else (RentalExpiredError, f"the time of {self.name} is up")
        )
        self._start_release()
        if self._owner_task is not None:
            self._owner_task.cut_short(f"{self!r} is over")

    def _start_release(self) -> asyncio.Task[ReleaseError | None]:
        if self._releasing is None:
            self._state.over = self._state.over or "it was left"
            self._expiry.end()
            provisioned = self._state.provisioned
            self._ended_at = None if provisioned is None else provisioned.record.present(read_clocks())
            self._releasing = asyncio.get_running_loop().create_task(self._release())
            # Not in the task, which an ending loop may cancel before it begins.
            self._releasing.add_done_callback(self._is_released)
        return self._releasing

    def _is_released(self, releasing: asyncio.Task[ReleaseError | None]) -> None:
        if not releasing.cancelled():
            self._context.unregister(self)
        self._released.set()

    async def _release(self) -> ReleaseError | None:
        try:
            if self._entering and self._state.cause is None:
                await self._provisioner.return_detached()
            return await self._provisioner.release_all() or self._unreleased
        finally:
            with suppress(asyncio.CancelledError):
                await self._expiry.let_look_end()
            await self._shell.close()

    async def _release_surely(self) -> ReleaseError | None:
        """Release it, whoever cancels that; return what could not be."""
        releasing = self._start_release()
        try:
            await wait_shielded(releasing, cancelled=self._provisioner.interrupt)
        except asyncio.CancelledError as cancellation:
            _noted(cancellation, releasing.result())
            raise
        return releasing.result()

    async def _leave(self, error: BaseException | None) -> None:
        """Release it, whoever cancels that; raise what the one who leaves has to know."""
        owner_task, thrown, problem = self._owner_task, error, None
        is_interrupted = (
            isinstance(error, (asyncio.CancelledError, KeyboardInterrupt)) and not self._is_cancellation_told
        )
        if is_interrupted and not (owner_task and owner_task.is_cut_short):
            self._provisioner.interrupt()
        try:
            try:
                problem = await self._release_surely()
                _noted(error, problem)
                if owner_task is not None:
                    await owner_task.let_cancellation_come()
            except asyncio.CancelledError as cancellation:
                thrown, problem = cancellation, self._start_release().result()
            cut_short = owner_task is not None and owner_task.was_cut_short()
            if thrown is None or (cut_short and isinstance(thrown, asyncio.CancelledError)):
                # Whoever found out that it is gone knows that.
                cause = self._state.cause
                if cause is not None and cause[0] is not RentalEndedError:
                    raise _noted(self._source.failed.added_to(self._state.ended()), problem) from thrown
                if cut_short:
                    raise _noted(self._state.unusable(), problem) from thrown
            elif thrown is not error:
                raise thrown
            if problem is not None and thrown is None:
                raise problem
        finally:
            if owner_task is not None:
                owner_task.end()
            del error, thrown, problem  # their tracebacks lead here


def _noted(error: Raised, problem: ReleaseError | None) -> Raised:
    if error is not None and problem is not None:
        error.add_note(str(problem))
    return error
