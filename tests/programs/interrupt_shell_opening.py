"""Interrupt shells at random moments while they open and close, and check that a shell can be opened afterwards.

Argument: how many interrupts.
"""

from __future__ import annotations

import gc
import random
import signal
import sys

import preamble
from container_user import CONTAINER

from netmind_rentgpu import RentGPU
from netmind_rentgpu.sync import portal

preamble.install()
signal.signal(signal.SIGALRM, signal.default_int_handler)
interrupted = 0


def open_and_close(gpu: RentGPU) -> None:
    """Open and close shells without end; in a function, because its shell must be collected when it is interrupted."""
    while True:
        with gpu.ssh(CONTAINER):
            pass


with RentGPU() as gpu:
    for _ in range(int(sys.argv[1])):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.random() * 0.15 + 1e-6)
            open_and_close(gpu)
        except KeyboardInterrupt:
            interrupted += 1
        # The first interrupt may come before there is a loop.
        assert portal._loop is None or not portal._loop._calls
    gc.collect()
    with gpu.ssh(CONTAINER) as shell:
        assert shell.run("true").ok
print(interrupted)
