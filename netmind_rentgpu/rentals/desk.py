"""What all rentals of one client share: the ledger, the market, the roll, and who is still there to be released."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from netmind_rentgpu.errors import ClientStateError
from netmind_rentgpu.models import Container
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.rentals.ledger import Ledger
from netmind_rentgpu.rentals.market import Market, Roll
from netmind_rentgpu.rentals.supplies import Supplies
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.settings import Timeouts
from netmind_rentgpu.shielding import surely

if TYPE_CHECKING:
    from netmind_rentgpu.ssh.shell import AsyncShell

__all__ = ["Desk", "is_held_here", "left_behind", "now"]

_UNBOUNDED_CALL = 600.0

# The names that this process has under way, whichever client has them. A record of ours that is not here is nobody's.
_held_here: set[str] = set()
# Those that have something to release. Kept here, so that it is not forgotten with the client.
_desks: set[Desk] = set()


def is_held_here(name: str) -> bool:
    """Tell whether somebody in this process still has a rental."""
    return name in _held_here


def left_behind() -> list[Desk]:
    """Return those whose event loop has ended before what they had was released; all of that is nobody's from now on."""
    found = [desk for desk in _desks if desk.loop is not None and not desk.loop.is_running()]
    for desk in found:
        _held_here.difference_update(desk.names)
        _desks.discard(desk)
    return found


def now() -> datetime:
    """Return the time of day, which a ledger's records and other processes know."""
    return datetime.now(UTC)


class Owning(Protocol):
    """What has something to release."""

    async def close(self) -> None: ...


@attrs.define(kw_only=True, eq=False)
class Desk:
    """What all rentals of one client share.

    Attributes:
        timeouts: the client's own.
        shell_on: makes a shell, to be opened.
        reap_elsewhere: reaps over a client like this one, for another event loop.
        live: what is to be released when the client is closed.
        names: what is under way here.
        loop: in which that is.
        closing: nothing more can be rented.
    """

    profile: ServiceProfile
    containers: AsyncContainers
    ledger: Ledger
    market: Market
    roll: Roll
    supplies: Supplies
    timeouts: Timeouts
    shell_on: Callable[[Container], AsyncShell]
    reap_elsewhere: Callable[[], Coroutine[Any, Any, None]]
    live: set[Owning] = attrs.field(factory=set[Owning])
    names: set[str] = attrs.field(factory=set[str])
    loop: asyncio.AbstractEventLoop | None = None
    closing: bool = False

    @property
    def longest_create(self) -> timedelta:
        """How long after its intent a create may still be acted on, or be missing from the list."""
        seconds = sum(
            _UNBOUNDED_CALL if bound is None else bound for bound in (self.timeouts.slot, self.timeouts.total)
        )
        return timedelta(seconds=seconds) + self.doubt

    @property
    def doubt(self) -> timedelta:
        """How long after a create got no clear answer its container may still turn up."""
        return self.profile.create_lag + self.profile.list_lag

    def hold(self, name: str) -> None:
        """Take in that a rental is under way here."""
        _held_here.add(name)
        self.names.add(name)

    def let_go(self, name: str) -> None:
        """Take in that nobody here has a rental any more."""
        _held_here.discard(name)
        self.names.discard(name)

    def enter(self, owning: Owning) -> None:
        """Take in that somebody has something to release.

        Raises:
            ClientStateError: the client is being closed.
        """
        if self.closing:
            raise ClientStateError("this client is closed, or being closed; make a new one")
        self.live.add(owning)
        self.loop = asyncio.get_running_loop()
        _desks.add(self)

    def leave(self, owning: Owning) -> None:
        """Take in that somebody has released it."""
        self.live.discard(owning)
        if not self.live:
            _desks.discard(self)

    async def release_all(self) -> None:
        """Release all that is still there, whoever cancels that.

        Raises:
            ReleaseError: something could not be deleted.
        """
        self.closing = True
        if self.live:
            releasing = asyncio.get_running_loop().create_task(self._release_all())
            await surely(releasing)
            releasing.result()

    async def _release_all(self) -> None:
        problems: list[BaseException] = []
        while self.live:
            those = tuple(self.live)
            ends = await asyncio.gather(*(owning.close() for owning in those), return_exceptions=True)
            self.live.difference_update(those)
            problems += [end for end in ends if isinstance(end, BaseException)]
        if problems:
            raise problems[0]


def _after_fork() -> None:
    _held_here.clear()
    for desk in _desks:
        desk.live.clear()
    _desks.clear()


os.register_at_fork(after_in_child=_after_fork)
