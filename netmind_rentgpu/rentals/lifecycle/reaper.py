"""The reaper: deletes what no living process owns, by the ledger or by the containers' names alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from netmind_rentgpu.concurrency.backoff import backoff
from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.errors import NotFoundError, ReleaseError, RentGPUError, StateFileError
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.context import RentalContext, disown_closed_loops, is_held_here
from netmind_rentgpu.rentals.ledger.container_index import per_attempt_timeouts
from netmind_rentgpu.rentals.ledger.names import expiry_in
from netmind_rentgpu.rentals.ledger.past_rentals import PastRental
from netmind_rentgpu.rentals.ledger.process_identity import (
    Liveness,
    ProcessIdentity,
    liveness_of,
    look_up_process,
    this_process,
)
from netmind_rentgpu.rentals.ledger.records import EndCause, ReapReport, RentalRecord, is_to_be_reaped
from netmind_rentgpu.rentals.lifecycle.account_proof import check_token, join_proven_accounts
from netmind_rentgpu.rentals.lifecycle.attempt import CreateAttempt, Evidence, Fate, Step
from netmind_rentgpu.rentals.lifecycle.cleanup import Cleanup, CleanupResult, TrackedAttempt
from netmind_rentgpu.rentals.lifecycle.deletion import Deletion, Target, log_release, unreleased, write_best_effort
from netmind_rentgpu.rentals.lifecycle.finding import in_use_error
from netmind_rentgpu.rentals.lifecycle.idle_clock import between_readings
from netmind_rentgpu.rentals.lifecycle.idle_detached import end_idle_rentals
from netmind_rentgpu.rentals.lifecycle.release_jobs import finished_jobs

__all__ = ["close_record_of_deleted", "reap", "reap_by_name", "reap_guarded", "release"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_DELETIONS_AT_ONCE = 20
# Between two looks at a job.
_SHORTEST_PAUSE = timedelta(seconds=5)


class _Reaping:
    """One round of the reaper, and what it has done so far.

    Attributes:
        give_up: set when no task waits any longer for a service that fails: each step then has one attempt.
    """

    def __init__(self, context: RentalContext, *, patient: bool = True) -> None:
        self.context = context
        self.deleted: list[str] = []
        self.gone: list[str] = []
        self.doubtful: list[RentalRecord] = []
        self.failed: list[tuple[str, Exception]] = []
        self._turns = asyncio.Semaphore(_DELETIONS_AT_ONCE)
        self._cleanup = Cleanup(context, repeats_deletions=patient, turns=self._turns)
        self.give_up = self._cleanup.give_up

    def report(self, elsewhere: Iterable[RentalRecord] = (), *, state_file: Path | None = None) -> ReapReport:
        report = ReapReport(
            deleted=tuple(self.deleted),
            gone=tuple(self.gone),
            doubtful=tuple(self.doubtful),
            failed=tuple(self.failed),
            elsewhere=tuple(elsewhere),
            account=self.context.ledger.fingerprint,
            state_file=state_file,
        )
        if self.deleted:
            logger.info("reaped %s", ", ".join(self.deleted))
        return report

    async def shielded(self, reaping: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Run cleanups at once. If this is cancelled, each goes on to the end of the request that is under way."""
        loop = asyncio.get_running_loop()
        running = asyncio.gather(*map(loop.create_task, reaping), return_exceptions=True)
        await wait_shielded(running, cancelled=self.give_up.set)
        for error in running.result():
            if error is not None:
                raise error

    async def claim(
        self, record: RentalRecord, *, is_due: Callable[[RentalRecord], bool], is_of_the_dead: bool
    ) -> RentalRecord | None:
        """Claim a record for this process; return None if it cannot be claimed.

        A record may have changed since it was read: another process may have detached, attached, extended or reaped it. A
        rental of the dead is ended even if the state file cannot be written, as on a full disk: no process can attach to it.
        """
        try:
            return await self.context.ledger.claim_for_reap(record, is_due=is_due)
        except StateFileError as error:
            if is_of_the_dead or record.stage == "abandoned":
                return record
            self.failed.append((record.name, error))
            return None

    async def end_all(
        self,
        living: Iterable[RentalRecord],
        claimed: Iterable[RentalRecord | None],
        *,
        dead: Collection[str],
        wait: bool,
        finished: Collection[str] = (),
    ) -> None:
        """End many records at once, each as `end` does.

        Args:
            living: the records whose owners may be about to create the containers.
            claimed: the records that this process has claimed; None for each that it could not claim.
            dead: the names of the records whose makers are dead for certain.
            wait: as for `end`.
            finished: the ids of the jobs that are over, with whose end their rentals end.
        """
        await self.shielded(
            self.end(
                record,
                _cause_to_reap(self.context, record, finished),
                is_living=is_living,
                wait=wait,
                is_dead=record.name in dead,
            )
            for group, is_living in ((living, True), (claimed, False))
            for record in group
            if record is not None
        )

    async def end(
        self, record: RentalRecord, cause: EndCause, *, is_living: bool, wait: bool, is_dead: bool = False
    ) -> None:
        """Delete the containers of a record, and close the record once nothing of it can turn up any longer.

        Args:
            cause: the cause of the end, unless the record has one.
            is_living: True if the record's owner may be about to create its container; the record stays as it is.
            wait: True to walk over the list until it is certain that nothing turns up.
            is_dead: True if the process that has made the record is dead for certain.
        """
        # A record of an earlier version does not say how long its create may take.
        known = attrs.evolve(record, longest_create=record.longest_create or self.context.longest_create)
        clocks, loop_time = self.context.clock(), asyncio.get_running_loop().time()
        if is_dead:
            known = known.sent_before(clocks, uncertainty=self.context.uncertainty)
        attempt = CreateAttempt.from_record(known, clocks=clocks, loop_time=loop_time)
        if not is_living:
            attempt = attrs.evolve(attempt, record=attrs.evolve(known, stage="abandoned", owner=None))
        # The id of a rental of this process cannot belong to another container yet.
        tracked = TrackedAttempt(attempt=attempt, knows_container=record.owner == this_process())
        pauses = backoff()
        while True:
            tracked.attempt = tracked.attempt.cleanup_begun()
            result = await self._cleanup.run(tracked, cause, writes=not is_living)
            if result.step is Step.KEEP_ON_RECORD and not is_living:
                record_kept = tracked.attempt.abandoned_record(cause, self.context.clock())
                tracked.attempt = attrs.evolve(tracked.attempt, record=record_kept)
            may_turn_up = result.step is Step.KEEP_ON_RECORD and result.error is None
            if not (wait and may_turn_up) or self.give_up.is_set():
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(next(pauses)):
                    await self.give_up.wait()
        if is_living and Fate.DELETED in tracked.attempt.containers.values():
            # The record stays, and may be closed when nothing shows any longer that it had a container.
            past = tracked.attempt.past_rental(cause, self.context.clock())
            if past is not None:
                await write_best_effort(self.context.ledger.add_past(past))
        self._note(record, tracked, result, is_living=is_living)

    async def end_idle(self, record: RentalRecord) -> None:
        """End a rental whose machine is idle, unless its record is another by now, as after an attach."""
        ledger = self.context.ledger
        claimed = await ledger.claim_for_reap(record, is_due=lambda current: current == record, cause="idle")
        if claimed is not None:
            await self.shielded([self.end(claimed, "idle", is_living=False, wait=False)])

    def _note(self, record: RentalRecord, tracked: TrackedAttempt, result: CleanupResult, *, is_living: bool) -> None:
        """Record the result of a record's cleanup for the report."""
        name, fates = record.name, tracked.attempt.containers.values()
        self.deleted += [name for fate in fates if fate is Fate.DELETED]
        is_closed = result.step is Step.CLOSE_RECORD and not is_living
        if Fate.DELETED not in fates and (Fate.ALREADY_GONE in fates or is_closed):
            self.gone.append(name)
        for error in (result.error, result.write_error):
            if error is not None:
                self.failed.append((name, error))
        is_found = Fate.DELETED in fates or Fate.ALREADY_GONE in fates
        is_refused = tracked.attempt.evidence is Evidence.REFUSED
        may_turn_up = result.step is Step.KEEP_ON_RECORD and result.error is None
        if may_turn_up and not is_refused and not (is_living and is_found):
            self.doubtful.append(tracked.attempt.record)

    async def delete(self, container: Container) -> None:
        """Delete a container whose name is all that is known of it."""
        name = container.name or ""
        target = Target(container_id=container.id, is_ours=partial(_has_name, container.name), confirmed=True)
        deletion = Deletion(self.context, target, self.give_up)
        async with self._turns:
            if self.give_up.is_set():
                return
            error = await deletion.run()
        if error is not None:
            self.failed.append((name, error))
        elif not deletion.was_gone:
            self.deleted.append(name)
        elif not deletion.was_replaced:
            self.gone.append(name)


