"""Extend, expiry, detach, attach, release and reap, by three clients at once, in random order under one virtual clock.

After each run, no machine has lived past its deadline, none was deleted before it unless a user ended it, nothing is on
record, and each machine is a past rental, once. The deadline is the one on file when the machine was deleted.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from rented import IMAGE, client
from short_forms import thinned

from netmind_rentgpu import (
    AsyncRental,
    AsyncRentGPU,
    ClientStateError,
    InvalidArgumentError,
    RentalEndedError,
    RentalInUseError,
    RentalNotFoundError,
    RentalRecord,
)
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.rentals.ledger.clocks import ClockReading

HOUR = timedelta(hours=1)
BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
STEPS, RENTALS = 12, 3
# The answers of a step that another client's step has overtaken.
OVERTAKEN = (RentalEndedError, RentalInUseError, RentalNotFoundError, InvalidArgumentError, ClientStateError)


@attrs.define
class Market:
    """Three clients, their virtual clock, and what the test knows of each rental.

    Attributes:
        passed: how far the clock has gone.
        deadlines: the latest deadline of each container of which a client has heard, by its id.
        ended_by_user: how often a user has released or left each container, by its id.
        held: the rentals that are entered, each by its client.
    """

    clients: list[AsyncRentGPU]
    choose: random.Random
    passed: timedelta = timedelta(0)
    deadlines: dict[int, datetime] = attrs.field(factory=dict[int, datetime])
    ended_by_user: Counter[int] = attrs.field(factory=Counter[int])
    held: list[AsyncRental] = attrs.field(factory=list[AsyncRental])
    faults: list[str] = attrs.field(factory=list[str])

    def now(self) -> ClockReading:
        return ClockReading(BEGIN + self.passed, boot="one boot", since_boot=86_400 + self.passed.total_seconds())

    def heard(self, record: RentalRecord) -> None:
        if record.container_id is not None and record.expires_at is not None:
            known = self.deadlines.get(record.container_id, record.expires_at)
            self.deadlines[record.container_id] = max(known, record.expires_at)

    def watch_deletions(self, gpu: AsyncRentGPU) -> None:
        delete = gpu.containers._delete

        async def checked(container_id: int, **keywords: Any) -> Any:
            deadline = self.deadlines.get(container_id)
            if not self.ended_by_user[container_id] and (deadline is None or self.now().wall < deadline):
                self.faults.append(f"container {container_id} was deleted at {self.now().wall}, before {deadline}")
            return await delete(container_id, **keywords)

        gpu.containers._delete = checked  # type: ignore[method-assign]  # a spy

    async def rent(self, gpu: AsyncRentGPU) -> None:
        rental = await gpu.rent(image=IMAGE, ttl=HOUR, extendable_to=6 * HOUR, max_price=1).open()
        self.heard(rental._state.had.record)
        self.held.append(rental)

    async def leave(self, _: AsyncRentGPU) -> None:
        rental = self.choose.choice(self.held)
        self.ended_by_user[rental.container.id] += 1
        self.held.remove(rental)
        await rental.close()

    async def detach(self, _: AsyncRentGPU) -> None:
        rental = self.choose.choice(self.held)
        self.heard(await rental.detach())
        self.held.remove(rental)

    async def attach(self, gpu: AsyncRentGPU) -> None:
        record = self.choose.choice(await gpu.rentals.list())
        rental = await gpu.rentals.attach(record).open()
        self.heard(rental._state.had.record)
        self.held.append(rental)

    async def extend(self, gpu: AsyncRentGPU) -> None:
        record = self.choose.choice(await gpu.rentals.list())
        self.heard(await gpu.rentals.extend(record, ttl=self.choose.uniform(0.5, 3) * HOUR))

    async def extend_own(self, _: AsyncRentGPU) -> None:
        self.heard(await self.choose.choice(self.held).extend(ttl=self.choose.uniform(0.5, 3) * HOUR))

    async def release(self, gpu: AsyncRentGPU) -> None:
        record = self.choose.choice(await gpu.rentals.list())
        if record.container_id is None:  # its create is under way
            return
        # Counted, because two clients may try it at once, and one of them is refused.
        self.ended_by_user[record.container_id] += 1
        try:
            await gpu.rentals.release(record)
        except RentalInUseError:
            self.ended_by_user[record.container_id] -= 1
            raise

    async def reap(self, gpu: AsyncRentGPU) -> None:
        report = await gpu.rentals.reap()
        assert report.failed == ()

    async def let_time_pass(self, _: AsyncRentGPU) -> None:
        self.advance(self.choose.uniform(0.1, 1) * HOUR)

    def advance(self, by: timedelta) -> None:
        self.passed += by
        for rental in self.held:
            rental._expiry._ring()

    async def step(self) -> None:
        steps = [self.rent] if len(self.held) < RENTALS else []
        steps += [self.leave, self.detach, self.extend_own] if self.held else []
        steps += [self.attach, self.extend, self.release, self.reap, self.let_time_pass, self.let_time_pass]
        try:
            await self.choose.choice(steps)(self.choose.choice(self.clients))
        except OVERTAKEN:
            pass
        except IndexError:  # nothing is there to choose from any longer
            pass


@pytest.mark.parametrize("seed", thinned(range(200), every=20))
async def test_clients_that_act_at_once_agree_on_each_deadline(emulator: Emulator, state: Path, seed: int) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(emulator, state)) for _ in range(3)]
        market = Market(clients, random.Random(seed))
        for gpu in clients:
            gpu._context.clock = market.now
            market.watch_deletions(gpu)
        for _ in range(STEPS):
            await asyncio.gather(*(market.step() for _ in clients))
            assert market.faults == []
        # Whatever is left ends by its deadline alone.
        market.advance(7 * HOUR)
        for rental in market.held:
            if (claiming := rental._expiry._claiming) is not None:
                await asyncio.wait({claiming})
            await rental._released.wait()
        assert (await clients[0].rentals.reap(wait=True)).clean
        assert market.faults == []
        emulator.assert_nothing_rented()
        assert await clients[1].rentals.list() == []
        history = await clients[2].rentals.history()
        assert sorted(past.container_id or 0 for past in history) == sorted(
            charge.container_id for charge in emulator.charges
        )
        for past in history:
            assert past.spent is not None
            assert past.cause == "expired" or market.ended_by_user[past.container_id or 0]
