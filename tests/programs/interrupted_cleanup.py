"""Raise one exception from a signal handler during a call and another during the call's cleanup; print the outcome.

Arguments: the names of the two exceptions.
"""

from __future__ import annotations

import asyncio
import builtins
import os
import signal
import sys
from typing import Any

import preamble

from netmind_rentgpu.sync import portal

preamble.install()
first, second = (getattr(builtins, name) for name in sys.argv[1:])


def on_first(*_: Any) -> None:
    """Interrupt the call."""
    raise first


def on_second(*_: Any) -> None:
    """Interrupt the cleanup."""
    raise second


signal.signal(signal.SIGUSR1, on_first)
signal.signal(signal.SIGUSR2, on_second)


async def work() -> None:
    """Wait for both signals."""
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.Event().wait()
    finally:
        os.kill(os.getpid(), signal.SIGUSR2)
        await asyncio.Event().wait()


try:
    portal.call(work)
except BaseException as error:  # noqa: BLE001  # each of the two exceptions may be raised
    print(type(error).__name__, error.__context__ and type(error.__context__).__name__)
