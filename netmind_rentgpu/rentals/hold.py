"""What one rental has, or may have, on the service: creates, one at a time, each on record before it is sent.

A create whose answer was lost is settled before another follows. One that was refused is taken for that, and looked for all
the same before its record is struck out: what answers may not be what acts. Letting go deletes all there is; what cannot be
deleted, or may still turn up, stays on record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TypeAlias

import attrs

from netmind_rentgpu.errors import (
    ClientStateError,
    LedgerError,
    MachineRefusal,
    NoMachineError,
    ReleaseError,
    RentGPUError,
)
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.desk import Desk, now
from netmind_rentgpu.rentals.ends import delete_surely, noted
from netmind_rentgpu.rentals.market import matching
from netmind_rentgpu.rentals.names import new_name
from netmind_rentgpu.rentals.needs import Offer, next_offer
from netmind_rentgpu.rentals.outcomes import CreateOutcome, outcome_of
from netmind_rentgpu.rentals.owners import this_process
from netmind_rentgpu.rentals.records import RentalRecord, Verdict, after_looking
from netmind_rentgpu.rentals.tries import Order, Taken, Try
from netmind_rentgpu.shielding import insist, surely

__all__ = ["Begin", "Hold"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_MOST_TRIES, _MOST_DOUBTS = 50, 2
_LONGEST_ANSWER = 30.0
_LOOKING_GOES_ON = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0


class Hold:
    """All tries of one rental that are not known to have come to nothing.

    Attributes:
        borrowed: the name of what was detached, and is to be given back if it cannot be entered.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._tries: list[Try] = []
        self._hurried = asyncio.Event()
        self.borrowed: str | None = None

    def hurry(self) -> None:
        """Do not wait any more for what may turn up or recover: it stays on record."""
        self._hurried.set()

    @property
    def certain_at(self) -> datetime | None:
        """When it will be certain that none of the tries that were not found turns up; None where there are none."""
        return max((one.certain_at for one in self._tries if one.certain_at is not None), default=None)

    async def take(self, offers: Sequence[Offer], order: Order) -> tuple[RentalRecord, Container, Offer]:
        """Rent the first offer that can be had.

        Raises:
            NoMachineError: none can.
            LedgerError: the intent could not be put on record, and so nothing was rented.
            RentGPUError: a create was refused for a reason that no other machine would cure, or what came of one cannot be
                told.
        """
        market = self._desk.market
        refusals: dict[str, MachineRefusal] = {}
        while len(refusals) < _MOST_TRIES:
            offer = next_offer(offers, tried=refusals, aside=market.aside(), claimed=market.claimed)
            if offer is None:
                break
            taken = await self._try(offer, order)
            if isinstance(taken, tuple):
                return (*taken, offer)
            refusals[offer.machine.node_name] = MachineRefusal(machine=offer.machine, error=taken)
            if sum(one.certain_at is not None and not one.refused for one in self._tries) >= _MOST_DOUBTS:
                raise taken
        raise self._none(offers, refusals)

    def borrow(self, name: str) -> None:
        """Be about to take over what was detached, to be given back if that fails."""
        self.borrowed = name
        self._desk.hold(name)

    async def give_back(self) -> None:
        """Let what was borrowed be detached again. To be run in a task of its own."""
        name = self.borrowed
        if name is None:
            return
        try:
            with suppress(asyncio.CancelledError):  # which comes when it is written
                await self._desk.ledger.give_back(name, this_process())
        except LedgerError as error:
            # As long as this process lives it is taken for held, and so not reaped.
            logger.error("%s could not be detached again, and is reaped once this process has ended: %s", name, error)  # noqa: TRY400
            self._tries.clear()
        else:
            self.disown(name)

    def adopt(self, record: RentalRecord) -> None:
        """Take over what was detached."""
        self._add(Try(record, container_id=record.container_id))

    def disown(self, name: str) -> None:
        """Take in that a try is not ours any more."""
        if name == self.borrowed:
            self.borrowed = None
        self._desk.let_go(name)
        for one in [one for one in self._tries if one.record.name == name]:
            self._forget(one)

    async def look_again(self) -> None:
        """Delete what has turned up late, and strike out what will not turn up any more."""
        for one in [one for one in self._tries if one.certain_at is not None]:
            with suppress(RentGPUError):
                await self._look_once(one)

    async def let_go(self) -> ReleaseError | None:
        """Delete everything; return an error for what could not be. To be run in a task of its own."""
        ending = [asyncio.get_running_loop().create_task(self._end(one)) for one in tuple(self._tries)]
        for task in ending:
            with suppress(asyncio.CancelledError):
                await surely(task)
        # Cancelled more often than it can bear, one has left its record as it was.
        problems = [None if task.cancelled() else task.result() for task in ending]
        return next((problem for problem in problems if problem is not None), None)

    # One try.

    async def _try(self, offer: Offer, order: Order) -> tuple[RentalRecord, Container] | RentGPUError:
        """Create a container; return it, or why it could not be had."""
        desk, node_name = self._desk, offer.machine.node_name
        one = self._add(Try(self._intent(offer, order)))
        name = one.record.name
        try:
            await desk.ledger.begin(one.record)
        except LedgerError:
            self._forget(one)
            raise
        one.creating = asyncio.get_running_loop().create_task(
            desk.containers.create(
                name=name,
                auth_id=order.auth_id,
                node_name=node_name,
                image_template_id=order.image_id,
                payment_type=order.payment_type,
                gpu=offer.gpus,
            )
        )
        try:
            container = await asyncio.shield(one.creating)
        except RentGPUError as error:
            outcome = outcome_of(error, node_name)
            if outcome is CreateOutcome.UNCLEAR:
                found = await self._settle(one)
                if found is None:
                    raise
                if not found:
                    return error
                container = await self._one_of(one, found)
            else:
                await self._take_refusal(one, outcome)
                if outcome is not CreateOutcome.MACHINE:
                    desk.supplies.forget()
                    raise
                desk.market.set_aside(node_name, offer.gpus, error)
                return error
        one.container_id = container.id
        one.record = attrs.evolve(one.record, stage="created", container_id=container.id, shown_name=container.name)
        await noted(desk.ledger.created(name, container.id, container.name))
        return one.record, container

    async def _one_of(self, one: Try, found: Sequence[Container]) -> Container:
        """Delete what a create has made beside the first; until that is done the record goes by the name.

        Raises:
            RentGPUError: something could not be deleted.
        """
        for twin in found[1:]:
            deleting = asyncio.get_running_loop().create_task(self._delete(twin.id))
            await surely(deleting)
            error = deleting.result()
            if error is not None:
                raise error
        one.twins = []
        return found[0]

    def _intent(self, offer: Offer, order: Order) -> RentalRecord:
        began = now()
        allowance = order.allowance(offer)
        expires_at = None if allowance is None else began + allowance
        return RentalRecord(
            name=new_name(expires_at),
            stage="intended",
            node_name=offer.machine.node_name,
            gpus=offer.gpus,
            hourly_price=offer.hourly_price,
            intended_at=began,
            expires_at=expires_at,
            certain_at=began + self._desk.longest_create,
            owner=this_process(),
        )

    def _none(self, offers: Sequence[Offer], refusals: dict[str, MachineRefusal]) -> NoMachineError:
        for offer in offers:
            node_name = offer.machine.node_name
            earlier = self._desk.market.refusal_of(node_name)
            if earlier is not None and node_name not in refusals:
                refusals[node_name] = MachineRefusal(machine=offer.machine, error=earlier)
        shown = "; ".join(f"{node}: {refusal.error}" for node, refusal in list(refusals.items())[:3])
        more = f"; and {len(refusals) - 3} more" if len(refusals) > 3 else ""
        return NoMachineError(
            f"none of {len(offers)} machines that would do could be had; {len(refusals)} have refused: {shown}{more}",
            refusals=tuple(refusals.values()),
        )

    # A create without a clear answer.

    async def _settle(self, one: Try) -> list[Container] | None:
        """Look for what a create may have made, until it would be listed; None where that cannot be told.

        Where nothing was found, it is noted until when something may still turn up.
        """
        # By a clock that nobody sets.
        time = asyncio.get_running_loop().time
        listed_at = time() + self._desk.profile.list_lag.total_seconds()
        one.certain_at = now() + self._desk.doubt
        await noted(self._desk.ledger.doubt(one.record.name, one.certain_at))
        pause = _FIRST_PAUSE
        while True:
            looked_at = time()
            try:
                found = await self._look_for(one.record)
            except ClientStateError:
                return None
            except RentGPUError:
                if looked_at > listed_at + _LOOKING_GOES_ON:
                    return None
            else:
                if found:
                    one.certain_at = None
                    one.twins = [twin.id for twin in found[1:]]
                    return found
                if looked_at >= listed_at:
                    one.settled = True
                    return []
            if self._hurried.is_set():
                return None
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._hurried.wait()
            pause = min(_LONGEST_PAUSE, pause * 1.5)

    async def _take_refusal(self, one: Try, outcome: CreateOutcome) -> None:
        """Take in that the service did not act, and look for it later all the same, unless it cannot have."""
        if outcome is CreateOutcome.NOTHING:
            await self._strike(one)
            return
        self._unclaim(one)
        one.refused = True
        one.certain_at = now() + self._desk.doubt
        await noted(self._desk.ledger.doubt(one.record.name, one.certain_at))

    async def _look_for(self, record: RentalRecord) -> list[Container]:
        return matching(record, await self._desk.roll.call())

    async def _look_once(self, one: Try) -> bool:
        """Delete what a try has made after all; tell whether nothing will turn up any more.

        Raises:
            RentGPUError: that cannot be told now.
        """
        looked_at = now()
        found = await self._look_for(one.record)
        for container in found:
            error = await self._delete(container.id)
            if error is not None:
                raise error
        certain = attrs.evolve(one.record, certain_at=one.certain_at or one.record.certain_at)
        if not found and after_looking(certain, found=False, looked_at=looked_at) is Verdict.DOUBT:
            return False
        await self._strike(one)
        return True

    # The end of it.

    async def _end(self, one: Try) -> ReleaseError | None:
        """See that nothing is left of a try."""
        if one.creating is not None and one.container_id is None and not await self._learn(one):
            await self._leave_on_record(one)
            return None
        errors = [await self._delete(each) for each in (one.container_id, *one.twins) if each is not None]
        error = next((error for error in errors if error is not None), None)
        if error is not None:
            with suppress(asyncio.CancelledError):
                await self._leave_on_record(one)
            return _unreleased(one, error)
        await self._strike(one)
        return None

    async def _learn(self, one: Try) -> bool:
        """Find out what came of a create; tell whether that is known."""
        creating = one.creating
        if creating is None:
            return True
        if not creating.done():
            await insist(lambda: asyncio.wait({creating}, timeout=_LONGEST_ANSWER), cancelled=self.hurry)
            creating.cancel()
            with suppress(asyncio.CancelledError):
                await surely(creating)
        error = None if creating.cancelled() else creating.exception()
        if not creating.cancelled() and error is None:
            one.container_id = creating.result().id
            return True
        outcome = outcome_of(error, one.record.node_name) if isinstance(error, RentGPUError) else CreateOutcome.UNCLEAR
        if outcome is CreateOutcome.NOTHING:
            return True
        if outcome is not CreateOutcome.UNCLEAR and one.certain_at is None:
            with suppress(asyncio.CancelledError):
                await self._take_refusal(one, outcome)
        if one.settled or one.refused:
            with suppress(RentGPUError):
                return await insist(lambda: self._look_once(one), cancelled=self.hurry)
            return False
        found = await insist(lambda: self._settle(one), cancelled=self.hurry)
        if found:
            one.container_id = found[0].id
        return bool(found)

    async def _delete(self, container_id: int) -> RentGPUError | None:
        return await delete_surely(self._desk, container_id, self._hurried)

    async def _leave_on_record(self, one: Try) -> None:
        record = one.record
        try:
            await noted(self._desk.ledger.abandon(record.name, one.container_id, by_name=bool(one.twins)))
        finally:
            self._forget(one)
        if one.container_id is None and not one.refused:
            logger.warning(
                "%s may still come to exist on %s: what came of its create is not known; it is on record, for reap",
                record.name,
                record.node_name,
            )

    async def _strike(self, one: Try) -> None:
        # A cancellation comes when it is written.
        try:
            await noted(self._desk.ledger.close([one.record.name]))
        finally:
            self._forget(one)

    def _add(self, one: Try) -> Try:
        self._tries.append(one)
        self._desk.hold(one.record.name)
        self._desk.market.claimed[one.record.node_name] += one.record.gpus
        return one

    def _forget(self, one: Try) -> None:
        if one in self._tries:
            self._tries.remove(one)
            self._desk.let_go(one.record.name)
            self._unclaim(one)

    def _unclaim(self, one: Try) -> None:
        if one.claiming:
            one.claiming = False
            self._desk.market.claimed[one.record.node_name] -= one.record.gpus


def _unreleased(one: Try, error: RentGPUError) -> ReleaseError:
    record = one.record
    price = "an unknown price" if record.hourly_price is None else f"{record.hourly_price:f}"
    text = (
        f"rental {record.name} (container {one.container_id}) could not be deleted, and costs {price} an hour until it is;"
        f" it is on record, and rentals.reap() will delete it: {error}"
    )
    logger.error("%s", text)
    problem = ReleaseError(text, name=record.name, container_id=one.container_id, hourly_price=record.hourly_price)
    problem.__cause__ = error
    return problem


Begin: TypeAlias = Callable[[Hold], Awaitable[Taken]]
"""Rents what is wanted, into a hold."""
