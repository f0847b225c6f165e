"""Interrupt rentals at random moments; nothing is rented after each of them.

Arguments: the seed, and how many rentals.
"""

from __future__ import annotations

import math
import random
import signal
import sys
import time

import preamble
from renter import WANTED, rented

from netmind_rentgpu import RentGPU
from netmind_rentgpu.sync import portal

preamble.install()
interrupts = random.Random(int(sys.argv[1]))
signal.signal(signal.SIGALRM, signal.default_int_handler)
interrupted = left = 0
gpu = RentGPU()
with gpu.rent(**WANTED) as rental:
    pass
# The shortest of three, because a rental may take long on a busy machine.
duration = math.inf
for _ in range(3):
    began = time.monotonic()
    with gpu.rent(**WANTED) as rental:
        rental.run("true")
    duration = min(duration, time.monotonic() - began)
for number in range(int(sys.argv[2])):
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, interrupts.random() * duration * 1.1 + 1e-6)
            with gpu.rent(**WANTED) as rental:
                rental.run("true")
            left += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupted += 1
    # The rental is deleted at once, although the program still refers to it.
    assert not rented(), number
    assert not portal._loop._calls
    assert gpu.rentals.list() == []
assert interrupted > 0, (interrupted, left)
