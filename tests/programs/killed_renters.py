"""Kill some of many renting processes and reap; print the exit codes of the others.

Arguments: how many processes, and how many of them are killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys

import forked_renters
import preamble
from forked_renters import ANY, Gate, ends, fork
from renter import on_record, rented

from netmind_rentgpu import RentGPU

preamble.install()
forked_renters.install()
count, kills = int(sys.argv[1]), int(sys.argv[2])
held, over = Gate(count), Gate(count - kills)


def work() -> None:
    """Rent, wait, and use the rental while the killed are reaped."""
    with RentGPU() as gpu, gpu.rent(**ANY) as rental:
        held.passed()
        assert gpu.containers.get(rental.container.id).name == rental.name
        assert rental.run("echo usable").stdout == "usable\n"
        over.passed()


pids = fork(count, work)
held.wait()
assert len(set(rented())) == count
killed = set(random.sample(pids, kills))
records = {record.owner.process_id: record.container_id for record in on_record() if record.owner}
assert records.keys() == set(pids)
for pid in killed:
    os.kill(pid, signal.SIGKILL)
assert ends(killed) == [-signal.SIGKILL] * kills

# The others go on only when the reaper has ended.
with RentGPU() as gpu:
    report = gpu.rentals.reap(wait=True)
    assert report.clean, report
    assert len(report.deleted) == kills, report
    assert not report.gone, report
    assert set(rented()) == {records[pid] for pid in pids if pid not in killed}
    assert gpu.rentals.reap(wait=True).deleted == ()
held.lift()
over.wait()
assert len(rented()) == count - kills
over.lift()
print(set(ends(pid for pid in pids if pid not in killed)))