async def reap(
    context: RentalContext, *, wait: bool = False, patient: bool = True, names: Collection[str] | None = None
) -> ReapReport:
    """Delete the containers of all records that no living process owns, or whose time is up.

    Args:
        wait: True to walk over the list until it is certain that nothing in doubt turns up.
        patient: True to check the token first, and to repeat deletions that fail.
        names: the records to reap, none of which belongs to another token; None for all.

    Raises:
        AuthenticationError: the service refuses the token.
        StateFileError: the state file cannot be used.
        ClientStateError: the client is closed, or belongs to another event loop.
    """
    context.check_usable()
    disown_closed_loops()
    reaping = _Reaping(context, patient=patient)
    is_orphan = partial(_is_orphan, context)
    if patient and names is None:
        await check_token(context)
    unproven = [] if names is not None else await join_proven_accounts(context, is_wanted=is_orphan, wait=wait)
    wanted_elsewhere = [
        (record, account.error) for account in unproven for record in account.wanted if record.may_be_rented
    ]
    reaping.failed.extend((record.name, error) for record, error in wanted_elsewhere if error is not None)
    elsewhere = [record for record, error in wanted_elsewhere if error is None]
    records, unreadable = await context.ledger.read_open()
    reaping.failed.extend((name, error) for name, error in unreadable.items() if names is None or name in names)
    wanted = [record for record in records if (names is None or record.name in names) and is_orphan(record)]
    living = [record for record in wanted if _may_create(record)]
    orphans = [record for record in wanted if record not in living]
    dead = {record.name for record in orphans if _has_dead_owner(record)}
    claimed = await asyncio.gather(
        *(reaping.claim(record, is_due=is_orphan, is_of_the_dead=record.name in dead) for record in orphans)
    )
    await reaping.end_all(living, claimed, dead=dead, wait=wait)
    return reaping.report(elsewhere, state_file=context.ledger.path)


