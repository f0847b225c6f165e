"""What all rentals of one client share: the ledger, the market, the roll, and who is still there to be released."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

import attrs

from netmind_rentgpu.models import Container
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.rentals.ledger import Ledger
from netmind_rentgpu.rentals.market import Market, Roll
from netmind_rentgpu.rentals.supplies import Supplies
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.settings import Timeouts

if TYPE_CHECKING:
    from netmind_rentgpu.ssh.shell import AsyncShell

__all__ = ["Desk", "is_held_here", "now"]

_UNBOUNDED_CALL = 600.0

# The names that this process has under way, whichever client has them. A record of ours that is not here is nobody's.
_held_here: set[str] = set()


def is_held_here(name: str) -> bool:
    """Tell whether somebody in this process still has a rental."""
    return name in _held_here


def now() -> datetime:
    """Return the time of day, which a ledger's records and other processes know."""
    return datetime.now(UTC)


class Owning(Protocol):
    """What has something to release."""

    async def close(self) -> None: ...


@attrs.frozen(kw_only=True, eq=False)
class Desk:
    """What all rentals of one client share.

    Attributes:
        timeouts: the client's own.
        shell_on: makes a shell, to be opened.
        live: what is to be released when the client is closed.
    """

    profile: ServiceProfile
    containers: AsyncContainers
    ledger: Ledger
    market: Market
    roll: Roll
    supplies: Supplies
    timeouts: Timeouts
    shell_on: Callable[[Container], AsyncShell]
    live: set[Owning] = attrs.field(factory=set[Owning])

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

    def let_go(self, name: str) -> None:
        """Take in that nobody here has a rental any more."""
        _held_here.discard(name)

    def enter(self, owning: Owning) -> None:
        """Take in that somebody has something to release."""
        self.live.add(owning)

    def leave(self, owning: Owning) -> None:
        """Take in that somebody has released it."""
        self.live.discard(owning)

    async def release_all(self) -> None:
        """Release all that is still there.

        Raises:
            ReleaseError: something could not be deleted.
        """
        ends = await asyncio.gather(*(owning.close() for owning in tuple(self.live)), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end


os.register_at_fork(after_in_child=_held_here.clear)
