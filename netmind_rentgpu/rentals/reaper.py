"""The reaper: deletes what nobody alive owns, by the ledger or by the names alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from netmind_rentgpu.errors import LedgerError, NotFoundError, RentGPUError
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.desk import Desk, is_held_here, now
from netmind_rentgpu.rentals.ends import delete_surely
from netmind_rentgpu.rentals.market import matching
from netmind_rentgpu.rentals.names import expiry_in, is_same_name
from netmind_rentgpu.rentals.owners import is_provably_dead, see_process, this_process
from netmind_rentgpu.rentals.records import ReapReport, RentalRecord, Verdict, after_looking, verdict
from netmind_rentgpu.shielding import surely

__all__ = ["reap", "reap_by_name"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_DELETIONS_AT_ONCE = 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0


class _Findings:
    """What a reaper has done so far."""

    def __init__(self) -> None:
        self.deleted: list[str] = []
        self.gone: list[str] = []
        self.failed: list[tuple[str, Exception]] = []
        self.turns = asyncio.Semaphore(_DELETIONS_AT_ONCE)

    def report(self, doubtful: Iterable[RentalRecord] = ()) -> ReapReport:
        report = ReapReport(
            deleted=tuple(self.deleted), gone=tuple(self.gone), doubtful=tuple(doubtful), failed=tuple(self.failed)
        )
        if self.deleted:
            logger.info("reaped %s", ", ".join(self.deleted))
        return report


async def reap(desk: Desk, *, wait: bool) -> ReapReport:
    """Delete what is on record and nobody alive owns.

    Args:
        wait: look for what is in doubt until that is certain.

    Raises:
        LedgerError: the state file cannot be used.
    """
    findings = _Findings()
    here = this_process()
    to_look_for: list[RentalRecord] = []
    to_delete: list[RentalRecord] = []
    for record in await desk.ledger.open():
        if record.owner == here:
            gone = not is_held_here(record.name)
        else:
            gone = record.owner is not None and is_provably_dead(record.owner, here, see_process)
        judged = verdict(record, now=now(), owner_is_gone=gone)
        if judged is Verdict.DELETE:
            to_delete.append(record)
        elif judged is Verdict.LOOK:
            to_look_for.append(record)
    # What was read may not be so any more: somebody may have detached it, or taken it, meanwhile.
    claimed = await asyncio.gather(*(desk.ledger.claim(record) for record in (*to_delete, *to_look_for)))
    ours = {record.name for record, done in zip((*to_delete, *to_look_for), claimed, strict=True) if done}
    await asyncio.gather(*(_delete_recorded(desk, record, findings) for record in to_delete if record.name in ours))
    doubtful = await _look_for(desk, [one for one in to_look_for if one.name in ours], findings, wait=wait)
    return findings.report(doubtful)


async def reap_by_name(desk: Desk) -> ReapReport:
    """Delete what has a name of ours, and an expiry in it that has passed. No record is asked for, or changed.

    Raises:
        RentGPUError: the list of containers could not be read.
    """
    findings = _Findings()
    moment = now()
    expired = [
        container
        for container in await desk.roll.call()
        if (expiry := expiry_in(container.name or "")) is not None and expiry <= moment
    ]
    await asyncio.gather(*(_delete(desk, container.name or "", container.id, findings) for container in expired))
    return findings.report()


async def _delete_recorded(desk: Desk, record: RentalRecord, findings: _Findings) -> None:
    """Delete a record's container, unless that is another by now: an id is only as good as the service that gave it."""
    container_id = record.container_id
    if container_id is None:
        return
    gone, shown = False, None
    try:
        async with findings.turns:
            shown = (await desk.containers.get(container_id)).name
    except NotFoundError:
        gone = True
    except RentGPUError as error:
        findings.failed.append((record.name, error))
        return
    if shown not in (None, record.shown_name) and not is_same_name(record.name, shown):
        logger.warning("container %d is not %s any more; it is left alone", container_id, record.name)
        gone = True
    elif not await _delete(desk, record.name, container_id, findings, gone=gone):
        return
    if gone:
        findings.gone.append(record.name)
    await _close(desk, record, findings)


async def _look_for(
    desk: Desk, records: Sequence[RentalRecord], findings: _Findings, *, wait: bool
) -> list[RentalRecord]:
    """Look for what may exist; return what may still turn up."""
    doubtful = list(records)
    pause = _FIRST_PAUSE
    # Whoever set the clock meanwhile does not keep us waiting for longer than a create can be in doubt.
    time = asyncio.get_running_loop().time
    deadline = time() + desk.longest_create.total_seconds()
    while doubtful:
        looked_at = now()
        try:
            listed = await desk.roll.call()
        except RentGPUError as error:
            findings.failed.extend((record.name, error) for record in doubtful)
            return []
        still: list[RentalRecord] = []
        for record in doubtful:
            try:
                found = matching(record, listed)
            except RentGPUError as error:
                findings.failed.append((record.name, error))
                continue
            judged = after_looking(record, found=bool(found), looked_at=looked_at)
            if judged is Verdict.DOUBT:
                still.append(record)
            elif await _delete_found(desk, record, found, findings):
                if not found:
                    findings.gone.append(record.name)
                await _close(desk, record, findings)
        doubtful = still
        if not wait or time() > deadline:
            break
        if doubtful:
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 1.5)
    return doubtful


async def _delete_found(desk: Desk, record: RentalRecord, found: Sequence[Container], findings: _Findings) -> bool:
    ended = [await _delete(desk, record.name, container.id, findings) for container in found]
    return all(ended)


async def _delete(desk: Desk, name: str, container_id: int, findings: _Findings, *, gone: bool = False) -> bool:
    """Delete a container; tell whether that is done.

    Args:
        gone: it is said to be gone, which is to be made sure of.
    """
    async with findings.turns:
        # In a task of its own, which bears being cancelled; who waits for it is cancelled then.
        deleting = asyncio.get_running_loop().create_task(delete_surely(desk, container_id))
        await surely(deleting)
    error = deleting.result()
    if error is None:
        if not gone:
            findings.deleted.append(name)
        return True
    findings.failed.append((name, error))
    return False


async def _close(desk: Desk, record: RentalRecord, findings: _Findings) -> None:
    try:
        await desk.ledger.close([record.name])
    except LedgerError as error:
        findings.failed.append((record.name, error))
