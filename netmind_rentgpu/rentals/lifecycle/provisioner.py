"""The attempts of one rental to create a container: one at a time, each on record before its create is sent.

The container of a create whose answer was lost is searched for before another create follows. A refused create counts as
refused; before its record is closed, one walk over the list verifies that, because a gateway may have refused what the
service acts on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import attrs

from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.errors import (
    ClientStateError,
    MachineRefusal,
    ReleaseError,
    RentalEndedError,
    RentGPUError,
    StateFileError,
)
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.process_identity import this_process
from netmind_rentgpu.rentals.ledger.records import EndCause, RentalRecord
from netmind_rentgpu.rentals.lifecycle.attempt import (
    CreateAttempt,
    Evidence,
    ProvisionSpec,
    Step,
    Walk,
    next_step,
)
from netmind_rentgpu.rentals.lifecycle.cleanup import Cleanup, TrackedAttempt
from netmind_rentgpu.rentals.lifecycle.create_errors import CreateOutcome
from netmind_rentgpu.rentals.lifecycle.creating import StaleIntentError, create_container
from netmind_rentgpu.rentals.lifecycle.deletion import (
    log_write_error,
    unreleased,
    write_behind,
    write_best_effort,
)
from netmind_rentgpu.rentals.lifecycle.events import RELEASE_REASONS, RentalEvents
from netmind_rentgpu.rentals.lifecycle.finding import enforced
from netmind_rentgpu.rentals.selection.catalog import OfferQueue
from netmind_rentgpu.rentals.selection.offers import Offer

__all__ = ["Provisioner"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_MOST_ATTEMPTS, _MOST_UNCLEAR, _MOST_STALE = 50, 2, 2
_SLOW = timedelta(seconds=1)


class Provisioner:
    """The create attempts of one rental that may have left a container.

    Attributes:
        attaching: the name of a detached rental that stays detached if it cannot be entered.
    """

    def __init__(self, context: RentalContext, events: RentalEvents) -> None:
        self._context = context
        self._events = events
        self._attempts: dict[str, TrackedAttempt] = {}
        self._cleanup = Cleanup(context)
        self._interrupted = False
        self.attaching: str | None = None

    def interrupt(self) -> None:
        """Count an interrupt. The first changes nothing; from the second on, each deletion ends after one last attempt.

        A container that this attempt does not delete stays on record.
        """
        if self._interrupted:
            self._cleanup.give_up.set()
        self._interrupted = True

    @property
    def certain_at(self) -> datetime | None:
        """The time from which on nothing of these attempts can turn up any longer; None if nothing can now."""
        windows = [tracked.attempt.window for tracked in self._attempts.values()]
        return max((window.certain_at for window in windows if window is not None), default=None)

    async def provision(
        self,
        queue: OfferQueue,
        spec: ProvisionSpec,
        *,
        failed: Mapping[str, MachineRefusal],
        failed_lately: Collection[str],
    ) -> tuple[RentalRecord, Container, Offer]:
        """Rent the first offer that is available.

        Args:
            failed: the machines that did not start for this rental, by node; they are not tried again.
            failed_lately: the nodes that are tried last.

        Raises:
            NoMachineError: none is.
            StateFileError: the intent could not be written, so nothing was rented.
            RentGPUError: a create was refused for a reason that no other machine would cure, or its result is unknown.
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
            if (
                sum(tracked.attempt.evidence is Evidence.UNCLEAR for tracked in self._attempts.values())
                >= _MOST_UNCLEAR
            ):
                raise result
        raise catalog.no_machine_error(queue.offers, refusals)

    def begin_attach(self, name: str) -> None:
        """Begin to attach to a detached rental, which `return_detached` undoes."""
        self.attaching = name
        self._context.track(name)
        self._context.attaching.add(name)

    def confirm_attach(self) -> None:
        """Record that the attached rental was entered: its end deletes it now, and does not detach it again."""
        if self.attaching is not None:
            self._context.attaching.discard(self.attaching)
            self.attaching = None

    async def return_detached(self) -> None:
        """Record that the rental being attached stays detached. To be run in a task of its own."""
        name = self.attaching
        if name is None:
            return
        try:
            with suppress(asyncio.CancelledError):  # raised once it is written
                await self._context.ledger.return_detached(name, this_process())
        except (StateFileError, ClientStateError) as error:
            # As long as this process lives it counts as the owner, so nothing reaps the rental.
            logger.error("%s could not be detached again, and is reaped once this process has ended: %s", name, error)  # noqa: TRY400
            self._attempts.clear()
        else:
            self.disown(name)

    def adopt(self, record: RentalRecord) -> None:
        """Track the attempt of a detached rental that this process owns now. The service has shown its container."""
        loop_time = asyncio.get_running_loop().time()
        attempt = CreateAttempt.from_record(record, clocks=self._context.clock(), loop_time=loop_time)
        self._track(TrackedAttempt(attempt=attempt, knows_container=True))

    def logged_in(self, record: RentalRecord) -> RentalRecord:
        """Record that the login to a rental has worked; return its record."""
        if (tracked := self._attempts.get(record.name)) is None:
            return record
        tracked.attempt = tracked.attempt.ready(self._context.clock())
        return tracked.attempt.record

    async def ready(self, record: RentalRecord) -> None:
        """Write that a rental can be handed over.

        Raises:
            RentalEndedError: another process has ended it meanwhile.
        """
        try:
            await self._context.ledger.update(record)
        except (StateFileError, ClientStateError) as error:
            log_write_error(error)

    async def claim_expired(self, name: str) -> RentalRecord | None:
        """Claim a rental whose time is up, so that no other process takes it or moves its deadline while it is deleted.

        Returns:
            The record as it is on file then, as `Ledger.claim_expired` returns it. None if the rental is to be deleted by
            the deadline that this process knows, because the file does not have it or cannot be used.
        """
        tracked = self._attempts.get(name)
        if tracked is None:
            return None
        ledger, known = self._context.ledger, tracked.attempt.record
        try:
            record = await ledger.claim_expired(known, self._context.clock())
        except (StateFileError, ClientStateError) as error:
            log_write_error(error)
            return await self._later_deadline(known)
        if record is not None and record.owner is None and record.stage == "abandoned":
            claimed = attrs.evolve(known.with_deadline_of(record), stage="abandoned", owner=None)
            tracked.attempt = attrs.evolve(tracked.attempt, record=claimed)
        elif record is not None and record.owner == known.owner:
            self.move_deadline(record)
        return record

    async def _later_deadline(self, known: RentalRecord) -> RentalRecord | None:
        """Return a record whose deadline on file is later, because a look-up may succeed where a write fails."""
        with suppress(StateFileError, ClientStateError):
            record = await self._context.ledger.find(known.name)
            if record is not None and record.owner == known.owner and not record.has_expired(self._context.clock()):
                self.move_deadline(record)
                return record
        return None

    async def check_not_ended(self, record: RentalRecord) -> None:
        """Check that no other process has ended a rental that did not start.

        Raises:
            RentalEndedError: one has, so that no other machine is to be tried.
        """
        current: RentalRecord | None = record
        with suppress(StateFileError, ClientStateError):
            current = await self._context.ledger.find(record.name)
        if current is None or current.owner != record.owner:
            text = f"rental {record.name} was ended by another process while it started"
            raise RentalEndedError(text, name=record.name, container_id=record.container_id)

    def move_deadline(self, record: RentalRecord) -> None:
        """Record the deadline that a rental has on file now."""
        if (tracked := self._attempts.get(record.name)) is not None:
            moved = tracked.attempt.record.with_deadline_of(record)
            tracked.attempt = attrs.evolve(tracked.attempt, record=moved)

    def disown(self, name: str) -> None:
        """Stop tracking an attempt that this process does not own any longer."""
        if name == self.attaching:
            self.attaching = None
        self._context.untrack(name)
        self._untrack(name)

    async def detach(self, record: RentalRecord, progress: Mapping[str, Any]) -> RentalRecord:
        """Detach a rental; return its record. To be run in a task of its own.

        Args:
            progress: what its guardian goes on with, by the fields of the record.

        Raises:
            StateFileError: that could not be written; the rental is not detached.
            RentalEndedError: another process has ended the rental meanwhile.
        """
        if (tracked := self._attempts.get(record.name)) is not None:
            record = tracked.attempt.record
        record = attrs.evolve(record, **progress)
        try:
            detached = await self._context.ledger.detach(record)
        except asyncio.CancelledError:  # raised once it is written
            self._disown_detached(record)
            raise
        self._disown_detached(detached)
        if record.release_job is not None or record.idle_timeout is not None:
            await self._context.look_at_detached()
        return enforced(detached)

    def _disown_detached(self, record: RentalRecord) -> None:
        self.disown(record.name)
        guardian = record.guardian
        logger.info(
            "%s: detached; container %s runs on until %s%s UTC; %s deletes it then",
            *(record.name, record.container_id),
            "" if record.release_job is None else f"job {record.release_job} is over, or ",
            f"{record.expires_at:%Y-%m-%d %H:%M:%S}",
            "rentals.reap()" if guardian is None else f"guardian {guardian.process_id}",
        )

    async def transfer_to_user(self, name: str) -> None:
        """Leave a container to the user, once nothing more of its attempt can turn up, and its twins are deleted.

        Raises:
            RentGPUError: that cannot be found out.
            StateFileError: its record could not be removed.
        """
        if (tracked := self._attempts.get(name)) is not None:
            time = asyncio.get_running_loop().time
            if tracked.attempt.window is not None:
                await asyncio.sleep(tracked.attempt.window.over_at - time())
            looking = asyncio.get_running_loop().create_task(self._walk(tracked))
            try:
                await wait_shielded(looking, cancelled=self.interrupt)
            finally:
                error = looking.result()
            # The service may have acted twice, though nothing has failed. The user has to know of a twin that is left.
            if error is not None and (tracked.attempt.window is not None or tracked.attempt.has_undeleted_twins):
                raise error
            tracked.attempt = tracked.attempt.certain()
            tracked.may_be_off_record = True
            await self._context.ledger.hand_over(tracked.attempt.record, self._context.clock())
        self.disown(name)

    async def look_again(self) -> None:
        """Delete what has turned up late, and close each record of which nothing can turn up any longer."""
        for tracked in [tracked for tracked in self._attempts.values() if tracked.attempt.window is not None]:
            if await self._walk(tracked) is not None or tracked.attempt.walk is not Walk.CONCLUSIVE:
                continue
            if tracked.attempt.container_id is not None:
                tracked.attempt = tracked.attempt.certain()
            elif next_step(tracked.attempt) is Step.CLOSE_RECORD:
                await self._close_record(tracked)

    async def release_all(self, cause: EndCause) -> ReleaseError | None:
        """Delete everything; return the error if that fails. To be run in a task of its own."""
        return await self._release_attempts(lambda _: True, cause)

    async def release(self, name: str, cause: EndCause) -> ReleaseError | None:
        """Delete one attempt's container; return the error if that fails. To be run in a task of its own."""
        return await self._release_attempts(lambda tracked: tracked.name == name, cause)

    async def _release_attempts(
        self, is_wanted: Callable[[TrackedAttempt], bool], cause: EndCause
    ) -> ReleaseError | None:
        problems: list[ReleaseError | None] = []
        # Twice, because a task that was cancelled before it began has done nothing yet.
        for _ in range(2):
            ending = {
                asyncio.get_running_loop().create_task(self._release_attempt(tracked, cause)): tracked
                for tracked in filter(is_wanted, self._attempts.values())
            }
            for task in ending:
                with suppress(asyncio.CancelledError):
                    await wait_shielded(task)
            problems += [self._result_of(task, tracked) for task, tracked in ending.items() if not task.cancelled()]
        problems += [
            self._give_up(tracked, RentGPUError("its deletion was cancelled too often"))
            for tracked in tuple(filter(is_wanted, self._attempts.values()))
        ]
        return next((problem for problem in problems if problem is not None), None)

    # One attempt.

    async def _attempt(self, offer: Offer, spec: ProvisionSpec) -> tuple[RentalRecord, Container] | RentGPUError:
        """Create a container; return it, or the reason why another machine is to be tried."""
        for _ in range(_MOST_STALE):
            with suppress(StaleIntentError):
                return await self._attempt_once(offer, spec)
        return await self._attempt_once(offer, spec)

    async def _attempt_once(self, offer: Offer, spec: ProvisionSpec) -> tuple[RentalRecord, Container] | RentGPUError:
        context, node_name = self._context, offer.machine.node_name
        tracked = await self._record_intent(offer, spec)
        intent = tracked.attempt.record
        tracked.create = asyncio.get_running_loop().create_task(create_container(context, spec, intent))
        tracked.attempt = tracked.attempt.sent()
        try:
            container = await asyncio.shield(tracked.create)
        except RentGPUError as error:
            outcome = await self._cleanup.record_answer(tracked)
            if outcome is CreateOutcome.UNCLEAR:
                logger.info("%s: %s gave no clear answer: %s", intent.name, node_name, error)
                found = await self._cleanup.search(tracked)
                if found is None:
                    raise
                if not found:
                    self._events.emit("refused", intent, reason=f"no container was found after {error}")
                    return error
                container = found[0]
                await self._delete_twins(tracked)
            else:
                self._events.emit("refused", intent, reason=str(error))
                self._release_machine(tracked)
                if outcome is CreateOutcome.NOT_PROCESSED:
                    await self._close_record(tracked)
                if outcome is not CreateOutcome.MACHINE_UNAVAILABLE:
                    context.images.forget()
                    context.password.forget()
                    raise
                context.catalog.exclude(node_name, offer.gpus, error)
                return error
        else:
            await self._cleanup.record_answer(tracked)
        # Without waiting: until it is written, the name in the intent is enough to find the container.
        record = tracked.attempt.record
        self._events.emit("created", record)
        write_behind(context.ledger.update_soon(record))
        write_behind(context.ledger.forget_host_key_soon(container.id))
        return record, container

    async def _record_intent(self, offer: Offer, spec: ProvisionSpec) -> TrackedAttempt:
        """Record the intent of an attempt, and tell that it begins."""
        context = self._context
        intent_at = partial(spec.intent, offer, longest_create=context.longest_create, owner=this_process())
        announced = intent_at(clocks=context.clock())
        announced = attrs.evolve(announced, guardian=await context.guard(announced))
        if spec.shared_budget is not None:
            await context.ledger.check_budget(announced, context.clock())
        self._events.emit("asking", announced)
        # The user's function may take its time, which counts neither for the intent nor for the rental.
        await self._events.let_begin()
        clocks = context.clock()
        is_late = announced.present(clocks) - announced.intended_at > _SLOW
        intent = announced
        if is_late:
            intent = intent_at(clocks=clocks, announced=announced, guardian=announced.guardian)
        tracked = self._track(TrackedAttempt(attempt=CreateAttempt(record=intent), knows_container=True))
        try:
            await context.ledger.insert(intent, clocks)
        except RentGPUError:
            self._untrack(intent.name)
            raise
        return tracked

    async def _delete_twins(self, tracked: TrackedAttempt) -> None:
        """Delete the twins of a container; until that is done, the record names none of them.

        Raises:
            RentGPUError: a twin could not be deleted.
        """
        deleting = asyncio.get_running_loop().create_task(self._cleanup.delete(tracked, tracked.attempt.running_twins))
        await wait_shielded(deleting)
        deleting.result()
        if tracked.error is not None:
            raise tracked.error

    async def _walk(self, tracked: TrackedAttempt) -> RentGPUError | None:
        """Walk over the list, and delete the twins of a container; return the error if that fails."""
        tracked.attempt = tracked.attempt.cleanup_begun()
        await self._cleanup.walk(tracked)
        error = tracked.error
        if twins := tracked.attempt.running_twins:
            await self._cleanup.delete(tracked, twins)
            error = tracked.error or error
        return error

    # The end of an attempt.

    async def _release_attempt(self, tracked: TrackedAttempt, cause: EndCause) -> ReleaseError | None:
        tracked.attempt = tracked.attempt.cleanup_begun()
        if tracked.attempt.container_id is not None:
            self._events.emit("releasing", tracked.attempt.record, reason=RELEASE_REASONS[cause])
        if tracked.may_be_off_record:
            with suppress(asyncio.CancelledError):  # raised once it is written
                await write_best_effort(self._context.ledger.reopen(tracked.attempt.record))
        return await self._run_cleanup(tracked, cause)

    async def _run_cleanup(self, tracked: TrackedAttempt, cause: EndCause) -> ReleaseError | None:
        """End an attempt; return the error if a container of it could not be deleted."""
        result = await self._cleanup.run(tracked, cause)
        self._untrack(tracked.name)
        attempt = tracked.attempt
        if result.write_error is not None:
            log_write_error(result.write_error)
        if attempt.container_id in attempt.verified_deletions:
            self._events.emit("released", attempt.record)
        if attempt.has_undeleted:
            error = result.error or RentGPUError("its last deletion has failed")
            if attempt.container_id is not None and not attempt.is_own_undeleted:
                error = RentGPUError(
                    f"the service has made it twice, and its second container was not deleted: {error}"
                )
                error.__cause__ = result.error
            return unreleased(attempt.record, error)
        if result.step is Step.KEEP_ON_RECORD and attempt.evidence is Evidence.UNCLEAR:
            logger.warning(
                "%s may still come to exist on %s: the result of its create is unknown; it is on record, for reap",
                attempt.record.name,
                attempt.record.node_name,
            )
        return None

    async def _close_record(self, tracked: TrackedAttempt) -> None:
        """Close the record of an attempt that has left nothing. A cancellation is raised once that is done."""
        closing = asyncio.get_running_loop().create_task(self._run_cleanup(tracked, "failed"))
        await wait_shielded(closing)
        closing.result()

    def _result_of(self, ended: asyncio.Task[ReleaseError | None], tracked: TrackedAttempt) -> ReleaseError | None:
        """Return the result of a cleanup, and stop tracking an attempt whose cleanup failed by a fault of our own."""
        error = ended.exception()
        return ended.result() if error is None else self._give_up(tracked, error)

    def _give_up(self, tracked: TrackedAttempt, error: BaseException) -> ReleaseError:
        """Stop tracking an attempt whose record is as it was."""
        self._untrack(tracked.name)
        return unreleased(tracked.attempt.record, error)

    def _track(self, tracked: TrackedAttempt) -> TrackedAttempt:
        record = tracked.attempt.record
        self._attempts[record.name] = tracked
        self._context.track(record.name)
        self._context.catalog.reserve(record.node_name, record.gpus)
        tracked.has_reservation = True
        return tracked

    def _untrack(self, name: str) -> None:
        if (tracked := self._attempts.pop(name, None)) is not None:
            self._context.untrack(name)
            self._release_machine(tracked)

    def _release_machine(self, tracked: TrackedAttempt) -> None:
        if tracked.has_reservation:
            tracked.has_reservation = False
            self._context.catalog.release(tracked.attempt.record.node_name, tracked.attempt.record.gpus)
