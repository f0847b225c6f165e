"""The reaper: deletes what nobody alive owns, by the ledger or by the names alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import attrs

from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.errors import RentGPUError, StateFileError
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.context import RentalContext, disown_closed_loops, is_held_here
from netmind_rentgpu.rentals.ledger.clocks import read_clocks
from netmind_rentgpu.rentals.ledger.container_index import is_container_of, matching, still_belongs_to
from netmind_rentgpu.rentals.ledger.names import expiry_in
from netmind_rentgpu.rentals.ledger.process_identity import Liveness, liveness_of, look_up_process, this_process
from netmind_rentgpu.rentals.ledger.records import (
    ReapAction,
    ReapReport,
    RentalRecord,
    action_after_walk,
    action_for,
    may_turn_up,
)
from netmind_rentgpu.rentals.lifecycle.account_proof import check_token, join_proven_accounts
from netmind_rentgpu.rentals.lifecycle.deletion import Deletion, Target

__all__ = ["reap", "reap_by_name"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_DELETIONS_AT_ONCE = 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0


class _Reaping:
    """One round of a reaper, and what it has done so far.

    Attributes:
        give_up: nobody waits any more for a service that fails: one attempt each.
    """

    def __init__(self, context: RentalContext) -> None:
        self.context = context
        self.give_up = asyncio.Event()
        self.deleted: list[str] = []
        self.gone: list[str] = []
        self.failed: list[tuple[str, Exception]] = []
        self._deleted_ids: set[int] = set()
        self._turns = asyncio.Semaphore(_DELETIONS_AT_ONCE)

    def report(
        self,
        doubtful: Iterable[RentalRecord] = (),
        elsewhere: Iterable[RentalRecord] = (),
        *,
        state_file: Path | None = None,
    ) -> ReapReport:
        report = ReapReport(
            deleted=tuple(self.deleted),
            gone=tuple(self.gone),
            doubtful=tuple(doubtful),
            failed=tuple(self.failed),
            elsewhere=tuple(elsewhere),
            account=self.context.ledger.fingerprint,
            state_file=state_file,
        )
        if self.deleted:
            logger.info("reaped %s", ", ".join(self.deleted))
        return report

    async def delete(self, name: str, target: Target) -> Deletion | None:
        """Delete a container; return None if that failed."""
        deletion = Deletion(self.context, target, self.give_up)
        async with self._turns:
            # In a task of its own, which bears being cancelled; who waits for it is cancelled then.
            deleting = asyncio.get_running_loop().create_task(deletion.run())
            await wait_shielded(deleting, cancelled=self.give_up.set)
        error = deleting.result()
        if error is not None:
            self.failed.append((name, error))
            return None
        if not deletion.was_gone:
            self.deleted.append(name)
        elif name not in self.gone and not deletion.was_replaced:
            self.gone.append(name)
        if not deletion.was_replaced:
            self._deleted_ids.add(target.container_id)
        return deletion

    async def delete_recorded(self, record: RentalRecord) -> RentalRecord | None:
        """Delete a record's container; return the record if its container is still to be looked for by name."""
        if record.container_id is None:
            return None
        target = Target(
            container_id=record.container_id,
            is_ours=partial(still_belongs_to, record),
            # What this process has rented itself, a moment ago, is not another.
            confirmed=record.owner == this_process(),
            unshown=_unshown(record),
        )
        deletion = await self.delete(record.name, target)
        if deletion is None:
            return None
        if deletion.was_replaced:
            return attrs.evolve(record, container_id=None)
        return await self._close_or_go_on(record) if await self._delete_twins(record) else None

    async def _close_or_go_on(self, record: RentalRecord) -> RentalRecord | None:
        if not may_turn_up(record, looked_at=read_clocks()):
            await self.close(record)
            return None
        # Its create was in doubt, and may yet be acted on once more.
        again = attrs.evolve(record, stage="abandoned", owner=None, container_id=None)
        try:
            await self.context.ledger.put(again)
        except StateFileError as error:
            self.failed.append((record.name, error))
            return None
        return again

    async def _delete_twins(self, record: RentalRecord) -> bool:
        """Delete what the service has made of it beside the container that is on record; tell whether that is done."""
        try:
            found = matching(record, await self.context.container_index.read())
        except RentGPUError:
            return True  # there is no reason to expect any
        return await self._delete_found(record, [twin for twin in found if twin.id != record.container_id])

    async def look_for(
        self, records: Sequence[RentalRecord], living: Collection[str], *, wait: bool
    ) -> list[RentalRecord]:
        """Look for what may exist; return what may still turn up.

        Args:
            living: the names of those whose owner lives, and may be about to create it: those are never struck out.
        """
        # A record of an earlier version does not say how long its create may take.
        longest_create = self.context.longest_create
        doubtful = [attrs.evolve(record, longest_create=record.longest_create or longest_create) for record in records]
        pause = _FIRST_PAUSE
        # However the time of day was set, a create that was sent before now is certain after its own longest time.
        time = asyncio.get_running_loop().time
        began = time()
        while doubtful:
            looked_at, waited = read_clocks(), timedelta(seconds=time() - began)
            try:
                listed = await self.context.container_index.read()
            except RentGPUError as error:
                self.failed.extend((record.name, error) for record in doubtful)
                return []
            still: list[RentalRecord] = []
            for record in doubtful:
                try:
                    found = matching(record, listed)
                except RentGPUError as error:
                    self.failed.append((record.name, error))
                    continue
                judged = action_after_walk(record, found=bool(found), looked_at=looked_at, waited=waited)
                if judged is not ReapAction.DOUBT and (
                    not await self._delete_found(record, found) or record.name in living
                ):
                    continue
                if may_turn_up(record, looked_at=looked_at, waited=waited):
                    # Also of what was found and deleted: the service may act on its create once more.
                    still.append(record)
                else:
                    await self._close_record(record)
            doubtful = still
            if not wait:
                break
            if doubtful:
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 1.5)
        return doubtful

    async def _close_record(self, record: RentalRecord) -> None:
        if record.name not in (*self.deleted, *self.gone):
            self.gone.append(record.name)
        await self.close(record)

    async def close(self, record: RentalRecord) -> None:
        try:
            await self.context.ledger.delete([record.name], containers=self._deleted_ids)
        except StateFileError as error:
            self.failed.append((record.name, error))

    async def _delete_found(self, record: RentalRecord, found: Sequence[Container]) -> bool:
        ended = [
            await self.delete(
                record.name,
                Target(
                    container_id=container.id,
                    is_ours=partial(is_container_of, record),
                    confirmed=True,
                    unshown=_unshown(record),
                ),
            )
            for container in found
        ]
        return None not in ended


