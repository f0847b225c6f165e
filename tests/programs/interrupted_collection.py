"""Interrupt the collection of a handle at each of its steps in turn; the handle's value is closed all the same."""

from __future__ import annotations

import sys
import weakref
from typing import Any

import preamble
from interrupting import Interrupter

from netmind_rentgpu.sync import portal

preamble.install()


class Value:
    """A value that records that it was closed."""

    closed = False

    async def close(self) -> None:
        """Record the closing."""
        self.closed = True


async def nothing() -> None:
    """Return after all earlier work of the loop has run."""


swallowed: list[Any] = []
sys.unraisablehook = lambda unraisable: swallowed.append(unraisable.exc_type)
portal.call(nothing)
interrupter = Interrupter(portal.__file__, weakref.__file__)
for first in range(1, 1000):
    interrupter.moment, value = first, Value()
    held = portal.OwnedHandle(value)
    sys.settrace(interrupter.trace)
    del held
    sys.settrace(None)
    portal.call(nothing)
    assert value.closed or value in portal._open.values(), first
    if interrupter.moment > 0:
        break
assert value.closed
assert swallowed == [KeyboardInterrupt] * (first - 1)
print(first > 20)
