"""What a create without a clear answer may have made: looking for it, for as long as it may still turn up."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import attrs

from netmind_rentgpu.errors import ClientStateError, RentGPUError
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.desk import Desk, now
from netmind_rentgpu.rentals.ends import delete_surely, noted
from netmind_rentgpu.rentals.market import matching
from netmind_rentgpu.rentals.records import RentalRecord
from netmind_rentgpu.rentals.tries import Doubt, Try

__all__ = ["Doubts"]

_LOOKING_GOES_ON = 60.0
_LAST_LOOK = 3.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0


class Doubts:
    """Looks for one rental.

    Attributes:
        hurried: nobody waits any more for what may turn up or recover: it stays on record.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.hurried: asyncio.Event = asyncio.Event()

    async def begin(self, one: Try) -> None:
        """Take in that something of a try may turn up from now on, until it would have."""
        doubt = self._desk.doubt
        one.doubt = Doubt(now() + doubt, asyncio.get_running_loop().time() + doubt.total_seconds())
        one.record = attrs.evolve(one.record, certain_at=one.doubt.certain_at)
        await noted(self._desk.ledger.put(one.record))

    async def settle(self, one: Try) -> list[Container] | None:
        """Look for what a create may have made, until it would be listed; None where that cannot be told."""
        time = asyncio.get_running_loop().time
        listed_at = time() + self._desk.profile.list_lag.total_seconds()
        await self.begin(one)
        pause = _FIRST_PAUSE
        while True:
            looked_at = time()
            try:
                found = await self._look_for(one.record)
            except ClientStateError:
                return None
            except RentGPUError:
                if looked_at > listed_at + _LOOKING_GOES_ON:
                    one.looked_for = True
                    return None
            else:
                if found:
                    one.shown = True
                    one.twins = [twin.id for twin in found[1:]]
                    return found
                if found is not None and looked_at >= listed_at:
                    one.looked_for = True
                    return []
            if self.hurried.is_set():
                return None
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.hurried.wait()
            pause = min(_LONGEST_PAUSE, pause * 1.5)

    async def look_once(self, one: Try) -> bool:
        """Delete what a try has made beside its container; tell whether nothing will turn up any more.

        Raises:
            RentGPUError: that cannot be told now.
        """
        looked_at = asyncio.get_running_loop().time()
        found = await self._look_for(one.record)
        # Noted first, so that what cannot be deleted is not forgotten.
        one.twins += [each.id for each in found or () if each.id not in (one.container_id, *one.twins)]
        for twin in one.undeleted_twins:
            error = await self.delete(one, twin)
            if error is not None:
                raise error
        return found is not None and (one.doubt is None or looked_at >= one.doubt.over_at)

    async def delete(self, one: Try, container_id: int) -> RentGPUError | None:
        """Delete a container of a try, in several attempts if need be; return why that failed."""
        if container_id in one.deleted:
            return None
        rented_at = None if one.shown else one.record.intended_at
        error = await delete_surely(self._desk, container_id, rented_at=rented_at, hurried=self.hurried)
        if error is None:
            one.deleted.add(container_id)
        return error

    async def _look_for(self, record: RentalRecord) -> list[Container] | None:
        """Look once; None where that takes too long for whoever is in a hurry."""
        looking = asyncio.ensure_future(self._desk.roll.call())
        try:
            await self.unless_hurried(looking)
            return matching(record, looking.result()) if looking.done() else None
        finally:
            looking.cancel()
            await asyncio.wait({looking})

    async def unless_hurried(self, future: asyncio.Future[Any], *, longest: float | None = None) -> None:
        """Wait for something, for so many seconds at the longest, and not for long once nobody wants to wait for it."""
        hurrying = asyncio.ensure_future(self.hurried.wait())
        try:
            await asyncio.wait({future, hurrying}, timeout=longest, return_when=asyncio.FIRST_COMPLETED)
            if hurrying.done():
                await asyncio.wait({future}, timeout=_LAST_LOOK)
        finally:
            hurrying.cancel()
            await asyncio.wait({hurrying})
