"""What the ledger knows of a rental, and what the reaper does about it. Pure."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Literal, TypeAlias

import attrs

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


class ReapAction(Enum):
    """What is to be done about a record."""

    LEAVE = "somebody has it, or may have"
    DELETE = "delete its container"
    LOOK = "look for its container, whose id is not known"
    CLOSE = "there is nothing to delete"
    DOUBT = "it may still turn up"


def action_for(record: RentalRecord, *, now: datetime, owner_is_gone: bool) -> ReapAction:
    """Judge a record.

    Args:
        owner_is_gone: the process that has it is provably dead, or has given it up without saying so.
    """
    expired = record.expires_at is not None and record.expires_at <= now
    orphaned = record.stage != "detached" and record.owner is not None and owner_is_gone
    if not (expired or orphaned or record.stage == "abandoned"):
        return ReapAction.LEAVE
    return ReapAction.LOOK if record.container_id is None else ReapAction.DELETE


def may_turn_up(record: RentalRecord, *, looked_at: datetime) -> bool:
    """Tell whether something of a record may still turn up that was not there when it was looked for."""
    return looked_at < record.certain_at


def action_after_walk(record: RentalRecord, *, found: bool, looked_at: datetime) -> ReapAction:
    """Judge a record whose container was looked for, in the whole list.

    Args:
        looked_at: when the look began.
    """
    if found:
        return ReapAction.DELETE
    return ReapAction.DOUBT if may_turn_up(record, looked_at=looked_at) else ReapAction.CLOSE


@attrs.frozen(kw_only=True)
class ReapReport:
    """What `reap` did.

    Attributes:
        deleted: the names of the containers that it deleted.
        gone: the names of those that turned out not to exist, or not to exist any more.
        doubtful: what may still turn up; reap again after `certain_at`, or with `wait=True`.
        failed: the names of those that could not be deleted, and why not. They stay on record.
    """

    deleted: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    doubtful: tuple[RentalRecord, ...] = ()
    failed: tuple[tuple[str, Exception], ...] = ()

    @property
    def clean(self) -> bool:
        """Nothing is left of what was to be deleted."""
        return not self.doubtful and not self.failed
