"""What the ledger knows of a rental, and what the reaper does about it. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Literal, TypeAlias

import attrs

from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.process_identity import ProcessIdentity

__all__ = ["ReapAction", "ReapReport", "RentalRecord", "Stage", "action_after_walk", "action_for", "may_turn_up"]

Stage: TypeAlias = Literal["intended", "created", "ready", "detached", "abandoned"]
"""How far a rental has come. `abandoned`: it is over, and may still have to be deleted."""


@attrs.frozen(kw_only=True)
class RentalRecord:
    """A rental, or one try at it, that the state file knows to be rented, or that may be.

    Attributes:
        name: the container's.
        stage: how far it has come: `intended` (the service may have been asked for it), `created`, `ready` (handed over),
            `detached` (left running until its expiry), or `abandoned` (over, but not known to be gone).
        container_id: None as long as the service has not told.
        shown_name: what the service made of the name, where it told the id.
        node_name, gpus: what was rented.
        hourly_price: what an hour costs, as it was listed; None where that could not be read.
        intended_at: when the service was to be asked for it.
        expires_at: when it is to be deleted, whoever has it; None for what is to be kept.
        certain_at: when it would have shown, if it existed: until then one without an id is in doubt.
        owner: the process that has it; None where none has.
        boot, booted_at: the boot in which it was rented, and when that was by the time of day then. All times of a record
            are by that time of day, which may have been set since.
        longest_create: how long after its intent a create may still be acted on, or be missing from the list.
    """

    name: str
    stage: Stage
    container_id: int | None = None
    shown_name: str | None = None
    node_name: str
    gpus: int
    hourly_price: Decimal | None
    intended_at: datetime
    expires_at: datetime | None
    certain_at: datetime
    owner: ProcessIdentity | None = attrs.field(default=None, repr=False)
    boot: str = attrs.field(default="", repr=False)
    booted_at: datetime | None = attrs.field(default=None, repr=False)
    longest_create: timedelta | None = attrs.field(default=None, repr=False)

    def present(self, clocks: ClockReading) -> datetime:
        """Return the time of day as it would be if the clock had not been set since the record was made.

        It goes by the clock of the boot; in another boot, nothing but the time of day is known.
        """
        if self.booted_at is None or not self.boot or self.boot != clocks.boot:
            return clocks.wall
        return self.booted_at + timedelta(seconds=clocks.since_boot)

    def has_expired(self, clocks: ClockReading) -> bool:
        """Return True if its time is up."""
        return self.expires_at is not None and self.expires_at <= self.present(clocks)

    def rebased(self, clocks: ClockReading) -> RentalRecord:
        """Return the record with its times bound to this boot, as they are by the time of day."""
        if self.boot and self.boot == clocks.boot:
            return self
        shift = clocks.wall - self.present(clocks)
        return attrs.evolve(
            self,
            intended_at=self.intended_at + shift,
            expires_at=None if self.expires_at is None else self.expires_at + shift,
            certain_at=self.certain_at + shift,
            boot=clocks.boot,
            booted_at=clocks.booted_at,
        )


class ReapAction(Enum):
    """What is to be done about a record."""

    LEAVE = "somebody has it, or may have"
    DELETE = "delete its container"
    LOOK = "look for its container, whose id is not known"
    CLOSE = "there is nothing to delete"
    DOUBT = "it may still turn up"


def action_for(record: RentalRecord, *, now: ClockReading, owner_is_gone: bool) -> ReapAction:
    """Judge a record.

    Args:
        owner_is_gone: the process that has it is provably dead, or has given it up without saying so.
    """
    orphaned = record.stage != "detached" and record.owner is not None and owner_is_gone
    if not (record.has_expired(now) or orphaned or record.stage == "abandoned"):
        return ReapAction.LEAVE
    return ReapAction.LOOK if record.container_id is None else ReapAction.DELETE


def may_turn_up(record: RentalRecord, *, looked_at: ClockReading, waited: timedelta = timedelta(0)) -> bool:
    """Return True if something of a record may still turn up that was not there when it was looked for.

    Both clocks have to agree that it will not, because a container that turns up after all costs for ever.

    Args:
        waited: by a clock that is never set, how long before that the record was there already. Nothing turns up after the
            longest time of its create.
    """
    if record.longest_create is not None and waited >= record.longest_create:
        return False
    return min(looked_at.wall, record.present(looked_at)) < record.certain_at


def action_after_walk(
    record: RentalRecord, *, found: bool, looked_at: ClockReading, waited: timedelta = timedelta(0)
) -> ReapAction:
    """Judge a record whose container was looked for, in the whole list.

    Args:
        looked_at: when the look began.
        waited: as for `may_turn_up`.
    """
    if found:
        return ReapAction.DELETE
    return ReapAction.DOUBT if may_turn_up(record, looked_at=looked_at, waited=waited) else ReapAction.CLOSE


@attrs.frozen(kw_only=True)
class ReapReport:
    """What `reap` did.

    Attributes:
        deleted: the names of the containers that it deleted.
        gone: the names of those that turned out not to exist, or not to exist any more.
        doubtful: what may still turn up; reap again after `certain_at`, or with `wait=True`.
        failed: the names of those that could not be deleted, and why not. They stay on record.
        elsewhere: what would be deleted, too, but is on record for another token of the same service, and nothing proves
            that it belongs to the same account. It is left alone; reap with that account's token.
        account: whose rentals these are: the service's origin, and a fingerprint of the token.
        state_file: where they are on record; None where that was not asked.
    """

    deleted: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    doubtful: tuple[RentalRecord, ...] = ()
    failed: tuple[tuple[str, Exception], ...] = ()
    elsewhere: tuple[RentalRecord, ...] = ()
    account: str = ""
    state_file: Path | None = None

    @property
    def clean(self) -> bool:
        """Nothing is left of what was to be deleted; what may be another account's does not count."""
        return not self.doubtful and not self.failed
