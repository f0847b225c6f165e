"""Values: a rental's specification, one attempt to create it, and the result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import attrs

from netmind_rentgpu.models import Container, Machine, PaymentType
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.container_index import check_create_answer
from netmind_rentgpu.rentals.ledger.names import new_name
from netmind_rentgpu.rentals.ledger.process_identity import this_process
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.selection.offers import Offer
from netmind_rentgpu.resources.containers import AsyncContainers

__all__ = ["CreateAttempt", "ProvisionSpec", "ProvisionedRental"]


@attrs.frozen(kw_only=True)
class ProvisionSpec:
    """What every try of a rental asks for.

    Attributes:
        allowance: how long an offer may be had; None for what is to be kept.
    """

    image_id: int
    auth_id: int
    payment_type: PaymentType | str | int
    allowance: Callable[[Offer], timedelta | None]

    def intent(self, offer: Offer, *, clocks: ClockReading, longest_create: timedelta) -> RentalRecord:
        """Return the record of an attempt that is about to begin, owned by this process.

        Args:
            clocks: as they are now.
        """
        allowance, began = self.allowance(offer), clocks.wall
        expires_at = None if allowance is None else began + allowance
        return RentalRecord(
            name=new_name(expires_at),
            stage="intended",
            node_name=offer.machine.node_name,
            gpus=offer.gpus,
            hourly_price=offer.hourly_price,
            intended_at=began,
            expires_at=expires_at,
            certain_at=began + longest_create,
            owner=this_process(),
            boot=clocks.boot,
            booted_at=clocks.booted_at,
            longest_create=longest_create,
        )

    async def create(self, containers: AsyncContainers, record: RentalRecord) -> Container:
        """Create a record's container.

        Raises:
            UnexpectedResponseError: the answer shows another container; what the create has made is not known.
            RentGPUError: any other of the client's errors.
        """
        container = await containers.create(
            name=record.name,
            auth_id=self.auth_id,
            node_name=record.node_name,
            image_template_id=self.image_id,
            payment_type=self.payment_type,
            gpu=record.gpus,
        )
        check_create_answer(record, container)
        return container


@attrs.frozen(kw_only=True)
class ProvisionedRental:
    """What a rental has, once it has it.

    Attributes:
        by_budget: it is its budget, and not its time, that ends it.
        kept: it is not to be deleted when it is left, nor ever by us.
    """

    record: RentalRecord
    container: Container
    machine: Machine
    by_budget: bool = False
    kept: bool = False


@attrs.frozen
class UncertaintyWindow:
    """Until when something may still turn up.

    Attributes:
        certain_at: by the record's time of day, which other processes know.
        over_at: by the event loop's clock, which nobody sets.
    """

    certain_at: datetime
    over_at: float


@attrs.define(eq=False)
class CreateAttempt:
    """One create.

    Attributes:
        record: as it stands in the ledger, or is to.
        creating: the create, once it was sent.
        uncertainty: where it was refused, or its answer was lost, until when something of it may still turn up.
        looked_for: it was looked for as long as was worth it.
        refused: the service has said that it did not act.
        shown: the service has shown its container, so that it knows of it, wherever it is asked.
        reserved: its GPUs count as taken.
        may_be_off_record: its record was struck out, or may have been.
        twins: what the service has made of it beside its container.
        deleted: what of it is surely gone.
        left_alone: ids of its containers that turned out to be another container's by now.
    """

    record: RentalRecord
    creating: asyncio.Task[Container] | None = None
    uncertainty: UncertaintyWindow | None = None
    looked_for: bool = False
    refused: bool = False
    shown: bool = False
    reserved: bool = True
    may_be_off_record: bool = False
    twins: list[int] = attrs.field(factory=list[int])
    deleted: set[int] = attrs.field(factory=set[int])
    left_alone: set[int] = attrs.field(factory=set[int])

    @property
    def container_id(self) -> int | None:
        """The container's id, where it is known."""
        return self.record.container_id

    @property
    def undeleted_twins(self) -> list[int]:
        """What else of it is not surely gone."""
        return [twin for twin in self.twins if twin not in self.deleted]

    @property
    def verified_deletions(self) -> set[int]:
        """The ids of the containers that were deleted, without those that turned out to be another's."""
        return self.deleted - self.left_alone

    @property
    def replaced(self) -> bool:
        """The id of its container turned out to be another's, so that only its name can find it."""
        return self.container_id in self.left_alone

    @property
    def lost(self) -> bool:
        """What came of it is not known, or not surely."""
        return self.uncertainty is not None and not self.refused and self.container_id is None

    def found(self, container: Container, clocks: ClockReading) -> None:
        """Record which container it has made.

        Args:
            clocks: as they are now: from then on nothing more of it will turn up, unless that is in doubt.
        """
        self.record = attrs.evolve(
            self.record,
            stage="created",
            container_id=container.id,
            shown_name=container.name,
            certain_at=self.record.certain_at if self.uncertainty is not None else self.record.present(clocks),
        )
