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

from netmind_rentgpu.concurrency.cancellation import retry_when_cancelled, wait_shielded
from netmind_rentgpu.errors import (
    LedgerError,
    MachineRefusal,
    ReleaseError,
    RentGPUError,
)
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.desk import Desk, now
from netmind_rentgpu.rentals.doubts import Doubts
from netmind_rentgpu.rentals.ends import noted, noted_soon, unreleased
from netmind_rentgpu.rentals.market import Ranking
from netmind_rentgpu.rentals.names import new_name
from netmind_rentgpu.rentals.needs import Offer
from netmind_rentgpu.rentals.outcomes import CreateOutcome, outcome_of
from netmind_rentgpu.rentals.owners import this_process
from netmind_rentgpu.rentals.records import RentalRecord
from netmind_rentgpu.rentals.tries import Doubt, Order, Taken, Try

__all__ = ["Begin", "Hold"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_MOST_TRIES, _MOST_DOUBTS = 50, 2
_LONGEST_ANSWER = 30.0
_TWICE = "the service has made it twice, and the other was not deleted"


class Hold:
    """All tries of one rental that are not known to have come to nothing.

    Attributes:
        borrowed: the name of what was detached, and is to be given back if it cannot be entered.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._tries: list[Try] = []
        self._doubts = Doubts(desk)
        self._interrupted = False
        self.borrowed: str | None = None

    def interrupt(self) -> None:
        """Be told that somebody does not want to wait for it. At the second time what cannot be done now stays on record."""
        if self._interrupted:
            self._doubts.hurried.set()
        self._interrupted = True

    @property
    def certain_at(self) -> datetime | None:
        """When it will be certain that nothing turns up any more of what is in doubt; None where nothing is."""
        return max((one.doubt.certain_at for one in self._tries if one.doubt is not None), default=None)

    async def take(self, ranking: Ranking, order: Order) -> tuple[RentalRecord, Container, Offer]:
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
            offer = market.next_offer(ranking, refusals)
            if offer is None:
                break
            taken = await self._try(offer, order)
            if isinstance(taken, tuple):
                return (*taken, offer)
            refusals[offer.machine.node_name] = MachineRefusal(machine=offer.machine, error=taken)
            if sum(one.lost for one in self._tries) >= _MOST_DOUBTS:
                raise taken
        raise market.none(ranking.offers, refusals)

    def borrow(self, name: str) -> None:
        """Be about to take over what was detached, to be given back if that fails."""
        self.borrowed = name
        self._desk.hold(name)
        self._desk.borrowed.add(name)

    def hand_over(self) -> None:
        """Take in that it was entered: it is to be deleted from now on, and not to be given back."""
        if self.borrowed is not None:
            self._desk.borrowed.discard(self.borrowed)
            self.borrowed = None

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
        """Take over what was detached, which the service has shown before."""
        one = self._add(Try(record, shown=True))
        left = (record.certain_at - now()).total_seconds()
        if left > 0:
            one.doubt = Doubt(record.certain_at, asyncio.get_running_loop().time() + left)

    async def ready(self, name: str) -> None:
        """Take in that a rental is to be handed over."""
        for one in [one for one in self._tries if one.record.name == name]:
            one.shown = True
            one.record = attrs.evolve(one.record, stage="ready")
            await noted(self._desk.ledger.put(one.record))

    def disown(self, name: str) -> None:
        """Take in that a try is not ours any more."""
        if name == self.borrowed:
            self.borrowed = None
        self._desk.let_go(name)
        for one in [one for one in self._tries if one.record.name == name]:
            self._forget(one)

    async def detach(self, record: RentalRecord) -> None:
        """Give a try up to whoever attaches to it. To be run in a task of its own.

        Raises:
            LedgerError: that could not be put on record; it is still ours.
        """
        try:
            await self._desk.ledger.put(attrs.evolve(record, stage="detached", owner=None))
        except asyncio.CancelledError:  # which comes when it is written
            self.disown(record.name)
            raise
        self.disown(record.name)

    async def give_away(self, name: str) -> None:
        """Give a try up to whoever is to keep it, once nothing more of it turns up, and what has is deleted.

        Raises:
            RentGPUError: that cannot be told.
            LedgerError: its record could not be struck out.
        """
        for one in [one for one in self._tries if one.record.name == name]:
            if one.doubt is not None:
                await asyncio.sleep(one.doubt.over_at - asyncio.get_running_loop().time())
            looking = asyncio.get_running_loop().create_task(self._doubts.look_once(one))
            try:
                await wait_shielded(looking, cancelled=self.interrupt)
            finally:
                error = looking.exception()
            # The service may have made it twice, though nothing has failed; where it has, that has to be told.
            if error is not None and (one.doubt is not None or one.undeleted_twins):
                raise error
            one.doubt, one.may_be_off_record = None, True
            await self._desk.ledger.close([name])
        self.disown(name)

    async def look_again(self) -> None:
        """Delete what has turned up late, and strike out what will not turn up any more."""
        for one in [one for one in self._tries if one.doubt is not None]:
            with suppress(RentGPUError):
                if not await self._doubts.look_once(one):
                    continue
                if one.container_id is None:
                    await self._strike(one)
                else:
                    one.doubt = None

    async def let_go(self) -> ReleaseError | None:
        """Delete everything; return an error for what could not be. To be run in a task of its own."""
        problems: list[ReleaseError | None] = []
        # Twice, for a task that was cancelled before it had begun has borne nothing yet.
        for _ in range(2):
            ending = {asyncio.get_running_loop().create_task(self._end(one)): one for one in self._tries}
            for task in ending:
                with suppress(asyncio.CancelledError):
                    await wait_shielded(task)
            problems += [self._end_of(one, task) for task, one in ending.items() if not task.cancelled()]
        problems += [self._unended(one) for one in tuple(self._tries)]
        return next((problem for problem in problems if problem is not None), None)

    # One try.

    async def _try(self, offer: Offer, order: Order) -> tuple[RentalRecord, Container] | RentGPUError:
        """Create a container; return it, or why it could not be had."""
        desk, node_name = self._desk, offer.machine.node_name
        one = self._add(Try(self._intent(offer, order)))
        name = one.record.name
        try:
            await desk.ledger.put(one.record)
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
                found = await self._doubts.settle(one)
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
        one.found(container, now())
        # Nobody needs it yet: until it is written, what was created is found by the name of its intent.
        noted_soon(desk.ledger.put_soon(one.record))
        return one.record, container

    async def _one_of(self, one: Try, found: Sequence[Container]) -> Container:
        """Delete what a create has made beside the first; until that is done the record goes by the name.

        Raises:
            RentGPUError: something could not be deleted.
        """
        for twin in found[1:]:
            deleting = asyncio.get_running_loop().create_task(self._doubts.delete(one, twin.id))
            await wait_shielded(deleting)
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

    async def _take_refusal(self, one: Try, outcome: CreateOutcome) -> None:
        """Take in that the service did not act, and look for it later all the same, unless it cannot have."""
        if outcome is CreateOutcome.NOTHING:
            await self._strike(one)
            return
        self._unclaim(one)
        one.refused = True
        await self._doubts.begin(one)

    # The end of it.

    async def _end(self, one: Try) -> ReleaseError | None:
        """See that nothing is left of a try."""
        if one.may_be_off_record:
            with suppress(asyncio.CancelledError):  # which comes when it is written
                await noted(self._desk.ledger.put(one.record))
        certain = one.container_id is not None or await self._learn(one)
        errors = [await self._doubts.delete(one, each) for each in (one.container_id, *one.twins) if each is not None]
        error = next((error for error in errors if error is not None), None)
        if error is not None:
            with suppress(asyncio.CancelledError):
                await self._leave_on_record(one)
            return unreleased(one.record, error)
        if one.container_id is not None:
            # The service may have made it twice, or do so yet.
            looked = await self._looked_for(one)
            certain = looked or one.doubt is None
        with suppress(asyncio.CancelledError):  # which comes when it is written
            await (self._strike(one) if certain and not one.undeleted_twins else self._leave_on_record(one))
        if one.undeleted_twins:
            return unreleased(one.record, RentGPUError(_TWICE))
        return None

    def _end_of(self, one: Try, ended: asyncio.Task[ReleaseError | None]) -> ReleaseError | None:
        """Return what could not be deleted of a try; that its end has failed must not keep it here for ever."""
        error = ended.exception()
        if error is None:
            return ended.result()
        self._forget(one)
        return unreleased(one.record, error)

    async def _learn(self, one: Try) -> bool:
        """Find out what came of a create; tell whether that is known."""
        creating = one.creating
        if creating is None:
            return True
        if not creating.done():
            await retry_when_cancelled(lambda: self._doubts.unless_hurried(creating, longest=_LONGEST_ANSWER))
            creating.cancel()
            with suppress(asyncio.CancelledError):
                await wait_shielded(creating)
        error = None if creating.cancelled() else creating.exception()
        if not creating.cancelled() and error is None:
            one.found(creating.result(), now())
            return True
        outcome = outcome_of(error, one.record.node_name) if isinstance(error, RentGPUError) else CreateOutcome.UNCLEAR
        if outcome is CreateOutcome.NOTHING:
            return True
        if outcome is not CreateOutcome.UNCLEAR and one.doubt is None:
            with suppress(asyncio.CancelledError):
                await self._take_refusal(one, outcome)
        if one.looked_for or one.refused:
            return await self._looked_for(one)
        found = await retry_when_cancelled(lambda: self._doubts.settle(one))
        if found:
            one.found(found[0], now())
        return bool(found)

    async def _looked_for(self, one: Try) -> bool:
        with suppress(RentGPUError):
            return await retry_when_cancelled(lambda: self._doubts.look_once(one))
        return False

    async def _leave_on_record(self, one: Try) -> None:
        # Where there may be more than one, whatever has its name is to be deleted.
        known = None if one.twins or one.doubt is not None else one.container_id
        record = attrs.evolve(one.record, stage="abandoned", owner=None, container_id=known)
        try:
            await noted(self._desk.ledger.put(record))
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
        self._desk.market.claim(one.record.node_name, one.record.gpus)
        return one

    def _forget(self, one: Try) -> None:
        if one in self._tries:
            self._tries.remove(one)
            self._desk.let_go(one.record.name)
            self._unclaim(one)

    def _unended(self, one: Try) -> ReleaseError:
        """Give up a try whose end was cancelled more often than it can bear: its record is as it was."""
        self._forget(one)
        return unreleased(one.record, RentGPUError("that was cancelled too often"))

    def _unclaim(self, one: Try) -> None:
        if one.claiming:
            one.claiming = False
            self._desk.market.give_back(one.record.node_name, one.record.gpus)


Begin: TypeAlias = Callable[[Hold], Awaitable[Taken]]
"""Rents what is wanted, into a hold."""
