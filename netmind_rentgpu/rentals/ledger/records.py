"""The record of a rental, the rule by which it is reaped, and the reaper's report. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import attrs

from netmind_rentgpu.amounts import in_own_context, rounded
from netmind_rentgpu.conversion import plain_values
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.names import LATEST, expiry_in
from netmind_rentgpu.rentals.ledger.process_identity import ProcessIdentity

__all__ = [
    "SHOWN_FIELDS",
    "EndCause",
    "ReapReport",
    "RentalRecord",
    "Stage",
    "amount_text",
    "is_legal_change",
    "is_to_be_reaped",
]

_SECONDS_IN_AN_HOUR = 3600
_MOST_SECONDS = int(timedelta.max.total_seconds())
SHOWN_FIELDS: Final = (
    *("name", "label", "stage", "container_id", "gpu_name", "gpus", "node_name", "region", "image"),
    *("hourly_price", "currency", "intended_at", "created_at", "ready_at", "expires_at", "extendable_to", "certain_at"),
    *("budget", "shared_budget", "max_cost", "max_cost_at_ceiling", "enforced_by", "release_job", "idle_timeout"),
)
"""The names of the fields and properties that `RentalRecord.to_dict` returns."""

Stage: TypeAlias = Literal["intended", "created", "ready", "detached", "abandoned"]
"""The progress of a rental. `abandoned`: the rental is over, and its container may still have to be deleted."""

EndCause: TypeAlias = Literal["released", "expired", "budget", "failed", "reaped", "gone", "kept", "finished", "idle"]
"""The cause of a rental's end.

