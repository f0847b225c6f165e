"""Ask for a rental's shell from many threads and a signal handler at once; all get the same shell."""

from __future__ import annotations

import gc
import signal
import sys
import threading

import preamble
from renter import WANTED

from netmind_rentgpu import Rental, RentGPU, Shell

preamble.install()
sys.setswitchinterval(1e-6)
kept: list[object] = []
shells: list[Shell] = []


def ask(rental: Rental, together: threading.Barrier) -> None:
    """Ask for the shell at the same time as the other threads."""
    together.wait()
    shells.append(rental.shell)


with RentGPU() as gpu, gpu.rent(**WANTED) as rental:
    signal.signal(signal.SIGALRM, lambda *_: shells.append(rental.shell))
    for turn in range(20):
        shells.clear()
        together = threading.Barrier(8)
        rental._shells.clear()
        threads = [threading.Thread(target=ask, args=(rental, together)) for _ in range(7)]
        for thread in threads:
            thread.start()
        together.wait()
        signal.setitimer(signal.ITIMER_REAL, 1e-6 * (turn + 1))
        shells.append(rental.shell)
        for thread in threads:
            thread.join()
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert len(shells) >= 8
        assert len({id(shell) for shell in shells}) == 1
        # Shells are closed when they are collected, and all of this rental share one connection.
        kept += rental._shells
    gc.collect()
    print(rental.run("echo in").stdout, end="")
