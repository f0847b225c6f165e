"""One attempt to create a container, as a value: what is known of it, and the step that comes next. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum

import attrs

from netmind_rentgpu.models import Container, Machine, PaymentType
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.names import LATEST, new_name
from netmind_rentgpu.rentals.ledger.past_rentals import PastRental
from netmind_rentgpu.rentals.ledger.process_identity import ProcessIdentity
from netmind_rentgpu.rentals.ledger.records import EndCause, RentalRecord
from netmind_rentgpu.rentals.selection.offers import Offer

__all__ = [
    "CreateAttempt",
    "Evidence",
    "Fate",
    "ProvisionSpec",
    "ProvisionedRental",
    "Step",
    "UncertaintyWindow",
    "Walk",
    "next_step",
]


@attrs.frozen(kw_only=True)
class ProvisionSpec:
    """The part of a create that is the same for each attempt of a rental.

    Attributes:
        ttl: how long the container may run; None for a container that the user keeps.
        until: the latest end, if it comes before that of the ttl; None for the ttl alone.
        extendable_to: how long it may run at most, however it is extended.
        budget: the most that it may cost; None without a limit.
        spent_before: the cost of machines that did not start.
        label: the user's own name for the rental.
        image: the image, as the user named it.
        shared_budget: the name of the budget that the rental shares; None without one.
        idle_timeout: how long the machine may be idle; None for as long as it is rented.
    """

    image_id: int
    image: str | None = None
    shared_budget: str | None = None
    auth_id: int
    payment_type: PaymentType | str | int
    ttl: timedelta | None
    until: datetime | None = None
    extendable_to: timedelta = timedelta(0)
    budget: Decimal | None = None
    spent_before: Decimal = Decimal(0)
    label: str | None = None
    idle_timeout: timedelta | None = None

    def intent(
        self,
        offer: Offer,
        *,
        clocks: ClockReading,
        longest_create: timedelta,
        owner: ProcessIdentity,
        guardian: ProcessIdentity | None = None,
        announced: RentalRecord | None = None,
    ) -> RentalRecord:
        """Return the record of an attempt that is about to begin.

        Args:
            clocks: the present time.
            owner: the process that makes the attempt.
            guardian: the guardian of that process; None without one.
            announced: a record of a moment ago, whose name, and the ceiling in it, stay; None to choose a name.
        """
        began = clocks.wall
        ceiling = None if self.ttl is None else began + min(self.extendable_to, LATEST - began)
        if announced is not None:
            ceiling = announced.extendable_to
        time_limit = None if self.ttl is None else began + self.ttl
        if time_limit is not None and self.until is not None:
            time_limit = min(time_limit, self.until)
        record = RentalRecord(
            name=new_name(ceiling) if announced is None else announced.name,
            stage="intended",
            node_name=offer.machine.node_name,
            gpus=offer.gpus,
            hourly_price=offer.hourly_price,
            intended_at=began,
            expires_at=None,
            certain_at=began + longest_create,
            owner=owner,
            boot=clocks.boot,
            booted_at=clocks.booted_at,
            longest_create=longest_create,
            time_limit=time_limit if time_limit is None or ceiling is None else min(time_limit, ceiling),
            budget=self.budget,
            spent_before=self.spent_before,
            extendable_to=ceiling,
            label=self.label,
            gpu_name=offer.machine.gpu_name,
            region=offer.machine.region,
            image=self.image,
            currency=offer.currency,
            shared_budget=self.shared_budget,
            idle_timeout=self.idle_timeout,
            guardian=guardian,
        )
        return attrs.evolve(record, expires_at=record.earlier_limit)


@attrs.frozen(kw_only=True)
class ProvisionedRental:
    """The container that a rental has, and its machine.

    Attributes:
        kept: True if the SDK never deletes the container, once the rental has started.
    """

    record: RentalRecord
    container: Container
    machine: Machine
    kept: bool = False


class Evidence(Enum):
    """The strongest proof of what an attempt's create has done."""

    NOT_PROCESSED = "the create was not sent, or the service turned it away before it acted"
    IN_FLIGHT = "the service has not answered yet"
    UNCLEAR = "the service may have acted, because its answer was lost or cannot be read"
    REFUSED = "the service answered that it did not act"
    CREATED = "the service answered with a container"
    CONFIRMED = "the service has shown the container since"


