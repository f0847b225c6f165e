"""Run the emulator's command where what only POSIX has is missing: python emulator_without_posix.py win32 --port 0."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import hidden_posix  # noqa: F401  # before all others: it hides

from netmind_rentgpu.emulator.__main__ import main


def add_signal_handler(*_arguments: Any) -> None:
    raise NotImplementedError


asyncio.SelectorEventLoop.add_signal_handler = add_signal_handler  # type: ignore[assignment]  # as Windows' loops have it
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
status = main(sys.argv[2:])
assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
sys.exit(status)