async def reap_guarded(
    context: RentalContext,
    guardian: ProcessIdentity,
    *,
    owner: ProcessIdentity,
    former: Collection[ProcessIdentity],
    grace: timedelta,
    between_job_looks: timedelta,
    reading_end: timedelta,
    owner_is_gone: bool,
) -> timedelta | None:
    """Delete the containers of the rentals that a guardian has to end.

    These are the rentals that are over, or whose time is up; those that were detached until a job is over, which it is, or
    whose machines are idle for too long; and all that the owner has, if it is gone.

    Args:
        guardian: the guardian of the rentals.
        owner: the process that the guardian belongs to. Another process may have attached to a rental meanwhile.
        former: the guardians whose rentals it takes over.
        grace: the time after a deadline for which the deletion is left to a living owner.
        between_job_looks: the longest time until the next look at a job that is not over, or at a machine that is not idle.
        reading_end: the time in which the end of a job can still be read, before its container is deleted.
        owner_is_gone: True if that process is dead, or runs another program by now.

    Returns:
        The time until something is due, which is 0 if something could not be ended; None if nothing is left to guard.

    Raises:
        StateFileError: the state file cannot be used.
    """
    ledger = context.ledger

    def is_of_the_dead(record: RentalRecord) -> bool:
        return owner_is_gone and record.owner == owner

    def is_due(record: RentalRecord) -> bool:
        is_over = record.stage == "abandoned" or is_of_the_dead(record)
        is_over |= record.stage == "detached" and record.release_job_id in finished
        return record.guardian in guardians and (is_over or time_left(record) <= timedelta(0))

    def until_look(record: RentalRecord) -> timedelta:
        if record.stage == "detached" and record.idle_timeout is not None:
            return min(time_left(record), between_readings(record.idle_timeout, between_job_looks))
        if record.stage != "detached" or record.release_job is None:
            return time_left(record)
        # The older a rental, the less a minute costs beside it.
        age = record.present(context.clock()) - record.intended_at
        return min(time_left(record), between_job_looks, max(_SHORTEST_PAUSE, age / 10))

    def time_left(record: RentalRecord) -> timedelta:
        if record.expires_at is None:
            return timedelta.max
        waits = timedelta(0) if record.owner is None or is_of_the_dead(record) else grace
        return record.expires_at + waits - record.present(context.clock())

    guardians = {guardian, *former}
    if former:
        await write_best_effort(ledger.change_guardian(former, guardian))
    finished: set[str] = set()
    records = [record for record in await ledger.list_open() if record.guardian in guardians]
    waiting = [record for record in records if not is_due(record)]
    finished |= await finished_jobs(context, waiting, reading_end)
    due = [record for record in records if is_due(record)]
    dead = {record.name for record in due if is_of_the_dead(record)}
    living = [record for record in due if _may_create(record) and record.name not in dead]
    reaping = _Reaping(context)
    claimed = await asyncio.gather(
        *(
            reaping.claim(record, is_due=is_due, is_of_the_dead=record.name in dead)
            for record in due
            if record not in living
        )
    )
    await reaping.end_all(living, claimed, dead=dead, wait=owner_is_gone, finished=finished)

    await end_idle_rentals(
        context, [record for record in waiting if not is_due(record)], pause=between_job_looks, end=reaping.end_idle
    )
    left = [record for record in await ledger.list_open() if record.guardian in guardians]
    return min((timedelta(0) if is_due(record) else until_look(record) for record in left), default=None)


