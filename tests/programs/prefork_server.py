"""Fork workers that call a client which the parent has used, and end them by SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import preamble

from netmind_rentgpu import RentGPU

preamble.install()
gpu = RentGPU()
gpu.containers.get(1)
reading, writing = os.pipe()


def work() -> NoReturn:
    """Call until SIGTERM comes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gpu.containers.get(2)
    os.write(writing, b"x")
    while True:
        gpu.containers.get(2)


workers = []
for _ in range(3):
    if (pid := os.fork()) == 0:
        work()
    workers.append(pid)
for _ in workers:
    os.read(reading, 1)
    gpu.containers.get(1)
for pid in workers:
    os.kill(pid, signal.SIGTERM)
for pid in workers:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
gpu.containers.get(1)
