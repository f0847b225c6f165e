"""Call the client where no thread can be started, and where only the thread that starts the loop thread can be."""

from __future__ import annotations

import _thread
import threading
from typing import Any

import preamble

from netmind_rentgpu import RentGPU, RentGPUError

preamble.install()
start = _thread.start_new_thread


def none(*_: Any, **__: Any) -> int:
    """Refuse each thread."""
    raise RuntimeError("can't start new thread")


def only_first(*arguments: Any) -> int:
    """Start this thread, and refuse the next."""
    _thread.start_new_thread = threading._start_new_thread = threading._start_joinable_thread = none
    return start(*arguments)


gpu = RentGPU()
for starting in (none, only_first):
    _thread.start_new_thread = starting
    try:
        gpu.containers.get(1)
    except RentGPUError as error:
        print(type(error).__name__, error)