class Fate(Enum):
    """The state of a container that an attempt has created."""

    RUNNING = "it costs money, as far as is known"
    DELETED = "a deletion of ours has taken effect"
    ALREADY_GONE = "it did not exist any longer when it was to be deleted"
    REPLACED = "its id belongs to another container by now, and only its name can find it"
    NOT_DELETED = "its deletion has failed"


class Walk(Enum):
    """The last walk over the list of containers, made to find what an attempt has created."""

    NOT_RUN = "none was made since the cleanup began"
    FAILED = "the list could not be read, or not for certain"
    TOO_EARLY = "something of the attempt may still turn up"
    CONCLUSIVE = "it began when nothing of the attempt could turn up any longer"


class Step(Enum):
    """A step of the cleanup that ends an attempt. The last two end the cleanup, too."""

    AWAIT_ANSWER = "wait for the answer to the create"
    SEARCH = "search the list for the container, until it would be listed"
    DELETE = "delete the containers that run"
    FINAL_WALK = "walk over the list once more, because the service may have acted twice"
    KEEP_ON_RECORD = "leave the record to the reaper"
    CLOSE_RECORD = "remove the record"


@attrs.frozen
class UncertaintyWindow:
    """The time until which a container of an attempt may still turn up.

    Attributes:
        certain_at: UTC wall time, as the record has it for other processes.
        over_at: seconds on the event loop's clock, which is never set.
    """

    certain_at: datetime
    over_at: float


