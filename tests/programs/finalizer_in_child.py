"""Call the client from finalizers that run while forked children copy the client."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress

import preamble

from netmind_rentgpu import ClientStateError, RentGPU

preamble.install()


class Late:
    """An object in a reference cycle, whose finalizer calls the client."""

    me: Late

    def __del__(self) -> None:
        # Some are collected in the loop's thread, which may not call.
        with suppress(ClientStateError):
            gpu.containers.get(1)


gpu = RentGPU()
gpu.containers.get(1)
gc.set_threshold(10)
for _ in range(10):
    if (pid := os.fork()) == 0:
        for _ in range(3):
            late = Late()
            late.me = late
            del late
            gpu.containers.get(1)
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
