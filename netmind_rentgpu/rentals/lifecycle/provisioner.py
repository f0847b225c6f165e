"""What one rental has, or may have, on the service: creates, one at a time, each on record before it is sent.

A create whose answer was lost is settled before another follows. One that was refused is taken for that, and looked for all
the same before its record is struck out: what answers may not be what acts. Letting go deletes all there is; what cannot be
deleted, or may still turn up, stays on record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime

import attrs

from netmind_rentgpu.concurrency.cancellation import retry_when_cancelled, wait_shielded
from netmind_rentgpu.errors import (
    MachineRefusal,
    ReleaseError,
    RentGPUError,
    StateFileError,
)
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.clocks import read_clocks
from netmind_rentgpu.rentals.ledger.process_identity import this_process
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.lifecycle.attempt import CreateAttempt, ProvisionSpec, UncertaintyWindow
from netmind_rentgpu.rentals.lifecycle.create_errors import CreateOutcome, outcome_of
from netmind_rentgpu.rentals.lifecycle.deletion import unreleased, write_behind, write_best_effort
from netmind_rentgpu.rentals.lifecycle.search import AttemptSearch
from netmind_rentgpu.rentals.selection.catalog import OfferQueue
from netmind_rentgpu.rentals.selection.offers import Offer

__all__ = ["Provisioner"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_MOST_ATTEMPTS, _MOST_UNCLEAR = 50, 2
_LONGEST_ANSWER = 30.0
_TWICE = "the service has made it twice, and the other was not deleted"


class Provisioner:
    """All tries of one rental that are not known to have come to nothing.

    Attributes:
        attaching: the name of a detached rental that stays detached if it cannot be entered.
    """

    def __init__(self, context: RentalContext) -> None:
        self._context = context
        self._attempts: list[CreateAttempt] = []
        self._search = AttemptSearch(context)
        self._interrupted = False
        self.attaching: str | None = None

    def interrupt(self) -> None:
        """Be told that somebody does not want to wait for it. At the second time what cannot be done now stays on record."""
        if self._interrupted:
            self._search.give_up.set()
        self._interrupted = True

    @property
    def certain_at(self) -> datetime | None:
        """When it will be certain that nothing turns up any more of what is in doubt; None where nothing is."""
        return max(
            (attempt.uncertainty.certain_at for attempt in self._attempts if attempt.uncertainty is not None),
            default=None,
        )

    async def provision(
        self,
        queue: OfferQueue,
        spec: ProvisionSpec,
        *,
        failed: Mapping[str, MachineRefusal],
        failed_lately: Collection[str],
    ) -> tuple[RentalRecord, Container, Offer]:
        """Rent the first offer that can be had.

        Args:
            failed: the machines that did not start for this rental, which are not tried again, by node.
            failed_lately: the nodes that are tried last.

        Raises:
            NoMachineError: none can.
            StateFileError: the intent could not be put on record, and so nothing was rented.
            RentGPUError: a create was refused for a reason that no other machine would cure, or what came of one cannot be
                told.
        """
        catalog = self._context.catalog
        refusals = dict(failed)
        while len(refusals) < _MOST_ATTEMPTS:
            offer = catalog.next_offer(queue, refusals, failed_lately)
            if offer is None:
                break
            result = await self._attempt(offer, spec)
            if isinstance(result, tuple):
                return (*result, offer)
            refusals[offer.machine.node_name] = MachineRefusal(machine=offer.machine, error=result)
            if sum(attempt.lost for attempt in self._attempts) >= _MOST_UNCLEAR:
                raise result
        raise catalog.no_machine_error(queue.offers, refusals)

    def begin_attach(self, name: str) -> None:
        """Be about to take over what was detached, to be given back if that fails."""
        self.attaching = name
        self._context.track(name)
        self._context.attaching.add(name)

    def confirm_attach(self) -> None:
        """Take in that it was entered: it is to be deleted from now on, and not to be given back."""
        if self.attaching is not None:
            self._context.attaching.discard(self.attaching)
            self.attaching = None

    async def return_detached(self) -> None:
        """Record that the rental being attached stays detached. To be run in a task of its own."""
        name = self.attaching
        if name is None:
            return
        try:
            with suppress(asyncio.CancelledError):  # which comes when it is written
                await self._context.ledger.return_detached(name, this_process())
        except StateFileError as error:
            # As long as this process lives it is taken for held, and so not reaped.
            logger.error("%s could not be detached again, and is reaped once this process has ended: %s", name, error)  # noqa: TRY400
            self._attempts.clear()
        else:
            self.disown(name)

    def adopt(self, record: RentalRecord) -> None:
        """Take over what was detached, which the service has shown before."""
        attempt = self._add(CreateAttempt(record, shown=True))
        left = (record.certain_at - record.present(read_clocks())).total_seconds()
        if left > 0:
            attempt.uncertainty = UncertaintyWindow(record.certain_at, asyncio.get_running_loop().time() + left)

    async def ready(self, name: str) -> None:
        """Take in that a rental is to be handed over."""
        for attempt in [attempt for attempt in self._attempts if attempt.record.name == name]:
            attempt.shown = True
            attempt.record = attrs.evolve(attempt.record, stage="ready")
            await write_best_effort(self._context.ledger.put(attempt.record))

    def disown(self, name: str) -> None:
        """Take in that a try is not ours any more."""
        if name == self.attaching:
            self.attaching = None
        self._context.untrack(name)
        for attempt in [attempt for attempt in self._attempts if attempt.record.name == name]:
            self._forget(attempt)

    async def detach(self, record: RentalRecord) -> None:
        """Give a try up to whoever attaches to it. To be run in a task of its own.

        Raises:
            StateFileError: that could not be put on record; it is still ours.
        """
        try:
            await self._context.ledger.put(attrs.evolve(record, stage="detached", owner=None))
        except asyncio.CancelledError:  # which comes when it is written
            self.disown(record.name)
            raise
        self.disown(record.name)

    async def transfer_to_user(self, name: str) -> None:
        """Give a try up to whoever is to keep it, once nothing more of it turns up, and what has is deleted.

        Raises:
            RentGPUError: that cannot be told.
            StateFileError: its record could not be struck out.
        """
        for attempt in [attempt for attempt in self._attempts if attempt.record.name == name]:
            if attempt.uncertainty is not None:
                await asyncio.sleep(attempt.uncertainty.over_at - asyncio.get_running_loop().time())
            looking = asyncio.get_running_loop().create_task(self._search.look_once(attempt))
            try:
                await wait_shielded(looking, cancelled=self.interrupt)
            finally:
                error = looking.exception()
            # The service may have made it twice, though nothing has failed; where it has, that has to be told.
            if error is not None and (attempt.uncertainty is not None or attempt.undeleted_twins):
                raise error
            attempt.uncertainty, attempt.may_be_off_record = None, True
            await self._context.ledger.delete([name])
        self.disown(name)

    async def look_again(self) -> None:
        """Delete what has turned up late, and strike out what will not turn up any more."""
        for attempt in [attempt for attempt in self._attempts if attempt.uncertainty is not None]:
            with suppress(RentGPUError):
                if not await self._search.look_once(attempt):
                    continue
                if attempt.container_id is None:
                    await self._close_record(attempt)
                else:
                    attempt.uncertainty = None

    async def release_all(self) -> ReleaseError | None:
        """Delete everything; return an error for what could not be. To be run in a task of its own."""
        return await self._release(lambda _: True)

    async def release(self, name: str) -> ReleaseError | None:
        """Delete one try; return an error if that fails. To be run in a task of its own."""
        return await self._release(lambda attempt: attempt.record.name == name)

    async def _release(self, is_wanted: Callable[[CreateAttempt], bool]) -> ReleaseError | None:
        problems: list[ReleaseError | None] = []
        # Twice, for a task that was cancelled before it had begun has borne nothing yet.
        for _ in range(2):
            ending = {
                asyncio.get_running_loop().create_task(self._clean_up(attempt)): attempt
                for attempt in filter(is_wanted, self._attempts)
            }
            for task in ending:
                with suppress(asyncio.CancelledError):
                    await wait_shielded(task)
            problems += [self._end_of(attempt, task) for task, attempt in ending.items() if not task.cancelled()]
        problems += [self._unended(attempt) for attempt in tuple(filter(is_wanted, self._attempts))]
        return next((problem for problem in problems if problem is not None), None)

    # One try.

    async def _attempt(self, offer: Offer, spec: ProvisionSpec) -> tuple[RentalRecord, Container] | RentGPUError:
        """Create a container; return it, or why it could not be had."""
        context, node_name = self._context, offer.machine.node_name
        intent = spec.intent(offer, clocks=read_clocks(), longest_create=context.longest_create)
        attempt = self._add(CreateAttempt(intent))
        try:
            await context.ledger.put(attempt.record)
        except StateFileError:
            self._forget(attempt)
            raise
        attempt.creating = asyncio.get_running_loop().create_task(spec.create(context.containers, attempt.record))
        try:
            container = await asyncio.shield(attempt.creating)
        except RentGPUError as error:
            outcome = outcome_of(error, node_name)
            if outcome is CreateOutcome.UNCLEAR:
                found = await self._search.settle(attempt)
                if found is None:
                    raise
                if not found:
                    return error
                container = await self._one_of(attempt, found)
            else:
                await self._take_refusal(attempt, outcome)
                if outcome is not CreateOutcome.MACHINE_UNAVAILABLE:
                    context.images.forget()
                    context.password.forget()
                    raise
                context.catalog.exclude(node_name, offer.gpus, error)
                return error
        attempt.found(container, read_clocks())
        # Nobody needs it yet: until it is written, what was created is found by the name of its intent.
        write_behind(context.ledger.put_soon(attempt.record))
        write_behind(context.ledger.forget_host_key_soon(container.id))
        return attempt.record, container

    async def _one_of(self, attempt: CreateAttempt, found: Sequence[Container]) -> Container:
        """Delete what a create has made beside the first; until that is done the record goes by the name.

        Raises:
            RentGPUError: something could not be deleted.
        """
        for twin in found[1:]:
            deleting = asyncio.get_running_loop().create_task(self._search.delete(attempt, twin.id))
            await wait_shielded(deleting)
            error = deleting.result()
            if error is not None:
                raise error
        attempt.twins = []
        return found[0]

    async def _take_refusal(self, attempt: CreateAttempt, outcome: CreateOutcome) -> None:
        """Take in that the service did not act, and look for it later all the same, unless it cannot have."""
        if outcome is CreateOutcome.NOT_PROCESSED:
            await self._close_record(attempt)
            return
        self._release_machine(attempt)
        attempt.refused = True
        await self._search.begin(attempt)

    # The end of it.

    async def _clean_up(self, attempt: CreateAttempt) -> ReleaseError | None:
        """See that nothing is left of a try."""
        if attempt.may_be_off_record:
            with suppress(asyncio.CancelledError):  # which comes when it is written
                await write_best_effort(self._context.ledger.put(attempt.record))
        certain = attempt.container_id is not None or await self._resolve_create(attempt)
        errors = [
            await self._search.delete(attempt, each)
            for each in (attempt.container_id, *attempt.twins)
            if each is not None
        ]
        error = next((error for error in errors if error is not None), None)
        if error is not None:
            with suppress(asyncio.CancelledError):
                await self._leave_on_record(attempt)
            return unreleased(attempt.record, error)
        if attempt.container_id is not None:
            # The service may have made it twice, or do so yet.
            looked = await self._looked_for(attempt)
            certain = looked or (attempt.uncertainty is None and not attempt.replaced)
        with suppress(asyncio.CancelledError):  # which comes when it is written
            await (
                self._close_record(attempt)
                if certain and not attempt.undeleted_twins
                else self._leave_on_record(attempt)
            )
        if attempt.undeleted_twins:
            return unreleased(attempt.record, RentGPUError(_TWICE))
        return None

    def _end_of(self, attempt: CreateAttempt, ended: asyncio.Task[ReleaseError | None]) -> ReleaseError | None:
        """Return what could not be deleted of a try; that its end has failed must not keep it here for ever."""
        error = ended.exception()
        if error is None:
            return ended.result()
        self._forget(attempt)
        return unreleased(attempt.record, error)

    async def _resolve_create(self, attempt: CreateAttempt) -> bool:
        """Find out what came of a create; tell whether that is known."""
        creating = attempt.creating
        if creating is None:
            return True
        if not creating.done():
            await retry_when_cancelled(lambda: self._search.unless_given_up(creating, longest=_LONGEST_ANSWER))
            creating.cancel()
            with suppress(asyncio.CancelledError):
                await wait_shielded(creating)
        error = None if creating.cancelled() else creating.exception()
        if not creating.cancelled() and error is None:
            attempt.found(creating.result(), read_clocks())
            return True
        outcome = (
            outcome_of(error, attempt.record.node_name) if isinstance(error, RentGPUError) else CreateOutcome.UNCLEAR
        )
        if outcome is CreateOutcome.NOT_PROCESSED:
            return True
        if outcome is not CreateOutcome.UNCLEAR and attempt.uncertainty is None:
            with suppress(asyncio.CancelledError):
                await self._take_refusal(attempt, outcome)
        if attempt.looked_for or attempt.refused:
            return await self._looked_for(attempt)
        found = await retry_when_cancelled(lambda: self._search.settle(attempt))
        if found:
            attempt.found(found[0], read_clocks())
        return bool(found)

    async def _looked_for(self, attempt: CreateAttempt) -> bool:
        with suppress(RentGPUError):
            return await retry_when_cancelled(lambda: self._search.look_once(attempt))
        return False

    async def _leave_on_record(self, attempt: CreateAttempt) -> None:
        # Where there may be more than one, whatever has its name is to be deleted.
        by_name = attempt.twins or attempt.uncertainty is not None or attempt.replaced
        known = None if by_name else attempt.container_id
        record = attrs.evolve(attempt.record, stage="abandoned", owner=None, container_id=known)
        try:
            await write_best_effort(self._context.ledger.put(record))
        finally:
            self._forget(attempt)
        if attempt.container_id is None and not attempt.refused:
            logger.warning(
                "%s may still come to exist on %s: what came of its create is not known; it is on record, for reap",
                record.name,
                record.node_name,
            )

    async def _close_record(self, attempt: CreateAttempt) -> None:
        # A cancellation comes when it is written.
        try:
            closing = self._context.ledger.delete([attempt.record.name], containers=attempt.verified_deletions)
            await write_best_effort(closing)
        finally:
            self._forget(attempt)

    def _add(self, attempt: CreateAttempt) -> CreateAttempt:
        self._attempts.append(attempt)
        self._context.track(attempt.record.name)
        self._context.catalog.reserve(attempt.record.node_name, attempt.record.gpus)
        return attempt

    def _forget(self, attempt: CreateAttempt) -> None:
        if attempt in self._attempts:
            self._attempts.remove(attempt)
            self._context.untrack(attempt.record.name)
            self._release_machine(attempt)

    def _unended(self, attempt: CreateAttempt) -> ReleaseError:
        """Give up a try whose end was cancelled more often than it can bear: its record is as it was."""
        self._forget(attempt)
        return unreleased(attempt.record, RentGPUError("that was cancelled too often"))

    def _release_machine(self, attempt: CreateAttempt) -> None:
        if attempt.reserved:
            attempt.reserved = False
            self._context.catalog.release(attempt.record.node_name, attempt.record.gpus)
