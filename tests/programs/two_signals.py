"""Send the main thread two signals at once during a call, again and again; each time the call is cancelled."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any

import preamble

from netmind_rentgpu.sync import portal

preamble.install()


class Stop(BaseException):
    """Raised by the signal handlers."""


def stop(*_: Any) -> None:
    """Interrupt the call."""
    raise Stop


signal.signal(signal.SIGUSR1, stop)
signal.signal(signal.SIGUSR2, stop)
main = threading.main_thread().ident
assert main is not None
began, ended = threading.Event(), list[int]()


async def work() -> None:
    """Wait to be cancelled."""
    try:
        began.set()
        await asyncio.Event().wait()
    finally:
        ended.append(1)


def send_both() -> None:
    """Send both signals once the call has begun."""
    began.wait()
    signal.pthread_kill(main, signal.SIGUSR1)
    signal.pthread_kill(main, signal.SIGUSR2)


for _ in range(30):
    began, ended = threading.Event(), []
    thread = threading.Thread(target=send_both)
    thread.start()
    try:  # noqa: SIM105  # the second signal must not come within a frame of contextlib's
        portal.call(work)
    except Stop:
        pass
    thread.join()
    assert ended
    assert not portal._loop._calls
