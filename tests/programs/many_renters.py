"""Rent and return in many processes at once; print their exit codes. Argument: how many."""

from __future__ import annotations

import sys

import forked_renters
import preamble
from forked_renters import ANY, Gate, ends, fork

from netmind_rentgpu import RentGPU

preamble.install()
forked_renters.install()
count = int(sys.argv[1])
start = Gate(count)


def work() -> None:
    """Rent, look and return."""
    start.passed()
    with RentGPU() as gpu, gpu.rent(**ANY) as rental:
        assert gpu.containers.get(rental.container.id).name == rental.name
        assert rental.name in [record.name for record in gpu.rentals.list()]


pids = fork(count, work)
start.wait()
start.lift()
print(set(ends(pids)))
