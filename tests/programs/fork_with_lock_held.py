"""Fork while another thread holds the lock of the loop thread's module, and call the client in the child."""

from __future__ import annotations

import os
import sys
import threading

import preamble

from netmind_rentgpu import RentGPU
from netmind_rentgpu.sync import portal

preamble.install()
gpu = RentGPU()
taken, over = threading.Event(), threading.Event()


def hold_lock() -> None:
    """Hold the lock until the child has ended."""
    with portal._lock:
        taken.set()
        over.wait()


thread = threading.Thread(target=hold_lock)
thread.start()
taken.wait()
if (pid := os.fork()) == 0:
    assert gpu.containers.get(2).id == 1
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
over.set()
thread.join()
print(gpu.containers.get(1).id)
