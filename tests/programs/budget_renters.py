"""Rent in many processes from one shared budget, of which some are killed; print the exit codes of the others.

Arguments: how many processes, and how many of them are killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from datetime import timedelta
from typing import Any

import forked_renters
import preamble
from forked_renters import ANY, Gate, ends, fork

from netmind_rentgpu import InsufficientBudgetError, RentGPU

preamble.install()
forked_renters.install()
count, kills = int(sys.argv[1]), int(sys.argv[2])
start, dying = Gate(count), os.pipe()
os.write(dying[1], b"x" * kills)
os.set_blocking(dying[0], False)
WANTED: dict[str, Any] = {**ANY, "max_price": 1, "ttl": timedelta(hours=1)}


def is_to_die() -> bool:
    """Return True as often as processes are to be killed, in whichever of them asks first."""
    try:
        return os.read(dying[0], 1) == b"x"
    except BlockingIOError:
        return False


def work() -> None:
    """Rent as soon as the budget has room, use the rental, and leave it or be killed."""
    choose = random.Random()
    start.passed()
    while True:
        # A client of its own, whose first rental reaps what a killed process has left.
        try:
            with RentGPU() as gpu, gpu.rent(**WANTED, shared_budget="team") as rental:
                rental.run("true")
                time.sleep(choose.uniform(0, 0.3))
                if is_to_die():
                    os.kill(os.getpid(), signal.SIGKILL)
                return
        except InsufficientBudgetError:
            time.sleep(choose.uniform(0.05, 0.3))


pids = fork(count, work)
start.wait()
start.lift()
codes = ends(pids)
print(sorted(set(codes)), sum(code != 0 for code in codes))
