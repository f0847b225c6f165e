"""What a create without a clear answer may have made: looking for it, for as long as it may still turn up."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

import attrs

from netmind_rentgpu.errors import ClientStateError, RentGPUError
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.clocks import read_clocks
from netmind_rentgpu.rentals.ledger.container_index import ListedContainers, matching, still_belongs_to
from netmind_rentgpu.rentals.lifecycle.attempt import CreateAttempt, UncertaintyWindow
from netmind_rentgpu.rentals.lifecycle.deletion import Deletion, Target, write_best_effort

__all__ = ["AttemptSearch"]

_LOOKING_GOES_ON = 60.0
_LAST_LOOK = 3.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0


class AttemptSearch:
    """Looks for one rental.

    Attributes:
        give_up: nobody waits any more for what may turn up or recover: it stays on record.
    """

    def __init__(self, context: RentalContext) -> None:
        self._context = context
        self.give_up: asyncio.Event = asyncio.Event()

    async def begin(self, attempt: CreateAttempt) -> None:
        """Take in that something of a try may turn up from now on, until it would have."""
        uncertainty = self._context.uncertainty
        attempt.uncertainty = UncertaintyWindow(
            attempt.record.present(read_clocks()) + uncertainty,
            asyncio.get_running_loop().time() + uncertainty.total_seconds(),
        )
        attempt.record = attrs.evolve(attempt.record, certain_at=attempt.uncertainty.certain_at)
        await write_best_effort(self._context.ledger.put(attempt.record))

    async def settle(self, attempt: CreateAttempt) -> list[Container] | None:
        """Look for what a create may have made, until it would be listed; None where that cannot be told."""
        time = asyncio.get_running_loop().time
        listed_at = time() + self._context.profile.list_lag.total_seconds()
        await self.begin(attempt)
        pause = _FIRST_PAUSE
        while True:
            looked_at = time()
            try:
                listed = await self._list()
                found = None if listed is None else matching(attempt.record, listed)
            except ClientStateError:
                return None
            except RentGPUError:
                if looked_at > listed_at + _LOOKING_GOES_ON:
                    attempt.looked_for = True
                    return None
            else:
                if found:
                    attempt.shown = True
                    attempt.twins = [twin.id for twin in found[1:]]
                    return found
                if found is not None and looked_at >= listed_at:
                    attempt.looked_for = True
                    return []
            if self.give_up.is_set():
                return None
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.give_up.wait()
            pause = min(_LONGEST_PAUSE, pause * 1.5)

    async def look_once(self, attempt: CreateAttempt) -> bool:
        """Delete what a try has made beside its container; tell whether nothing will turn up any more.

        Raises:
            RentGPUError: that cannot be told now.
        """
        looked_at = asyncio.get_running_loop().time()
        listed = await self._list()
        if listed is None:
            return False
        found = matching(attempt.record, listed)
        # Noted first, so that what cannot be deleted is not forgotten.
        attempt.twins += [each.id for each in found if each.id not in (attempt.container_id, *attempt.twins)]
        for twin in attempt.undeleted_twins:
            error = await self.delete(attempt, twin)
            if error is not None:
                raise error
        if listed.unreadable:
            raise listed.unreadable[0]
        return attempt.uncertainty is None or looked_at >= attempt.uncertainty.over_at

    async def delete(self, attempt: CreateAttempt, container_id: int) -> RentGPUError | None:
        """Delete a container of a try, in several attempts if need be; return why that failed."""
        if container_id in attempt.deleted:
            return None
        target = Target(
            container_id=container_id,
            is_ours=partial(still_belongs_to, attempt.record),
            confirmed=attempt.creating is not None or attempt.shown,
            unshown=None if attempt.shown else attempt.record,
        )
        deletion = Deletion(self._context, target, self.give_up)
        error = await deletion.run()
        if error is None:
            attempt.deleted.add(container_id)
            if deletion.was_replaced:
                attempt.left_alone.add(container_id)
        return error

    async def _list(self) -> ListedContainers | None:
        """List all containers once; None where that takes too long after `give_up`."""
        listing = asyncio.ensure_future(self._context.container_index.read())
        try:
            await self.unless_given_up(listing)
            return listing.result() if listing.done() else None
        finally:
            listing.cancel()
            await asyncio.wait({listing})

    async def unless_given_up(self, future: asyncio.Future[Any], *, longest: float | None = None) -> None:
        """Wait for something, for so many seconds at the longest, and not for long once nobody wants to wait for it."""
        given_up = asyncio.ensure_future(self.give_up.wait())
        try:
            await asyncio.wait({future, given_up}, timeout=longest, return_when=asyncio.FIRST_COMPLETED)
            if given_up.done():
                await asyncio.wait({future}, timeout=_LAST_LOOK)
        finally:
            given_up.cancel()
            await asyncio.wait({given_up})
