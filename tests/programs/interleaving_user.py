"""Act at random on rentals that several processes share, and print the deadlines heard of, and the rentals ended by hand.

Argument: the seed. Rentals that are held in the end expire; those that are detached are left to the reaper.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from datetime import timedelta

import preamble

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

preamble.install()
STEPS = 40
# The answers of a step that another process's step has overtaken.
OVERTAKEN = (RentalEndedError, RentalInUseError, RentalNotFoundError, InvalidArgumentError, ClientStateError)


class User:
    """One process's rentals."""

    def __init__(self, gpu: AsyncRentGPU, seed: int) -> None:
        self.gpu = gpu
        self.choose = random.Random(seed)
        self.held: list[AsyncRental] = []

    def heard(self, record: RentalRecord) -> None:
        assert record.expires_at is not None
        print(json.dumps({"container": record.container_id, "deadline": record.expires_at.timestamp()}), flush=True)

    def ends(self, container_id: int | None) -> None:
        """Print, before it happens, that a rental is ended by hand."""
        print(json.dumps({"container": container_id, "ended": True}), flush=True)

    def seconds(self) -> timedelta:
        return timedelta(seconds=self.choose.uniform(0.5, 3))

    async def rent(self) -> None:
        ttl = self.seconds()
        rental = await self.gpu.rent(image="PyTorch 2.4", ttl=ttl, extendable_to=timedelta(hours=1), max_price=1).open()
        self.held.append(rental)
        self.heard(rental._state.had.record)

    async def leave(self) -> None:
        rental = self.held.pop()
        if rental._state.reason is None:
            self.ends(rental.container.id)
        await rental.close()

    async def detach(self) -> None:
        rental = self.held.pop()
        self.heard(await rental.detach())

    async def attach(self) -> None:
        record = self.choose.choice(await self.gpu.rentals.list())
        rental = await self.gpu.rentals.attach(record).open()
        self.held.append(rental)
        self.heard(rental._state.had.record)

    async def extend(self) -> None:
        record = self.choose.choice(await self.gpu.rentals.list())
        self.heard(await self.gpu.rentals.extend(record, ttl=self.seconds()))

    async def extend_own(self) -> None:
        self.heard(await self.held[-1].extend(ttl=self.seconds()))

    async def release(self) -> None:
        record = self.choose.choice([found for found in await self.gpu.rentals.list() if found.stage == "detached"])
        self.ends(record.container_id)
        await self.gpu.rentals.release(record)

    async def reap(self) -> None:
        report = await self.gpu.rentals.reap()
        assert report.failed == ()

    async def step(self) -> None:
        steps = [self.rent] if len(self.held) < 2 else []
        steps += [self.detach, self.extend_own] if self.held else []
        steps += [self.attach, self.extend, self.reap]
        # Rare, so that most rentals end by their deadlines.
        if self.choose.random() < 0.04:
            steps = [self.leave] if self.held else [self.release]
        try:
            await self.choose.choice(steps)()
        except OVERTAKEN:
            pass
        except IndexError:  # nothing is there to choose from
            pass


async def main() -> None:
    """Act."""
    async with AsyncRentGPU() as gpu:
        user = User(gpu, int(sys.argv[1]))
        for _ in range(STEPS):
            await user.step()
            await asyncio.sleep(user.choose.uniform(0, 0.2))
        for rental in user.held:
            await rental._released.wait()


asyncio.run(main())