@attrs.frozen(kw_only=True)
class CreateAttempt:
    """One attempt to create a container.

    Attributes:
        record: the record as it stands in the ledger, or is about to.
        containers: the fate of each container that the attempt has created, by id. More than one is the service's mistake.
        window: None if nothing more of the attempt can turn up.
        searched: True if the search for its container has ended, with a result or without.
    """

    record: RentalRecord
    evidence: Evidence = Evidence.NOT_PROCESSED
    containers: Mapping[int, Fate] = attrs.field(factory=dict[int, Fate])
    window: UncertaintyWindow | None = None
    searched: bool = False
    walk: Walk = Walk.NOT_RUN

    @classmethod
    def from_record(cls, record: RentalRecord, *, clocks: ClockReading, loop_time: float) -> CreateAttempt:
        """Return the attempt of a record, which another process may have made.

        Args:
            clocks, loop_time: the present time, the latter by the event loop's clock.
        """
        left = record.time_to_certainty(clocks)
        evidence = Evidence.CONFIRMED if record.stage in ("ready", "detached") else Evidence.CREATED
        if record.container_id is None:
            evidence = Evidence.REFUSED if record.refused else Evidence.UNCLEAR
        return cls(
            record=record,
            evidence=evidence,
            containers={} if record.container_id is None else {record.container_id: Fate.RUNNING},
            window=UncertaintyWindow(record.certain_at, loop_time + left.total_seconds()) if left else None,
            # A single walk after the window tells as much.
            searched=True,
        )

    @property
    def container_id(self) -> int | None:
        """The id of the rental's own container, where it is known."""
        return self.record.container_id

    @property
    def running(self) -> list[int]:
        """The ids of the containers to be deleted."""
        return [container_id for container_id, fate in self.containers.items() if fate is Fate.RUNNING]

    @property
    def running_twins(self) -> list[int]:
        """The ids of the containers to be deleted, without the rental's own."""
        return [container_id for container_id in self.running if container_id != self.container_id]

    @property
    def has_undeleted(self) -> bool:
        """True if a container of the attempt could not be deleted."""
        return Fate.NOT_DELETED in self.containers.values()

    @property
    def is_own_undeleted(self) -> bool:
        """True if the rental's own container could not be deleted."""
        return self.container_id is not None and self.containers.get(self.container_id) is Fate.NOT_DELETED

    @property
    def has_undeleted_twins(self) -> bool:
        """True if a container beside the rental's own may still run."""
        left = (Fate.RUNNING, Fate.NOT_DELETED)
        return any(fate in left for container_id, fate in self.containers.items() if container_id != self.container_id)

    @property
    def verified_deletions(self) -> set[int]:
        """The ids of the containers that are gone for certain."""
        return {
            container_id for container_id, fate in self.containers.items() if fate in (Fate.DELETED, Fate.ALREADY_GONE)
        }

    @property
    def is_known_by_id(self) -> bool:
        """True if nothing of the attempt can exist but the containers that are known by their ids."""
        is_answered = self.evidence in (Evidence.CREATED, Evidence.CONFIRMED)
        return is_answered and self.window is None and Fate.REPLACED not in self.containers.values()

    def sent(self) -> CreateAttempt:
        """Return the attempt once its create was sent."""
        return attrs.evolve(self, evidence=Evidence.IN_FLIGHT)

    def not_processed(self) -> CreateAttempt:
        """Return the attempt once its create is known not to have been processed: it was not sent, or answered with 429."""
        return attrs.evolve(self, evidence=Evidence.NOT_PROCESSED)

    def in_doubt(self, evidence: Evidence, window: UncertaintyWindow) -> CreateAttempt:
        """Return the attempt once its create was answered by no container; its window begins, unless it has one."""
        is_refused = evidence is Evidence.REFUSED
        record = attrs.evolve(self.record, certain_at=window.certain_at, refused=is_refused)
        return attrs.evolve(self, evidence=evidence, record=record, window=window)

    def created(self, containers: Iterable[Container], evidence: Evidence, clocks: ClockReading) -> CreateAttempt:
        """Return the attempt once its containers are known; the first one is the rental's own.

        Args:
            evidence: CREATED or CONFIRMED.
            clocks: the present time; from then on nothing more turns up, unless the attempt has a window.
        """
        own, *twins = containers
        record = attrs.evolve(
            self.record,
            stage="created",
            container_id=own.id,
            shown_name=own.name,
            certain_at=self.record.present(clocks) if self.window is None else self.record.certain_at,
            refused=False,
            created_at=self.record.present(clocks),
        )
        known = dict.fromkeys((own.id, *(twin.id for twin in twins)), Fate.RUNNING)
        return attrs.evolve(self, record=record, evidence=evidence, containers={**self.containers, **known})

    def ready(self, clocks: ClockReading) -> CreateAttempt:
        """Return the attempt once its container can be handed over.

        Args:
            clocks: the present time.
        """
        record = attrs.evolve(self.record, stage="ready", ready_at=self.record.present(clocks))
        return attrs.evolve(self, evidence=Evidence.CONFIRMED, record=record)

    def ended(self, container_id: int, fate: Fate) -> CreateAttempt:
        """Return the attempt with another fate of a container."""
        # It has cost until now, even if it seemed to be gone before.
        record = attrs.evolve(self.record, ended_at=None) if fate is Fate.DELETED else self.record
        return attrs.evolve(self, record=record, containers={**self.containers, container_id: fate})

    def search_ended(self) -> CreateAttempt:
        """Return the attempt once its search has ended. If that has found a container, a final walk follows its deletion."""
        found = self.evidence is Evidence.CONFIRMED
        return attrs.evolve(self, searched=True, walk=Walk.NOT_RUN if found else self.walk)

    def walked(self, found: Collection[int], *, began: float, is_complete: bool) -> CreateAttempt:
        """Return the attempt once a walk over the list has shown containers of it.

        Args:
            found: their ids.
            began: seconds on the event loop's clock when the walk began.
            is_complete: False if the walk has met items that cannot be read, and may be others of the attempt's.
        """
        # A deleted container may stay listed. A container that only seemed to be gone is there, and is deleted again.
        new = {
            container_id: Fate.RUNNING
            for container_id in found
            if self.containers.get(container_id, Fate.ALREADY_GONE) is Fate.ALREADY_GONE
        }
        walk = Walk.CONCLUSIVE if self.window is None or began >= self.window.over_at else Walk.TOO_EARLY
        return attrs.evolve(
            self,
            evidence=Evidence.CONFIRMED if found else self.evidence,
            containers={**self.containers, **new},
            walk=walk if is_complete else Walk.FAILED,
        )

    def certain(self) -> CreateAttempt:
        """Return the attempt once nothing more of it can turn up."""
        return attrs.evolve(self, window=None)

    def cleanup_begun(self) -> CreateAttempt:
        """Return the attempt as its cleanup begins: failed deletions and walks are repeated."""
        again = {
            container_id: Fate.RUNNING if fate is Fate.NOT_DELETED else fate
            for container_id, fate in self.containers.items()
        }
        return attrs.evolve(self, containers=again, walk=Walk.NOT_RUN)

    def abandoned_record(self, cause: EndCause, clocks: ClockReading) -> RentalRecord:
        """Return the record that the reaper continues from; without an id, it searches by the name.

        Args:
            cause: the cause of the end, unless the record has one.
            clocks: the present time.
        """
        return attrs.evolve(
            self.record,
            stage="abandoned",
            owner=None,
            container_id=self.container_id if self.is_own_undeleted else None,
            refused=self.evidence is Evidence.REFUSED,
            cause=self._cause(cause),
            ended_at=None if self.has_undeleted else self._ended_at(clocks),
        )

    def past_rental(self, cause: EndCause, clocks: ClockReading) -> PastRental | None:
        """Return what is kept of the attempt once its record is closed; None if it has created no container.

        Args:
            cause: the cause of the end, unless the record has one.
            clocks: the present time.
        """
        record = self.record
        if not self.containers and not record.had_container:
            return None
        ended_at = self._ended_at(clocks) or record.present(clocks)
        if record.extendable_to is not None and Fate.DELETED not in self.containers.values():
            # The time at which it was gone is not known, and its ceiling is the latest that this package allows.
            ended_at = min(ended_at, record.extendable_to)
        return PastRental.of(record, ended_at=ended_at, cause=self._cause(cause))

    def _cause(self, cause: EndCause) -> EndCause:
        is_gone = self.container_id is not None and self.containers.get(self.container_id) is Fate.ALREADY_GONE
        return self.record.cause or ("gone" if is_gone and cause in ("released", "reaped") else cause)

    def _ended_at(self, clocks: ClockReading) -> datetime | None:
        """Return the time at which the container was gone; None if it has none."""
        return self.record.ended_at or (self.record.present(clocks) if self.containers else None)


def next_step(attempt: CreateAttempt) -> Step:  # noqa: PLR0911  # a line for each state reads best
    """Return the step that a cleanup takes next. A cancellation limits a step's time, and never chooses a step."""
    if attempt.evidence is Evidence.IN_FLIGHT:
        return Step.AWAIT_ANSWER
    if attempt.evidence is Evidence.NOT_PROCESSED:
        return Step.CLOSE_RECORD
    if attempt.running:
        return Step.DELETE
    if attempt.has_undeleted:
        return Step.KEEP_ON_RECORD
    if attempt.evidence is Evidence.UNCLEAR and not attempt.searched:
        return Step.SEARCH
    if attempt.walk is Walk.NOT_RUN:
        return Step.FINAL_WALK
    is_closed = attempt.walk is Walk.CONCLUSIVE or attempt.is_known_by_id
    return Step.CLOSE_RECORD if is_closed else Step.KEEP_ON_RECORD
