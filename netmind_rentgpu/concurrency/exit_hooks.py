"""The end of the interpreter: what is to be done then, in whichever process, and what is to be said."""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import time
from collections.abc import Callable

from netmind_rentgpu.escaping import escaped

__all__ = [
    "at_exit",
    "at_exit_of_a_worker",
    "park_daemon_thread",
    "report_given_up",
    "wait_despite_interrupts",
    "warn_on_stderr_once",
]

_said: set[str] = set()


def at_exit(act: Callable[[], object]) -> None:
    """Have something done when the interpreter exits, which may be begun again.

    An interrupt can come in the moment before it minds them; `atexit` tells of that, and goes on to what is registered next.
    """

    def act_once() -> None:
        act()
        atexit.unregister(act_once)

    atexit.register(act_once)
    atexit.register(act_once)


def at_exit_of_a_worker(act: Callable[[], object]) -> None:
    """Have something done when this process ends, if it is one of multiprocessing's: those do not run `atexit`."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        sys.modules["multiprocessing.util"].Finalize(None, act, exitpriority=0)


def warn_on_stderr_once(text: str) -> None:
    """Say, once, what nobody is left to be told by an error, unless the log is shown somewhere, which has it, too."""
    if text in _said:
        return
    _said.add(text)
    logger: logging.Logger | None = logging.getLogger("netmind_rentgpu")
    while logger is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            return
        logger = logger.parent if logger.propagate else None
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]  # without a console there is none
        sys.stderr.write(f"netmind_rentgpu: {escaped(text)}\n")


def wait_despite_interrupts(wait: Callable[[], object]) -> None:
    """Wait for the end of what is being deleted. As everywhere, it takes two interrupts to give that up."""
    try:
        try:
            wait()
        except KeyboardInterrupt:
            wait()
    except KeyboardInterrupt:
        report_given_up()


def report_given_up() -> None:
    """Say that somebody has interrupted the end twice."""
    warn_on_stderr_once("interrupted twice while closing; what is still rented is on record, for reap")


def park_daemon_thread(seconds: float) -> None:
    """Keep a daemon thread from going on, and complaining, while the interpreter is taken apart.

    Not for ever, for somebody may wait for that thread.
    """
    if threading.current_thread() is not threading.main_thread():
        time.sleep(seconds)