def _unshown(record: RentalRecord) -> RentalRecord | None:
    """Return a record whose container the service may not have shown yet, else None."""
    return None if record.stage in ("ready", "detached") else record


async def reap(
    context: RentalContext, *, wait: bool = False, patient: bool = True, names: Collection[str] | None = None
) -> ReapReport:
    """Delete what is on record and nobody alive owns.

    Args:
        wait: look for what is in doubt until that is certain.
        patient: check the token first, and attempt it again where a service fails.
        names: what it is about, none of which another token has; None for all.

    Raises:
        AuthenticationError: the token is refused.
        StateFileError: the state file cannot be used.
        ClientStateError: the client is closed, or belongs to another event loop.
    """
    context.check_usable()
    disown_closed_loops()
    reaping = _Reaping(context)
    if not patient:
        reaping.give_up.set()
    elif names is None:
        await check_token(context)
    unproven = [] if names is not None else await join_proven_accounts(context, is_wanted=_is_orphan, wait=wait)
    for each in unproven:
        if each.error is not None:
            reaping.failed.extend((record.name, each.error) for record in each.wanted)
    elsewhere = [record for each in unproven if each.error is None for record in each.wanted]
    living: set[str] = set()
    judged: dict[ReapAction, list[RentalRecord]] = {action: [] for action in ReapAction}
    records, unreadable = await context.ledger.read_open()
    reaping.failed.extend((name, error) for name, error in unreadable.items() if names is None or name in names)
    clocks = read_clocks()
    for record in records:
        if names is not None and record.name not in names:
            continue
        liveness = _liveness_of_owner(record)
        if liveness is Liveness.ALIVE and record.container_id is None:
            living.add(record.name)
        judged[action_for(record, now=clocks, owner_is_gone=liveness is Liveness.DEAD)].append(record)
    to_claim = [
        record for record in (*judged[ReapAction.DELETE], *judged[ReapAction.LOOK]) if record.name not in living
    ]
    # What was read may not be so any more: somebody may have detached it, or taken it, meanwhile.
    claimed = await asyncio.gather(*(context.ledger.claim_for_reap(record) for record in to_claim))
    ours = living | {record.name for record, done in zip(to_claim, claimed, strict=True) if done}
    to_delete = [record for record in judged[ReapAction.DELETE] if record.name in ours]
    left = await asyncio.gather(*(reaping.delete_recorded(record) for record in to_delete))
    to_look_for = [record for record in judged[ReapAction.LOOK] if record.name in ours]
    to_look_for += [record for record in left if record is not None]
    doubtful = await reaping.look_for(to_look_for, living, wait=wait)
    return reaping.report(doubtful, elsewhere, state_file=context.ledger.path)


def _liveness_of_owner(record: RentalRecord) -> Liveness:
    here = this_process()
    if record.owner is None:
        return Liveness.UNKNOWN
    if record.owner == here:
        return Liveness.ALIVE if is_held_here(record.name) else Liveness.DEAD
    return liveness_of(record.owner, here, look_up_process)


def _is_orphan(record: RentalRecord) -> bool:
    owner_is_gone = _liveness_of_owner(record) is Liveness.DEAD
    return action_for(record, now=read_clocks(), owner_is_gone=owner_is_gone) is not ReapAction.LEAVE


def _has_name(name: str | None, container: Container) -> bool | None:
    return None if container.name is None else container.name == name


async def reap_by_name(context: RentalContext) -> ReapReport:
    """Delete what has a name of ours, and an expiry in it that has passed. No record is asked for, or changed.

    Raises:
        RentGPUError: the list of containers could not be read.
    """
    context.check_usable()
    reaping = _Reaping(context)
    moment = read_clocks().wall
    listed = await context.container_index.read()
    named = [(container, expiry_in(container.name or "")) for container in listed.containers]
    expired = [container for container, expiry in named if expiry is not None and expiry <= moment]
    await asyncio.gather(
        *(
            reaping.delete(
                container.name or "",
                Target(container_id=container.id, is_ours=partial(_has_name, container.name), confirmed=True),
            )
            for container in expired
        )
    )
    reaping.failed.extend((f"an item of the list, {problem.json_path}", problem) for problem in listed.unreadable)
    if (more := listed.unreadable_count - len(listed.unreadable)) > 0:
        reaping.failed.append((f"{more} more items of the list", listed.unreadable[-1]))
    return reaping.report()
