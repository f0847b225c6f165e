"""Interrupt the exit of forked children, each one step later than the child before; open values are closed all the same.

Each child exits with a loop thread of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
from contextlib import suppress

import preamble
from interrupting import Interrupter

from netmind_rentgpu.concurrency import exit_hooks
from netmind_rentgpu.sync import portal

preamble.install()
NOT_INTERRUPTED, INTERRUPTED, NOT_CLOSED = 7, 8, 9


class Value:
    """A value whose closing takes a moment."""

    closed = False

    async def close(self) -> None:
        """Wait, then record the closing."""
        await asyncio.sleep(0.01)
        self.closed = True


async def nothing() -> None:
    """Return at once."""


def exit_interrupted(interrupter: Interrupter) -> int:
    """Run the exit functions, interrupted, and return whether the value was closed."""
    value = Value()
    held = portal.OwnedHandle(value)  # noqa: F841  # keeps the value open until the exit
    portal.call(nothing)
    # An interrupt before the first exit function has begun is reported by Python.
    sys.unraisablehook = lambda unraisable: None
    sys.settrace(interrupter.trace)
    with suppress(KeyboardInterrupt):
        atexit._run_exitfuncs()
    sys.settrace(None)
    return (NOT_INTERRUPTED if interrupter.moment > 0 else INTERRUPTED) if value.closed else NOT_CLOSED


portal.call(nothing)
interrupter = Interrupter(portal.__file__, exit_hooks.__file__)
for moment in range(1, 1000):
    if (pid := os.fork()) == 0:
        interrupter.moment = moment
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(exit_interrupted(interrupter))
    if (status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) != INTERRUPTED:
        break
print(status, moment > 40)
