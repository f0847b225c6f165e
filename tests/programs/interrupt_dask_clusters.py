"""Interrupt Dask clusters at random moments of their constructors, starts and uses; nothing is rented after each.

Arguments: the seed, and how many clusters.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from typing import Any

from renter import on_record, rented, until

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.dask import RentGPUCluster, Software

wanted: dict[str, Any] = {
    "image": "PyTorch 2.4",
    "software": Software(python=sys.executable),
    "client": AsyncRentGPU,
}


def use_cluster() -> None:
    """Make a cluster of two workers, use it, and close it."""
    with RentGPUCluster(2, **wanted) as cluster:
        cluster.wait_for_workers(2, timeout=60)


def main() -> None:
    """Interrupt clusters."""
    interrupts = random.Random(int(sys.argv[1]))
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    use_cluster()
    began = time.monotonic()
    use_cluster()
    duration = time.monotonic() - began
    interrupted = 0
    for number in range(int(sys.argv[2])):
        # Every second one within the constructor, which takes a small part of the time.
        longest = duration * (0.1 if number % 2 else 1)
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, interrupts.random() * longest + 1e-6)
                use_cluster()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
        # An interrupt of the close itself does not end the deletion, but nothing waits for it then.
        until(lambda: not rented())
        until(lambda: not on_record())
    assert interrupted > 0


if __name__ == "__main__":
    main()
