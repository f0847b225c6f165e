"""Rent and write records until no file may grow any more; print the error that this ends in."""

from __future__ import annotations

import asyncio
import resource
import secrets
import sys
from datetime import UTC, datetime

from netmind_rentgpu import AsyncRentGPU, StateFileError
from netmind_rentgpu.rentals.ledger.records import RentalRecord


def record() -> RentalRecord:
    """Return a record that fills several kilobytes of the state file."""
    now = datetime.now(UTC)
    return RentalRecord(
        name=secrets.token_hex(),
        stage="detached",
        node_name="x" * 3000,
        gpus=1,
        hourly_price=None,
        intended_at=now,
        expires_at=None,
        certain_at=now,
    )


async def main() -> None:
    """Rent, delete and write a record, many times."""
    async with AsyncRentGPU() as gpu:
        try:
            for _ in range(50):
                async with gpu.rent(image="PyTorch 2.4", keep=True) as rental:
                    await gpu.containers.delete(rental.container.id)
                await gpu.rentals._context.ledger.insert(record())
        except StateFileError as error:
            print("StateFileError", error)


# Otherwise the limit would leave halves of compiled modules, which no other process could import.
sys.dont_write_bytecode = True
largest = int(sys.argv[1])
# The limit acts as a full disk does: no file of this process may grow beyond this number of bytes.
resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
asyncio.run(main())
