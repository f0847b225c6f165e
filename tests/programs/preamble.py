"""The beginning that all programs of the tests share."""

from __future__ import annotations

import signal
import sys
from typing import Any

from netmind_rentgpu.sync import portal


def install() -> None:
    """Repeat an interrupt that Python swallowed because it came in a finalizer."""
    report = sys.unraisablehook

    def repeat_interrupt(unraisable: Any) -> None:
        if unraisable.exc_type is not KeyboardInterrupt or portal._exiting:
            report(unraisable)
            return
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    sys.unraisablehook = repeat_interrupt
