"""Print how many objects of their callers failed calls keep, without the garbage collector's help."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from contextlib import suppress

import preamble

from netmind_rentgpu import RentGPU, RentGPUError
from netmind_rentgpu.sync import portal

preamble.install()


class Big:
    """An object of a caller; counts its kind."""

    count = 0

    def __init__(self) -> None:
        Big.count += 1

    def __del__(self) -> None:
        Big.count -= 1


async def fail() -> None:
    """Raise an error of Python's."""
    raise ValueError


def call_once(call: Callable[[], object]) -> None:
    """Make a call that fails, with an object in the caller's frame."""
    big = Big()  # noqa: F841  # the call's error must not keep this frame
    with suppress(ValueError, RentGPUError):
        call()


gpu = RentGPU()
gc.disable()
for call in (lambda: portal.call(fail), lambda: gpu.containers.get(1), lambda: gpu.auths.create("short")):
    for _ in range(10):
        call_once(call)
    portal.call(asyncio.sleep, 0)
    print(Big.count)
