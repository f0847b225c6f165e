"""The parts that the rentals of one client share: ledger, catalog, container index, clock, time limits, open rentals."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

import attrs

from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.concurrency.forks import at_fork_in_child
from netmind_rentgpu.errors import ClientStateError, ConfigurationError, StateFileError
from netmind_rentgpu.models import Container
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.rentals.guardian.link import ClientGuardian
from netmind_rentgpu.rentals.ledger.budget_ledger import BudgetLedger
from netmind_rentgpu.rentals.ledger.clocks import ClockReading, read_clocks
from netmind_rentgpu.rentals.ledger.container_index import ContainerIndex
from netmind_rentgpu.rentals.ledger.process_identity import (
    Liveness,
    ProcessIdentity,
    liveness_of,
    look_up_process,
    this_process,
)
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.ledger.rows import read_owner
from netmind_rentgpu.rentals.ledger.start_history import StartHistory
from netmind_rentgpu.rentals.ledger.store import Ledger
from netmind_rentgpu.rentals.limits import RentalLimits
from netmind_rentgpu.rentals.selection.catalog import MachineCatalog
from netmind_rentgpu.rentals.selection.images import ImageResolver
from netmind_rentgpu.rentals.selection.password import AccountPassword
from netmind_rentgpu.resources.auths import AsyncAuths
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.resources.images import AsyncImages
from netmind_rentgpu.resources.machines import AsyncMachines
from netmind_rentgpu.settings import Settings, Timeouts
from netmind_rentgpu.state_file import State

if TYPE_CHECKING:
    from netmind_rentgpu.ssh.shell import AsyncShell

__all__ = [
    "RentalContext",
    "contexts_of_ended_loops",
    "contexts_of_running_loops",
    "disown",
    "disown_closed_loops",
    "is_held_here",
]

_UNBOUNDED_CALL = 600.0
_NO_DEADLINE = timedelta(days=1)

# The names of the rentals that this process has open, in any client. A record of this process that is not here is orphaned.
_held_here: set[str] = set()
# The contexts with open rentals. They are kept here, because a client may be collected before its rentals are deleted.
_contexts: set[RentalContext] = set()


def is_held_here(name: str) -> bool:
    """Return True if a client of this process still has a rental open."""
    return name in _held_here


def contexts_of_ended_loops() -> list[RentalContext]:
    """Return the contexts whose event loop has ended, or is paused, before their rentals were deleted."""
    return [context for context in tuple(_contexts) if context.loop is not None and not context.loop.is_running()]


def disown(contexts: Iterable[RentalContext]) -> None:
    """Drop ownership of the rentals of contexts, so that the reaper deletes them."""
    for context in contexts:
        _held_here.difference_update(context.names)
        _contexts.discard(context)


def contexts_of_running_loops() -> list[RentalContext]:
    """Return the contexts with open rentals whose event loop runs."""
    return [context for context in tuple(_contexts) if context.loop is not None and context.loop.is_running()]


def disown_closed_loops() -> None:
    """Drop ownership of rentals whose event loop has closed."""
    for context in tuple(_contexts):
        if context.loop is not None and context.loop.is_closed():
            _held_here.difference_update(context.names)


class Owning(Protocol):
    """An object that has a container to delete."""

    async def close(self) -> None: ...


@attrs.define(kw_only=True, eq=False)
class RentalContext:
    """The parts that all rentals of one client share. It is no context manager.

    Attributes:
        timeouts: the client's own.
        check_usable: raises ClientStateError if the client is closed, or belongs to another event loop.
        check_login: raises ConfigurationError if this process cannot log in to any container.
        shell_on: returns a shell on a container, which the caller opens.
        elsewhere: opens the context of a client like this one, in another event loop.
        live: the open rentals, each with a function that cuts its deletion short.
        names: the names of the open rentals.
        attaching: the names of detached rentals that are being attached, and stay detached if that fails.
        loop: the event loop of the open rentals.
        closing: True if the client is being closed, so that nothing more can be rented.
        clock: reads the present time.
        limits: the time limits of renting.
        handles_signals: True if SIGTERM and SIGHUP release the rentals.
        guardian: the guardian that the client asks for; None without one.
    """

    profile: ServiceProfile
    containers: AsyncContainers
    ledger: Ledger
    budgets: BudgetLedger
    catalog: MachineCatalog
    container_index: ContainerIndex
    starts: StartHistory
    images: ImageResolver
    password: AccountPassword
    timeouts: Timeouts
    check_usable: Callable[[], object]
    check_login: Callable[[], Awaitable[None]]
    shell_on: Callable[[Container], AsyncShell]
    elsewhere: Callable[[], AbstractAsyncContextManager[RentalContext]]
    live: dict[Owning, Callable[[], object]] = attrs.field(factory=dict[Owning, Callable[[], object]])
    names: set[str] = attrs.field(factory=set[str])
    attaching: set[str] = attrs.field(factory=set[str])
    loop: asyncio.AbstractEventLoop | None = None
    closing: bool = False
    clock: Callable[[], ClockReading] = read_clocks
    limits: RentalLimits = attrs.field(factory=RentalLimits)
    handles_signals: bool = False
    guardian: ClientGuardian | None = None

    @classmethod
    def of_client(
        cls,
        *,
        machines: AsyncMachines,
        auths: AsyncAuths,
        images: AsyncImages,
        containers: AsyncContainers,
        state: State,
        settings: Settings,
        profile: ServiceProfile,
        check_usable: Callable[[], object],
        check_login: Callable[[], Awaitable[None]],
        shell_on: Callable[[Container], AsyncShell],
        elsewhere: Callable[[], AbstractAsyncContextManager[RentalContext]],
        guardian: ClientGuardian | None,
    ) -> RentalContext:
        """Create the context of a client's rentals from the client's parts."""
        context = cls(
            profile=profile,
            containers=containers,
            ledger=Ledger(state, keep_history=settings.keep_history),
            budgets=BudgetLedger(state),
            catalog=MachineCatalog(machines),
            container_index=ContainerIndex(containers, settings.timeouts),
            starts=StartHistory(state),
            images=ImageResolver(images),
            password=AccountPassword(auths, state),
            timeouts=settings.timeouts,
            handles_signals=settings.handle_signals,
            check_usable=check_usable,
            check_login=check_login,
            shell_on=shell_on,
            elsewhere=elsewhere,
            guardian=guardian,
        )
        state.restores = context.restores
        return context

    def restores(self, name: str, owner: str | None) -> bool:
        """Return True if a record is to be put back by this client where the state file was lost.

        That holds for its own, for those that no process owns, and for those whose owner is dead. Another live process or
        client keeps its own, and has perhaps closed it meanwhile.
        """
        if name in self.names or owner is None:
            return True
        identity = read_owner(owner)
        here = this_process()
        return identity is None or (identity != here and liveness_of(identity, here, look_up_process) is Liveness.DEAD)

    @property
    def longest_create(self) -> timedelta:
        """The longest time between the record of an intent and the moment when its container, if it has one, is listed."""
        seconds = sum(
            _UNBOUNDED_CALL if bound is None else bound for bound in (self.timeouts.slot, self.timeouts.total)
        )
        # The intent may be written late, because another process has locked the state file.
        return timedelta(seconds=self.limits.write + seconds) + self.uncertainty

    @property
    def uncertainty(self) -> timedelta:
        """The longest time between an unclear answer to a create and the moment when its container, if any, is listed."""
        return self.profile.create_lag + self.profile.list_lag

    async def guard(self, record: RentalRecord) -> ProcessIdentity | None:
        """Register a rental with the guardian; return the guardian, or None for a client without one.

        Raises:
            ConfigurationError: no guardian can be started.
        """
        if self.guardian is None:
            return None
        left = _NO_DEADLINE if record.expires_at is None else record.expires_at - record.present(self.clock())
        return await self.guardian.watch(max(0.0, left.total_seconds()) + self.limits.guardian, self.limits)

    async def guard_detached(self, wish: str, pause: float) -> None:
        """Register a rental that is about to be detached until a job is over, or its machine is idle.

        Args:
            wish: what the rental is detached with, for the error.
            pause: the longest time between two looks, in seconds.

        Raises:
            ConfigurationError: the client has no guardian, or none can be started.
        """
        if self.guardian is None:
            raise ConfigurationError(
                f"a rental with {wish} needs a guardian once it is detached, because a process has to look at its machine:"
                " open the client with guardian=True"
            )
        # After the record is written, however long that takes.
        await self.guardian.watch(max(pause, self.limits.write), self.limits)

    async def look_at_detached(self) -> None:
        """Ask the guardian to look now, because the record is written; it looks later in any case."""
        if self.guardian is not None:
            with suppress(ConfigurationError):
                await self.guardian.watch(0.0, self.limits)

    async def _end_guard(self) -> None:
        """Report to the guardian that the client is closed, so that it ends once nothing is left to guard."""
        if self.guardian is None or not self.guardian.was_used:
            return
        is_empty = False
        with suppress(StateFileError, ClientStateError):
            records, _ = await self.ledger.read_open()
            is_empty = not any(self.guardian.guards(record.guardian) for record in records)
        await self.guardian.close(is_empty=is_empty)

    def track(self, name: str) -> None:
        """Record that this process has a rental open."""
        _held_here.add(name)
        self.names.add(name)

    def untrack(self, name: str) -> None:
        """Record that this process has a rental open no longer."""
        _held_here.discard(name)
        self.names.discard(name)
        self.attaching.discard(name)

    def register(self, owning: Owning, interrupt: Callable[[], object]) -> None:
        """Record that a rental is open, which closing the client deletes.

        Args:
            interrupt: cuts its deletion short.

        Raises:
            ClientStateError: the client is being closed, or belongs to another event loop.
        """
        self.check_usable()
        if self.closing:
            raise ClientStateError("this client is closed, or being closed; make a new one")
        self.live[owning] = interrupt
        self.loop = asyncio.get_running_loop()
        _contexts.add(self)

    def unregister(self, owning: Owning) -> None:
        """Record that a rental has nothing left to delete."""
        self.live.pop(owning, None)
        if not self.live:
            _contexts.discard(self)

    async def close(self) -> None:
        """Delete all open rentals, and tell the guardian that the client is closed.

        Raises:
            ReleaseError, ClientStateError: as for `release_all`.
        """
        try:
            await self.release_all()
        finally:
            await self._end_guard()

    async def release_all(self) -> None:
        """Delete all open rentals, however often this is cancelled.

        Raises:
            ReleaseError: a container could not be deleted.
            ClientStateError: the rentals belong to another event loop.
        """
        if not self.live:
            return
        if self.loop is not asyncio.get_running_loop():
            raise ClientStateError("this client's rentals belong to another event loop; close the client there")
        self.closing = True
        releasing = asyncio.get_running_loop().create_task(self._release_all())
        try:
            await wait_shielded(releasing, cancelled=self.interrupt)
        except asyncio.CancelledError as cancellation:
            if (error := releasing.exception()) is not None:
                cancellation.add_note(str(error))
            raise
        releasing.result()

    def interrupt(self) -> None:
        """Cut the deletions of all open rentals short, as a second interrupt does."""
        for interrupt in tuple(self.live.values()):
            interrupt()

    async def _release_all(self) -> None:
        problems: list[BaseException] = []
        while self.live:
            those = tuple(self.live)
            ends = await asyncio.gather(*(owning.close() for owning in those), return_exceptions=True)
            for owning in those:
                self.live.pop(owning, None)
            problems += [end for end in ends if isinstance(end, BaseException)]
        if problems:
            raise problems[0]


def _after_fork() -> None:
    _held_here.clear()
    for context in _contexts:
        context.live.clear()
    _contexts.clear()


at_fork_in_child(_after_fork)