async def release(context: RentalContext, record: RentalRecord, *, force: bool) -> None:
    """Delete the container of a record now, without a login, and close the record.

    Args:
        force: True to delete it although a living process may hold it.

    Raises:
        RentalInUseError: a process holds it, or may hold it; another process has attached to it or ended it meanwhile; or,
            with `force`, its living process may still create its container.
        ReleaseError: the container could not be deleted, or may still turn up; it stays on record.
        StateFileError: the state file cannot be used.
    """
    context.check_usable()
    disown_closed_loops()
    if not force:
        _check_unused(context, record)
    reaping = _Reaping(context)
    # With force, the caller's word counts that the process of another machine is dead, once nothing can turn up any longer.
    is_certain = force and not record.time_to_certainty(context.clock())
    is_living = _may_create(record) and not (is_certain and _liveness_of_owner(record) is Liveness.UNKNOWN)
    if not is_living:
        claimed = await context.ledger.claim_for_reap(record, is_due=lambda _: True, cause="released")
        if claimed is None:
            raise in_use_error(record, "another process has attached to it or ended it meanwhile; look it up again")
        record = claimed
    await reaping.shielded([reaping.end(record, "released", is_living=is_living, wait=False)])
    if reaping.deleted or record.container_id is not None:
        log_release(record, context.clock())
    for _, error in reaping.failed:
        # The container is deleted, and only its record could not be closed.
        raise error if isinstance(error, StateFileError) and reaping.deleted else unreleased(record, error)
    if is_living and not reaping.deleted:
        why = (
            "its process may be about to create it, and goes on; end that process, or try again once it has a container"
        )
        if _liveness_of_owner(record) is Liveness.UNKNOWN:
            moment = f"{record.certain_at:%Y-%m-%d %H:%M:%S} UTC"
            why = (
                f"its process may live on another machine, and create it; if it does not, add force=True after {moment}"
            )
        raise in_use_error(record, why)
    if reaping.doubtful and not reaping.deleted:
        doubtful = reaping.doubtful[0]
        text = (
            f"rental {record.name} was not found, but may still turn up until {doubtful.certain_at:%Y-%m-%d %H:%M:%S} UTC,"
            " because the result of its create is unknown; it stays on record, and rentals.reap() will delete it"
        )
        raise ReleaseError(text, name=record.name, container_id=None, hourly_price=record.hourly_price)


