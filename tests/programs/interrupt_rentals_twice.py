"""Interrupt rentals twice or more at random moments, as many as the argument says; print whether any was interrupted."""

from __future__ import annotations

import logging
import random
import signal
import sys

import preamble
from renter import WANTED

import netmind_rentgpu
from netmind_rentgpu import RentGPU, RentGPUError

preamble.install()
# Imports come first, because an interrupt would otherwise come within them.
for name in netmind_rentgpu.__all__:
    getattr(netmind_rentgpu, name)
logging.disable()
interrupts = random.Random(5)
signal.signal(signal.SIGALRM, signal.default_int_handler)
gpu = RentGPU()
interrupted = 0
for _ in range(int(sys.argv[1])):
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, interrupts.random() * 0.4 + 1e-6, interrupts.random() * 0.03 + 1e-4)
            with gpu.rent(**WANTED) as rental:
                rental.run("true")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupted += 1
    except RentGPUError:
        pass
print(interrupted > 0)
