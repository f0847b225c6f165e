"""The executor of an attempt's steps: the one way in which leaving, closing, exiting and reaping end an attempt.

`attempt.next_step` decides; a `Cleanup` does what it says, and records what the service shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import attrs

from netmind_rentgpu.concurrency.backoff import backoff
from netmind_rentgpu.concurrency.cancellation import retry_when_cancelled, wait_shielded
from netmind_rentgpu.errors import ClientStateError, RentalEndedError, RentGPUError, StateFileError
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.container_index import ListedContainers, matching, still_belongs_to
from netmind_rentgpu.rentals.ledger.records import EndCause
from netmind_rentgpu.rentals.lifecycle.attempt import (
    CreateAttempt,
    Evidence,
    Fate,
    Step,
    UncertaintyWindow,
    next_step,
)
from netmind_rentgpu.rentals.lifecycle.create_errors import CreateOutcome, outcome_of
from netmind_rentgpu.rentals.lifecycle.deletion import Deletion, Target, write_best_effort

__all__ = ["Cleanup", "CleanupResult", "TrackedAttempt"]


@attrs.define(eq=False, kw_only=True)
class TrackedAttempt:
    """An attempt as it is now, and the task of its create.

    Attributes:
        knows_container: True if this process has created the rental's own container, or has seen it in the list.
        create: None before the create is sent, and for an attempt that was read from a record.
        error: the error of the last step; None if it has succeeded.
        has_reservation: True if the catalog counts its GPUs as taken.
        may_be_off_record: True if its record was removed, or may have been.
    """

    attempt: CreateAttempt
    knows_container: bool
    create: asyncio.Task[Container] | None = None
    error: RentGPUError | None = None
    has_reservation: bool = False
    may_be_off_record: bool = False

    @property
    def name(self) -> str:
        """The name of the container and of the record."""
        return self.attempt.record.name


@attrs.frozen(kw_only=True)
class CleanupResult:
    """The result of one attempt's cleanup.

    Attributes:
        step: CLOSE_RECORD or KEEP_ON_RECORD.
        error: the reason why the record is kept; None if it is closed, or if something may still turn up.
        write_error: the error of the write that closes or keeps the record.
    """

    step: Step
    error: RentGPUError | None
    write_error: RentGPUError | None


class Cleanup:
    """Ends attempts, each by its steps.

    Attributes:
        give_up: set when no task waits any longer for a service that fails or hangs. Each step then has one attempt.
    """

    def __init__(
        self, context: RentalContext, *, repeats_deletions: bool = True, turns: asyncio.Semaphore | None = None
    ) -> None:
        """Initialize.

        Args:
            repeats_deletions: False if a deletion that fails is not attempted again.
            turns: limits the number of deletions at once. None of those that wait for their turn begins after `give_up`.
        """
        self._context = context
        self._turns = turns
        self.give_up: asyncio.Event = asyncio.Event()
        self._stop_deleting = self.give_up
        if not repeats_deletions:
            self._stop_deleting = asyncio.Event()
            self._stop_deleting.set()

    async def run(self, tracked: TrackedAttempt, cause: EndCause, *, writes: bool = True) -> CleanupResult:
        """Run one step after the other until the record is closed or kept.

        Args:
            cause: the cause of the rental's end, unless its record has one.
            writes: False if the record belongs to another living process, and stays as it is.
        """
        tracked.error = None
        while (step := next_step(tracked.attempt)) not in (Step.KEEP_ON_RECORD, Step.CLOSE_RECORD):
            match step:
                case Step.AWAIT_ANSWER:
                    await self._await_answer(tracked)
                case Step.SEARCH:
                    await retry_when_cancelled(partial(self.search, tracked))
                case Step.DELETE:
                    await self.delete(tracked, tracked.attempt.running)
                case _:
                    await retry_when_cancelled(partial(self.walk, tracked))
        return CleanupResult(
            step=step,
            error=tracked.error if step is Step.KEEP_ON_RECORD else None,
            write_error=await self._write(tracked.attempt, step, cause) if writes else None,
        )

    async def record_answer(self, tracked: TrackedAttempt) -> CreateOutcome | None:
        """Record the answer to a create; return its outcome, or None if the answer shows a container.

        The write is done when this is cancelled.
        """
        context, attempt, create = self._context, tracked.attempt, tracked.create
        error = None if create is None or create.cancelled() else create.exception()
        if create is not None and not create.cancelled() and error is None:
            tracked.attempt = attempt.created([create.result()], Evidence.CREATED, context.clock())
            return None
        outcome = CreateOutcome.UNCLEAR
        if isinstance(error, RentGPUError):
            outcome = outcome_of(error, attempt.record.node_name)
        if outcome is CreateOutcome.NOT_PROCESSED:
            tracked.attempt = attempt.not_processed()
            return outcome
        uncertainty = context.uncertainty
        window = UncertaintyWindow(
            attempt.record.present(context.clock()) + uncertainty,
            asyncio.get_running_loop().time() + uncertainty.total_seconds(),
        )
        evidence = Evidence.UNCLEAR if outcome is CreateOutcome.UNCLEAR else Evidence.REFUSED
        tracked.attempt = attempt.in_doubt(evidence, window)
        await write_best_effort(context.ledger.update(tracked.attempt.record))
        return outcome

    async def search(self, tracked: TrackedAttempt) -> Sequence[Container] | None:
        """Walk over the list until it shows containers of an attempt, or would; return None if that cannot be found out."""
        time = asyncio.get_running_loop().time
        listed_at = time() + self._context.profile.list_lag.total_seconds()
        pauses = backoff()
        while True:
            began = time()
            found = await self.walk(tracked)
            if found:
                tracked.knows_container = True
                tracked.attempt = tracked.attempt.created(found, Evidence.CONFIRMED, self._context.clock())
            longest = self._context.limits.failed_search if found is None else 0
            is_over = bool(found) or began >= listed_at + longest
            if is_over or self.give_up.is_set() or isinstance(tracked.error, ClientStateError):
                tracked.attempt = tracked.attempt.search_ended()
                return found if is_over else None
            with suppress(TimeoutError):
                async with asyncio.timeout(next(pauses)):
                    await self.give_up.wait()

    async def walk(self, tracked: TrackedAttempt) -> Sequence[Container] | None:
        """Walk over the list once, and record the containers of an attempt; return None if that has failed."""
        began = asyncio.get_running_loop().time()
        found: Sequence[Container] | None = None
        unreadable: Sequence[RentGPUError] = ()
        tracked.error = None
        try:
            listed = await self._list()
            if listed is not None:
                found = matching(tracked.attempt.record, listed)
                unreadable = listed.unreadable
        except RentGPUError as error:
            tracked.error = error
        if unreadable:
            tracked.error = unreadable[0]
        is_complete = found is not None and not unreadable
        ids = [container.id for container in found or ()]
        tracked.attempt = tracked.attempt.walked(ids, began=began, is_complete=is_complete)
        return found

    async def delete(self, tracked: TrackedAttempt, container_ids: Sequence[int]) -> None:
        """Delete containers of an attempt; the first error is the step's."""
        errors: list[RentGPUError] = []
        for container_id in container_ids:
            async with self._turns or nullcontext():
                if self._turns is not None and self.give_up.is_set():
                    error: RentGPUError | None = RentGPUError("its deletion was cancelled before it began")
                    tracked.attempt = tracked.attempt.ended(container_id, Fate.NOT_DELETED)
                else:
                    error = await self._delete(tracked, container_id)
            if error is not None:
                errors.append(error)
        tracked.error = errors[0] if errors else None

    async def _delete(self, tracked: TrackedAttempt, container_id: int) -> RentGPUError | None:
        attempt = tracked.attempt
        is_own = container_id == attempt.container_id
        target = Target(
            container_id=container_id,
            is_ours=partial(still_belongs_to, attempt.record),
            confirmed=tracked.knows_container or not is_own,
            unshown=None if attempt.evidence is Evidence.CONFIRMED else attempt.record,
        )
        deletion = Deletion(self._context, target, self._stop_deleting)
        error = await deletion.run()
        if error is not None:
            fate = Fate.NOT_DELETED
        elif deletion.was_replaced:
            fate = Fate.REPLACED
        else:
            fate = Fate.ALREADY_GONE if deletion.was_gone else Fate.DELETED
        tracked.attempt = tracked.attempt.ended(container_id, fate)
        return error

    async def _await_answer(self, tracked: TrackedAttempt) -> None:
        create = tracked.create
        if create is not None and not create.done():
            longest = self._context.limits.answer
            await retry_when_cancelled(lambda: self._wait_unless_given_up(create, longest=longest))
            create.cancel()
            with suppress(asyncio.CancelledError):
                await wait_shielded(create)
        with suppress(asyncio.CancelledError):  # raised once the answer is recorded
            await self.record_answer(tracked)

    async def _list(self) -> ListedContainers | None:
        """List all containers once; return None if that takes too long after `give_up`."""
        listing = asyncio.ensure_future(self._context.container_index.read())
        try:
            await self._wait_unless_given_up(listing)
            return listing.result() if listing.done() else None
        finally:
            listing.cancel()
            await asyncio.wait({listing})

    async def _wait_unless_given_up(self, future: asyncio.Future[Any], *, longest: float | None = None) -> None:
        """Wait for a future, but not for long after `give_up`.

        Args:
            longest: seconds, in any case.
        """
        given_up = asyncio.ensure_future(self.give_up.wait())
        try:
            await asyncio.wait({future, given_up}, timeout=longest, return_when=asyncio.FIRST_COMPLETED)
            if given_up.done():
                await asyncio.wait({future}, timeout=self._context.limits.given_up)
        finally:
            given_up.cancel()
            await asyncio.wait({given_up})

    async def _write(self, attempt: CreateAttempt, step: Step, cause: EndCause) -> RentGPUError | None:
        ledger, record, clocks = self._context.ledger, attempt.record, self._context.clock()
        try:
            with suppress(asyncio.CancelledError):  # raised once it is written
                if step is Step.CLOSE_RECORD:
                    past = attempt.past_rental(cause, clocks)
                    await ledger.close(record.name, past, containers=attempt.verified_deletions)
                elif (abandoned := attempt.abandoned_record(cause, clocks)) != record:
                    await ledger.abandon(abandoned, record.owner)
        except (StateFileError, ClientStateError, RentalEndedError) as error:
            return error
        return None
