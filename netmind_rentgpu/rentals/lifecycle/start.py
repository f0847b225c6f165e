"""The start of one rental: one machine after the other, until a container allows a login."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import attrs

from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.conditions import Condition
from netmind_rentgpu.errors import (
    ContainerFailedError,
    NoMachineError,
    ReleaseError,
    RentGPUError,
    WaitTimeoutError,
)
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.container_index import check_not_replaced
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.lifecycle.attempt import ProvisionedRental
from netmind_rentgpu.rentals.lifecycle.events import RentalEvents
from netmind_rentgpu.rentals.lifecycle.expiry import ExpiryTimer
from netmind_rentgpu.rentals.lifecycle.provisioner import Provisioner
from netmind_rentgpu.rentals.lifecycle.reconnecting_shell import ReconnectingShell
from netmind_rentgpu.rentals.lifecycle.starting import MachineSource, StartLimits, failure_condition, is_machines_fault
from netmind_rentgpu.rentals.lifecycle.state import RentalState

__all__ = ["RentalStart"]

# The wait for one machine, whose error tells more, ends before the time limit of the whole start does.
_GRACE = 0.5
_SHORTEST_WAIT = 0.01
# With less time left, no other machine is tried.
_LEAST_FOR_ANOTHER = 1.0
# Between two events of a lack of stock.
_BETWEEN_STOCK_EVENTS = 60.0


@attrs.define(kw_only=True, eq=False)
class RentalStart:
    """The start of one rental.

    Attributes:
        unreleased: the error of a machine that did not start and could not be deleted.
        has_failed: True if the start has ended with an error.
        has_interrupted: True if the cancellation that leaves the block has interrupted the provisioner already.
    """

    _context: RentalContext = attrs.field(alias="context")
    _source: MachineSource = attrs.field(alias="source")
    _limits: StartLimits = attrs.field(alias="limits")
    _fail: Condition | None = attrs.field(alias="fail")
    _provisioner: Provisioner = attrs.field(alias="provisioner")
    _state: RentalState = attrs.field(alias="state")
    _shell: ReconnectingShell = attrs.field(alias="shell")
    _expiry: ExpiryTimer = attrs.field(alias="expiry")
    _events: RentalEvents = attrs.field(alias="events")
    unreleased: ReleaseError | None = None
    has_failed: bool = False
    has_interrupted: bool = False
    # When an event said last that no machine is in stock, in seconds on the event loop's clock.
    _stock_event_at: float | None = attrs.field(default=None, init=False)

    async def run(self, expire: Callable[[], None]) -> None:
        """Start the rental within its time limit.

        Args:
            expire: ends the rental, once its time or its budget is up.

        Raises:
            WaitTimeoutError: no machine has started in time.
            RentGPUError: the error of the last machine, or of the search for one.
        """
        try:
            await self._run(expire)
        except RentGPUError:
            self.has_failed = True
            raise

    async def _run(self, expire: Callable[[], None]) -> None:
        time = asyncio.get_running_loop().time
        left, stock_until = self._limits.total, time() + self._limits.stock
        while True:
            began = time()
            try:
                await self._run_within(left, expire)
            except NoMachineError as error:
                left -= time() - began
                if min(left, stock_until - time()) < _LEAST_FOR_ANOTHER:
                    raise
                await self._wait_for_stock(error, stock_until)
            else:
                return

    async def _wait_for_stock(self, error: NoMachineError, until: float) -> None:
        """Wait until a machine may be available.

        Args:
            until: seconds on the event loop's clock.

        Raises:
            NoMachineError: there was none until then, or the error does not come from a lack of stock.
        """
        waiting = asyncio.get_running_loop().create_task(self._source.wait_for_stock(error))
        try:
            await asyncio.wait({waiting}, timeout=0)
            if not waiting.done():
                await self._tell_of_stock(error, until)
                await asyncio.wait({waiting}, timeout=until - asyncio.get_running_loop().time())
            if not waiting.done():
                text = f"{error}; none was available within {self._limits.stock:g} s"
                raise NoMachineError(text, refusals=error.refusals) from error.__cause__
        finally:
            waiting.cancel()
            await asyncio.wait({waiting})
            # Mark the error as retrieved: otherwise asyncio logs it.
            _ = waiting.cancelled() or waiting.exception()
        waiting.result()

    async def _tell_of_stock(self, error: NoMachineError, until: float) -> None:
        now = asyncio.get_running_loop().time()
        if self._stock_event_at is not None and now < self._stock_event_at + _BETWEEN_STOCK_EVENTS:
            return
        self._stock_event_at = now
        self._events.tell_of_stock(self._source.label, reason=str(error), left=timedelta(seconds=until - now))
        await self._events.let_begin()

    async def _run_within(self, seconds: float, expire: Callable[[], None]) -> None:
        time_limit = asyncio.timeout(seconds + _GRACE)
        try:
            async with time_limit:
                await self._start(asyncio.get_running_loop().time() + seconds, expire)
        except TimeoutError:
            if not time_limit.expired():
                raise
            text = f"no machine allowed a login within {self._limits.total:g} s"
            error = WaitTimeoutError(text, arrived={}, pending={})
            raise self._source.failed.added_to(error) from None
        finally:
            # Break the reference cycle of the time limit, its task and its exception.
            del time_limit

    async def _start(self, deadline: float, expire: Callable[[], None]) -> None:
        """Rent one machine after the other until one allows a login.

        Args:
            deadline: seconds on the event loop's clock.
        """
        source, time = self._source, asyncio.get_running_loop().time
        while True:
            try:
                provisioned = self._state.provisioned = await source.provision(self._provisioner)
            except RentGPUError as error:
                raise source.failed.added_to(error) from error.__cause__
            self._expiry.begin(provisioned.record, expire, self._state.move_deadline)
            seconds = max(_SHORTEST_WAIT, min(self._limits.each, deadline - time()))
            try:
                await self._make_ready(provisioned, seconds)
            except RentGPUError as error:
                has_others = source.has_others and self._state.reason is None and is_machines_fault(error)
                if has_others and (seconds >= self._limits.each or not isinstance(error, WaitTimeoutError)):
                    await source.remember_failure(provisioned)
                if seconds < self._limits.each and isinstance(error, WaitTimeoutError):
                    error = self._of_the_whole_time(error, seconds)
                if has_others:
                    await self._provisioner.check_not_ended(provisioned.record)
                is_last = not has_others or deadline - time() < _LEAST_FOR_ANOTHER
                blame = None if is_last else await source.why_no_other()
                next_step = "another machine is tried next" if not is_last and blame is None else "no other is tried"
                self._events.emit("failed", provisioned.record, reason=str(error), next_step=next_step)
                if is_last:
                    raise source.failed.added_to(error) from error.__cause__
                await self._replace(provisioned, error)
                if blame is not None:
                    raise source.failed.error(blame) from error
            else:
                return

    def _of_the_whole_time(self, error: WaitTimeoutError, seconds: float) -> WaitTimeoutError:
        """Return an error that names the time limit of the whole start, because the rest says nothing to the caller."""
        text = str(error).replace(f"within {seconds:g} s", f"within the {self._limits.total:g} s of the whole start", 1)
        named = WaitTimeoutError(text, arrived=error.arrived, pending=error.pending)
        named.__cause__ = error.__cause__
        return named

    async def _replace(self, provisioned: ProvisionedRental, error: RentGPUError) -> None:
        """Delete a machine that did not start.

        Raises:
            RentGPUError: the given error, because the machine could not be deleted.
        """
        self._expiry.suspend()
        releasing = asyncio.get_running_loop().create_task(self._provisioner.release(provisioned.record.name, "failed"))
        try:
            await wait_shielded(releasing, cancelled=self._provisioner.interrupt)
        except asyncio.CancelledError:
            self.has_interrupted = True
            raise
        finally:
            # Leaving the block reports it.
            self.unreleased = releasing.result()
            if self.unreleased is None:
                self._state.provisioned = None
                record = provisioned.record
                cost = record.cost_until(record.present(self._context.clock()))
                self._source.failed.add(provisioned, error, cost)
        if self.unreleased is not None:
            raise self._source.failed.added_to(error) from error.__cause__

    async def _make_ready(self, provisioned: ProvisionedRental, seconds: float) -> None:
        record, containers = provisioned.record, self._context.containers
        deadline = asyncio.get_running_loop().time() + seconds
        self._events.emit("waiting", record, reason=f"its login has to work within {seconds:g} s")
        fail = self._watched(record, failure_condition(record, self._fail))
        try:
            # The check for a replaced container precedes each login, because another container must not get the password.
            container = await containers.wait_ready(provisioned.container.id, timeout=seconds, fail=fail)
        except ContainerFailedError as error:
            check_not_replaced(record, error.container)
            raise
        await self._shell.open(container, deadline, containers.get)
        self._source.remember_success(provisioned)
        record = self._provisioner.logged_in(record)
        if provisioned.kept:
            # Without its record, because the reaper would delete the container once this process has ended.
            await self._provisioner.transfer_to_user(record.name)
        else:
            await self._provisioner.ready(record)
        # The deadline may have moved meanwhile.
        record = record.with_deadline_of(self._state.had.record)
        self._state.provisioned = attrs.evolve(provisioned, record=record, container=container)
        self._events.emit("ready", record)
        await self._events.let_begin()

    def _watched(self, record: RentalRecord, fail: Condition) -> Condition:
        """Return a condition that also emits an event whenever the container is shown otherwise than before."""
        shown: list[str] = []

        def has_failed(container: Container) -> bool:
            if (text := _shown(container)) not in shown[-1:]:
                shown.append(text)
                self._events.emit("waiting", record, reason=text)
            return bool(fail(container))

        has_failed.__name__ = fail.__name__
        return has_failed


def _shown(container: Container) -> str:
    """Return a text of what the service shows of a container that starts."""
    name = "" if container.status_name is None else f" ({container.status_name})"
    endpoint = "no SSH endpoint yet" if container.ssh_endpoint is None else "an SSH endpoint"
    return f"the service shows status {container.status}{name}, and {endpoint}"
