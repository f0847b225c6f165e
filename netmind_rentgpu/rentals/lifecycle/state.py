"""The phases of a rental, the reason why it ends, and the error that leaving it raises. The decisions are pure."""

from __future__ import annotations

import asyncio
import os
from enum import Enum
from typing import TypeVar

import attrs

from netmind_rentgpu.concurrency.running_loop import running_loop
from netmind_rentgpu.errors import (
    BudgetExceededError,
    ClientStateError,
    ReleaseError,
    RentalEndedError,
    RentalExpiredError,
    RentalIdleError,
    RentGPUError,
    SSHError,
)
from netmind_rentgpu.rentals.ledger.records import EndCause, RentalRecord, amount_text
from netmind_rentgpu.rentals.lifecycle.attempt import ProvisionedRental

__all__ = ["EndReason", "Phase", "RentalState", "cause_of", "end_error", "noted", "what_to_raise"]


Raised = TypeVar("Raised", bound=BaseException | None)


class Phase(Enum):
    """The phases of a rental, in their order. A phase may be skipped, and none comes back."""

    NEW = "it was not entered yet"
    STARTING = "it is being entered"
    ACTIVE = "its block runs"
    ENDING = "its container is being deleted, or was detached"
    ENDED = "nothing of it is left to do"


class EndReason(Enum):
    """The reason why a rental ends. The first reason stays."""

    LEFT = "it was left"
    CLOSED = "it was closed"
    DETACHED = "it was detached"
    OTHER_PROCESS = "it belongs to another process, from which this one was forked"
    EXPIRED = "its time is up"
    BUDGET_SPENT = "its budget is spent"
    IDLE = "its machine was idle for too long"
    GONE = "its container is gone"


# The reasons for which a rental ends though its user is not done with it.
_LOSSES = (EndReason.EXPIRED, EndReason.BUDGET_SPENT, EndReason.IDLE, EndReason.GONE)
# Those for which the SDK itself ends a rental while its block runs.
_DEADLINES = (EndReason.EXPIRED, EndReason.BUDGET_SPENT, EndReason.IDLE)


def end_error(reason: EndReason | None, provisioned: ProvisionedRental | None) -> RentGPUError:
    """Return the error of a use that comes too late, or too early.

    Args:
        reason: None for a rental that was not entered yet.
        provisioned: the container that the rental has, or had.
    """
    if provisioned is not None:
        record, number = provisioned.record, provisioned.container.id
        name, container_id = record.name, record.container_id
        deleted = f"the deletion of container {number} has begun"
        ended = "" if record.expires_at is None else f"since {record.expires_at:%Y-%m-%d %H:%M:%S} UTC"
        match reason:
            case EndReason.EXPIRED:
                return RentalExpiredError(
                    f"the time of {name} is up {ended}; {deleted}", name=name, container_id=container_id
                )
            case EndReason.BUDGET_SPENT:
                limit = f"{amount_text(record.budget, record.currency)}, at a listed {record.hourly_price} an hour"
                if record.budget is None:
                    limit = f"shared budget {record.shared_budget!r} has no room for more"
                text = f"the budget of {name} is spent {ended}: {limit}; {deleted}"
                return BudgetExceededError(text, name=name, container_id=container_id)
            case EndReason.IDLE:
                text = f"the machine of {name} was idle for its idle_timeout of {record.idle_timeout}; {deleted}"
                return RentalIdleError(text, name=name, container_id=container_id)
            case EndReason.GONE:
                text = f"the container of {name}, {provisioned.container.id}, is gone"
                return RentalEndedError(text, name=name, container_id=container_id)
            case _:
                pass
    cause = (
        "it was not entered yet; enter its `with` block, or call its open(), first" if reason is None else reason.value
    )
    return ClientStateError(f"this rental cannot be used: {cause}")


def cause_of(reason: EndReason | None, *, has_started: bool) -> EndCause:
    """Return the cause of a rental's end, as the past rentals name it.

    Args:
        has_started: False if its last machine did not start.
    """
    match reason:
        case EndReason.EXPIRED:
            return "expired"
        case EndReason.BUDGET_SPENT:
            return "budget"
        case EndReason.IDLE:
            return "idle"
        case EndReason.GONE:
            return "gone"
        case _:
            return "released" if has_started else "failed"