def _check_unused(context: RentalContext, record: RentalRecord) -> None:
    if record.owner is None or record.stage in ("detached", "abandoned") or record.has_expired(context.clock()):
        return
    match _liveness_of_owner(record):
        case Liveness.DEAD:
            return
        case Liveness.UNKNOWN:
            raise in_use_error(record, "another machine's process may use it; add force=True if it does not")
        case Liveness.ALIVE:
            pass
    if record.owner == this_process():
        raise in_use_error(record, "this process uses it; leave its block or close it, or add force=True")
    raise in_use_error(record, f"process {record.owner.process_id} uses it; end that, or add force=True")


async def close_record_of_deleted(context: RentalContext, container_id: int) -> None:
    """Close the record of a detached rental whose container the user has deleted, if a GET shows that it is gone.

    Otherwise the record is left to the reaper. No error is raised, because the deletion itself has succeeded.
    """
    if not context.ledger.was_used:
        return
    try:
        for record in await context.ledger.list_open():
            if record.container_id != container_id or record.stage != "detached":
                continue
            claimed = await context.ledger.claim_for_reap(record, is_due=lambda _: True, cause="released")
            is_certain = not record.time_to_certainty(context.clock())
            if claimed is not None and is_certain and await _is_missing(context, container_id):
                past = PastRental.of(claimed, ended_at=claimed.present(context.clock()), cause="released")
                await context.ledger.close(record.name, past, containers=[container_id])
    except RentGPUError as error:
        logger.warning("could not close the record of container %d, which was deleted: %s", container_id, error)


async def _is_missing(context: RentalContext, container_id: int) -> bool:
    if context.profile.deleted_stay_listed:
        return True
    try:
        await context.containers.get(container_id, timeout=per_attempt_timeouts(context.timeouts))
    except NotFoundError:
        return True
    return False


def _liveness_of_owner(record: RentalRecord) -> Liveness:
    here = this_process()
    if record.owner is None:
        return Liveness.UNKNOWN
    if record.owner == here:
        return Liveness.ALIVE if is_held_here(record.name) else Liveness.DEAD
    return liveness_of(record.owner, here, look_up_process)


def _has_dead_owner(record: RentalRecord) -> bool:
    """Return True if the record's owner is another process, which is provably dead."""
    return record.owner not in (None, this_process()) and _liveness_of_owner(record) is Liveness.DEAD


def _may_create(record: RentalRecord) -> bool:
    """Return True if the owner is not provably dead, and may be about to create the container, and needs the record."""
    has_owner = record.owner is not None and record.container_id is None
    return has_owner and _liveness_of_owner(record) is not Liveness.DEAD


def _is_orphan(context: RentalContext, record: RentalRecord) -> bool:
    owner_is_gone = _liveness_of_owner(record) is Liveness.DEAD
    return is_to_be_reaped(record, now=context.clock(), owner_is_gone=owner_is_gone)


def _cause_to_reap(context: RentalContext, record: RentalRecord, finished: Collection[str]) -> EndCause:
    if not record.has_expired(context.clock()):
        return "finished" if record.release_job_id in finished else "reaped"
    return "budget" if record.ends_by_budget else "expired"


def _has_name(name: str | None, container: Container) -> bool | None:
    return None if container.name is None else container.name == name


async def reap_by_name(context: RentalContext) -> ReapReport:
    """Delete each container whose name is one of ours and holds an expiry that has passed. No record is read or written.

    Raises:
        RentGPUError: the list of containers could not be read.
    """
    context.check_usable()
    reaping = _Reaping(context)
    moment = context.clock().wall
    listed = await context.container_index.read()
    named = [(container, expiry_in(container.name or "")) for container in listed.containers]
    expired = [container for container, expiry in named if expiry is not None and expiry <= moment]
    await reaping.shielded(reaping.delete(container) for container in expired)
    reaping.failed.extend((f"an item of the list, {problem.json_path}", problem) for problem in listed.unreadable)
    if (more := listed.unreadable_count - len(listed.unreadable)) > 0:
        reaping.failed.append((f"{more} more items of the list", listed.unreadable[-1]))
    return reaping.report()