`released`: its user ended it, by leaving its block, by `close`, by `rentals.release`, or by deleting the container of a
detached rental.
`expired`: its time was up. `budget`: its budget was spent. `failed`: its container did not start. `reaped`: its process had
ended without it. `gone`: its container did not exist any longer. `kept`: it was left to its user, and costs on. `finished`:
the job was over for which it was detached. `idle`: its machine was idle for too long.
"""


# The stages that may follow a stage in the state file. A stage may be skipped, because its write may have failed. Only an
# attach goes back, from `detached` to `ready`. An abandoned record stays so, because a reaper may be deleting its container.
_NEXT_STAGES: Final[Mapping[Stage, frozenset[Stage]]] = {
    "intended": frozenset({"intended", "created", "ready", "detached", "abandoned"}),
    "created": frozenset({"created", "ready", "detached", "abandoned"}),
    "ready": frozenset({"ready", "detached", "abandoned"}),
    "detached": frozenset({"ready", "detached", "abandoned"}),
    "abandoned": frozenset({"abandoned"}),
}


def is_legal_change(before: Stage | None, after: Stage) -> bool:
    """Return True if a record may go from one stage to another.

    Args:
        before: None if the state file does not have the record: it is new, or was removed and is put back.
    """
    return before is None or after in _NEXT_STAGES[before]


@attrs.frozen(kw_only=True)
class RentalRecord:
    """A rental on record in the state file, or a create attempt that may have left a container.

    Attributes:
        name: the container's name.
        stage: the progress: `intended` (the create may have been sent), `created`, `ready` (handed over), `detached` (left
            running until its expiry), or `abandoned` (over, but the container is not known to be gone).
        container_id: the container's id; None as long as the service has not shown it.
        shown_name: the container's name as the service showed it with the id, which may differ from `name`.
        node_name, gpus: the machine, and the number of its GPUs.
        gpu_name, region: the GPU and the region of the machine, as it was listed; None if they are not known.
        image: the image that the rental was made with, as its user named it; None if it is not known.
        hourly_price: the price of an hour, as the machine was listed; None if the price could not be read.
        currency: the currency of the price, such as USD; None if it is not known.
        label: the user's own name for the rental, which several may share; None if it has none.
        intended_at: the time just before the create.
        created_at: the time of the answer that showed the container; None before.
        ready_at: the time from which on the first login had worked; None before.
        expires_at: the time from which on any process may delete the container: the earlier of `time_limit` and the end of
            the budget; None if it is to be kept.
        time_limit: the end of the ttl; None if it is to be kept.
        budget: the most that the rental may cost, in the currency of its price; None without a limit.
        spent_before: the cost of machines that did not start for this rental, which counts towards the budget.
        extendable_to: the latest time limit, which stands in the container's name; None if there is none.
        certain_at: the time from which on no container of the record can turn up any longer. Until then, a record without an
            id is in doubt.
        owner: the process that owns the rental; None if no process does.
        boot, booted_at: the boot in which the record was made, and the wall time of that boot as the clock was set then. All
            times of a record are wall times by that setting of the clock.
        longest_create: the longest time after `intended_at` for which the service may still act on the create, or not list
            the container.
        refused: True if the service has refused the create. The record is kept until `certain_at` only because a gateway may
            have refused what the service acts on.
        shared_budget: the name of the budget that the rental shares with others; None without one.
        guardian: the guardian that ends the rental if its process dies or misses the deadline; None without one.
        release_job: the name of the job with whose end the guardian deletes the container while the rental is detached; None
            if only the expiry ends it.
        release_job_id: the id of that job.
        idle_timeout: how long the machine may be idle before it is deleted; None for as long as it is rented.
        idle_since: the moment since which it is idle while it is detached, as its guardian has read; None if it has not.
        idle_read_at: the moment of the guardian's last reading; None before.
        enforced_by: the processes that delete the container at its expiry, as `rentals.list` and `rentals.get` find them,
            such as "process 4711 and guardian 4712"; None if only `rentals.reap` does.
        cause: the cause of its end, if it is over, and the record is kept because its container may not be gone; else None.
        ended_at: the time at which its container was gone, if another of its create may still turn up; else None.
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
    refused: bool = attrs.field(default=False, repr=False)
    # Records of earlier versions have one deadline, and their ceiling in the name alone.
    time_limit: datetime | None = attrs.field(default=attrs.Factory(lambda record: record.expires_at, takes_self=True))
    budget: Decimal | None = None
    spent_before: Decimal = Decimal(0)
    extendable_to: datetime | None = attrs.field(
        default=attrs.Factory(lambda record: expiry_in(record.name), takes_self=True)
    )
    label: str | None = None
    gpu_name: str | None = None
    region: str | None = None
    image: str | None = None
    currency: str | None = None
    shared_budget: str | None = None
    created_at: datetime | None = None
    ready_at: datetime | None = None
    cause: EndCause | None = attrs.field(default=None, repr=False)
    ended_at: datetime | None = attrs.field(default=None, repr=False)
    guardian: ProcessIdentity | None = attrs.field(default=None, repr=False)
    release_job: str | None = None
    release_job_id: str | None = attrs.field(default=None, repr=False)
    idle_timeout: timedelta | None = None
    idle_since: datetime | None = attrs.field(default=None, repr=False)
    idle_read_at: datetime | None = attrs.field(default=None, repr=False)
    enforced_by: str | None = attrs.field(default=None, eq=False)

    @property
    @in_own_context
    def budget_end(self) -> datetime | None:
        """The time at which the budget is spent, by the listed price; None without a budget, or at a price of 0."""
        if self.budget is None or not self.hourly_price:
            return None
        seconds = (self.budget - self.spent_before) / self.hourly_price * _SECONDS_IN_AN_HOUR
        # Rounded down to a microsecond, so that the cost until then is never above the budget.
        microseconds = int((seconds * 10**6).to_integral_value(ROUND_FLOOR)) if seconds < _MOST_SECONDS else None
        left = timedelta.max if microseconds is None else timedelta(microseconds=microseconds)
        return self.intended_at + min(left, LATEST - self.intended_at)

    @property
    def earlier_limit(self) -> datetime | None:
        """The earlier of the time limit and the end of the budget; None for a rental that is kept."""
        limits = [limit for limit in (self.time_limit, self.budget_end) if limit is not None]
        return None if self.time_limit is None else min(limits)

    @property
    def ends_by_budget(self) -> bool:
        """True if the budget ends the rental before its time limit does."""
        end = self.budget_end
        return end is not None and self.time_limit is not None and end < self.time_limit

    @property
    def max_cost(self) -> Decimal | None:
        """The most that the rental can cost until `expires_at`, by the listed price; None without a price or an expiry.

        Machines that did not start for it are included. If no process enforces the expiry, only `rentals.reap(by_name=True)`
        ends it, at `extendable_to`; `max_cost_at_ceiling` is the cost until then.
        """
        return self._cost_until(self.expires_at)

    @property
    def max_cost_at_ceiling(self) -> Decimal | None:
        """The cost until `extendable_to`, by the listed price; None if one of them is not known."""
        return self._cost_until(self.extendable_to)

    @in_own_context
    def _cost_until(self, moment: datetime | None) -> Decimal | None:
        cost = None if moment is None else self.cost_until(moment)
        return None if cost is None else rounded(cost + self.spent_before)

    @property
    def had_container(self) -> bool:
        """True if the record's container is known to exist, or to have existed."""
        return any(known is not None for known in (self.container_id, self.created_at, self.ended_at))

    @property
    def may_be_rented(self) -> bool:
        """True if the record's container exists, or may exist for all that is known; False for a refused create."""
        return self.container_id is not None or not self.refused

    def to_dict(self, *, secrets: bool = False, json: bool = False) -> dict[str, Any]:
        """Return the fields that tell a user something as plain values, as for a row of a DataFrame.

        Args:
            secrets: without effect, because a record has none.
            json: True to return only what JSON can hold: prices become texts, and times become texts in ISO 8601.
        """
        del secrets
        return plain_values({name: getattr(self, name) for name in SHOWN_FIELDS}, json=json)

    def with_deadline_of(self, other: RentalRecord) -> RentalRecord:
        """Return the record with the deadline of another, as it is on file now."""
        return attrs.evolve(self, expires_at=other.expires_at, time_limit=other.time_limit, budget=other.budget)

    def present(self, clocks: ClockReading) -> datetime:
        """Return the wall time as it would be if the clock had not been set since the record was made.

        The time is computed from the clock of the boot. In another boot, only the present wall time is known.
        """
        if self.booted_at is None or not self.boot or self.boot != clocks.boot:
            return clocks.wall
        return self.booted_at + timedelta(seconds=clocks.since_boot)

    def has_expired(self, clocks: ClockReading) -> bool:
        """Return True if the expiry has passed."""
        return self.expires_at is not None and self.expires_at <= self.present(clocks)

    @in_own_context
    def cost_until(self, moment: datetime) -> Decimal | None:
        """Return the cost until a moment, by the listed price and the time since the intent; None for an unknown price.

        Args:
            moment: by the clock that `present` returns.
        """
        if self.hourly_price is None:
            return None
        seconds = max(0.0, (moment - self.intended_at).total_seconds())
        return self.hourly_price * Decimal(str(seconds)) / _SECONDS_IN_AN_HOUR

    def time_to_certainty(self, clocks: ClockReading) -> timedelta:
        """Return for how long a container of the record may still turn up; 0 if none can.

        Both clocks have to agree that none can, because a container that turns up after all costs money without end. However
        the clocks were set, none turns up after `longest_create`.
        """
        left = self.certain_at - min(clocks.wall, self.present(clocks))
        return max(timedelta(0), left if self.longest_create is None else min(left, self.longest_create))

    def sent_before(self, clocks: ClockReading, *, uncertainty: timedelta) -> RentalRecord:
        """Return the record of a create that was sent by now, if at all, because its process is dead.

        Args:
            uncertainty: the longest time between an unclear create and the moment when its container, if any, is listed.
        """
        latest = max(clocks.wall, self.present(clocks)) + uncertainty
        longest = uncertainty if self.longest_create is None else min(self.longest_create, uncertainty)
        return attrs.evolve(self, certain_at=min(self.certain_at, latest), longest_create=longest)

    def rebased(self, clocks: ClockReading) -> RentalRecord:
        """Return the record bound to this boot; its times become wall times as the clock is set now."""
        if self.boot and self.boot == clocks.boot:
            return self
        return attrs.evolve(self, boot=clocks.boot, booted_at=clocks.booted_at)


