"""Let a signal handler raise an error just after a rental was entered; the rental is deleted then."""

from __future__ import annotations

import signal
import threading

import preamble
from renter import WANTED, rented, until

from netmind_rentgpu import AsyncRental, ClientStateError, RentGPU

preamble.install()
enter, main = AsyncRental.__aenter__, threading.main_thread().ident
assert main is not None


async def enter_and_signal(self: AsyncRental) -> AsyncRental:
    """Enter the rental, then send the main thread a signal."""
    await enter(self)
    signal.pthread_kill(main, signal.SIGUSR1)
    return self


AsyncRental.__aenter__ = enter_and_signal
closed = RentGPU()
closed.close()
signal.signal(signal.SIGUSR1, lambda *_: closed.machines.list())
with RentGPU() as gpu:
    rental = gpu.rent(**WANTED)
    try:
        with rental:
            print("in")
    except ClientStateError as error:
        print(error)
    until(lambda: not rented())