def what_to_raise(
    *,
    body_error: BaseException | None,
    cancellation: asyncio.CancelledError | None,
    was_cut_short: bool,
    reason: EndReason | None,
    reason_error: RentGPUError,
    problem: ReleaseError | None,
) -> BaseException | None:
    """Return the error that leaving a block raises; None if it ends without one.

    A caller who is not told of a passed deadline would take a block that was cut short for a complete one. An error of the
    block itself tells more than the deadline, unless it is the lost connection that the deletion has caused. A cancellation
    by the caller is never swallowed.

    Args:
        body_error: the error with which the block ended.
        cancellation: the cancellation that came while the container was deleted.
        was_cut_short: True if the SDK has cancelled the block's task, and the caller has not.
        reason, reason_error: the reason why the rental ends, and its error.
        problem: the error of the deletion.
    """
    thrown = body_error if cancellation is None else cancellation
    is_caused_by_deadline = (was_cut_short and isinstance(thrown, asyncio.CancelledError)) or (
        reason in _DEADLINES and isinstance(thrown, SSHError) and thrown.stage == "connection"
    )
    is_callers = thrown is not None and not is_caused_by_deadline
    if not is_callers and (was_cut_short or reason in _DEADLINES):
        return reason_error
    return problem if thrown is None else thrown


def noted(error: Raised, problem: ReleaseError | None) -> Raised:
    """Return an error with a note of a container that could not be deleted."""
    if error is not None and problem is not None:
        error.add_note(str(problem))
    return error


class RentalState:
    """The present phase of one rental.

    Attributes:
        phase: never an earlier one than before.
        reason: the reason why the rental ends; None as long as it does not.
        provisioned: the container that the rental has, or had; None before.
        ended: set once the rental ends.
    """

    def __init__(self) -> None:
        self.phase: Phase = Phase.NEW
        self.reason: EndReason | None = None
        self.provisioned: ProvisionedRental | None = None
        self.ended: asyncio.Event = asyncio.Event()
        self._process: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def move_deadline(self, record: RentalRecord) -> None:
        """Record the deadline that the rental has on file now."""
        if self.provisioned is not None and self.provisioned.record.name == record.name:
            moved = self.provisioned.record.with_deadline_of(record)
            self.provisioned = attrs.evolve(self.provisioned, record=moved)

    def check_new(self) -> None:
        """Raise ClientStateError if the rental was entered before, or has ended."""
        if self.reason is not None:
            raise end_error(self.reason, None)
        if self.phase is not Phase.NEW:
            raise ClientStateError("this rental was entered before; make another one")

    def enter(self) -> None:
        """Start the rental, in this process and event loop."""
        self._process, self._loop = os.getpid(), running_loop()
        self.advance(Phase.STARTING)

    def advance(self, phase: Phase) -> None:
        """Record a phase, unless the rental is in a later one already."""
        order = list(Phase)
        self.phase = max(self.phase, phase, key=order.index)

    def end(self, reason: EndReason) -> None:
        """Record why the rental ends, unless an earlier reason is known."""
        self.reason = self.reason or reason
        self.ended.set()

    @property
    def is_lost(self) -> bool:
        """True if the rental ended though its user was not done with it."""
        return self.reason in _LOSSES

    @property
    def is_entered_here(self) -> bool:
        """True if the rental was entered in this process. A forked child inherits a rental of its parent."""
        return self._process == os.getpid()

    def check_loop(self) -> None:
        """Raise ClientStateError if the rental was entered in this process, but in another event loop."""
        if self.is_entered_here and self._loop is not running_loop():
            raise ClientStateError("this rental was entered in another event loop; use it there")

    @property
    def had(self) -> ProvisionedRental:
        """The container that the rental has, or had.

        Raises:
            ClientStateError: the rental has none yet.
        """
        if self.provisioned is None:
            raise end_error(self.reason, None)
        return self.provisioned

    def check(self) -> ProvisionedRental:
        """Return the container that the rental has.

        Raises:
            RentalEndedError: the rental has ended, and not because its caller left it.
            ClientStateError: it was not entered yet, was left, closed or detached, or belongs to another process.
        """
        if self._process not in (None, os.getpid()):
            raise end_error(EndReason.OTHER_PROCESS, None)
        if self.reason is not None:
            raise self.error
        return self.had

    def check_deadline(self, act: str) -> ProvisionedRental:
        """Return the container that the rental has, if it was entered and has a deadline.

        Args:
            act: a verb for what is wanted, for the error.

        Raises:
            RentalEndedError, ClientStateError: as for `check`; or it is still being started, or kept.
        """
        provisioned = self.check()
        if self.phase is Phase.STARTING:
            raise ClientStateError(f"this rental is still being started; {act} it once it is entered")
        if provisioned.kept:
            raise ClientStateError("this rental is kept; nothing deletes it anyway")
        return provisioned

    @property
    def error(self) -> RentGPUError:
        """The error of a use after the rental's end, or before its beginning."""
        return end_error(self.reason, self.provisioned)