def amount_text(amount: Decimal | None, currency: str | None) -> str:
    """Return an amount of money for a message."""
    return "an unknown price" if amount is None else f"{amount:f} {currency or ''}".rstrip()


def is_to_be_reaped(record: RentalRecord, *, now: ClockReading, owner_is_gone: bool) -> bool:
    """Return True if the reaper has to delete a record's container: its time is up, or no process owns it any longer.

    Args:
        owner_is_gone: True if the process that owns the record is provably dead, or has left it behind.
    """
    is_orphaned = record.stage != "detached" and record.owner is not None and owner_is_gone
    return record.stage == "abandoned" or is_orphaned or record.has_expired(now)


@attrs.frozen(kw_only=True)
class ReapReport:
    """The result of `reap`.

    Attributes:
        deleted: the names of the deleted containers.
        gone: the names of containers that did not exist, or not any longer.
        doubtful: the records whose containers may still turn up; reap again after `certain_at`, or with `wait=True`. Creates
            that the service refused are not among them.
        failed: the names of containers that could not be deleted, each with the error. Their records stay.
        elsewhere: the records that would be reaped, but are on record for another token of the same service, which nothing
            proves to be the same account's. Their containers are left alone; reap with that account's token.
        account: the account that was reaped: the service's origin, and a fingerprint of the token.
        state_file: the path of the state file; None with `by_name`, which does not read the file.
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
        """True if nothing is left to delete; `elsewhere` does not count, because it may be another account's."""
        return not self.doubtful and not self.failed
