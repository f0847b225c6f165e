"""Functions for the interpreter's exit: callbacks, warnings, and waits that interrupts do not end."""

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
    "report_problem",
    "wait_despite_interrupts",
    "warn_on_stderr_once",
]

_warned: set[str] = set()


def at_exit(act: Callable[[], object]) -> None:
    """Register a function for the interpreter's exit, where it is called once more if an error ended the first call.

    An interrupt may end the call before the function handles interrupts. `atexit` then prints the interrupt, and goes on to
    the next registered function.
    """

    def act_once() -> None:
        act()
        atexit.unregister(act_once)

    atexit.register(act_once)
    atexit.register(act_once)


def at_exit_of_a_worker(act: Callable[[], object]) -> None:
    """Register a function for the end of a multiprocessing worker, which does not run `atexit`; ignore it elsewhere."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        sys.modules["multiprocessing.util"].Finalize(None, act, exitpriority=0)


def warn_on_stderr_once(text: str) -> None:
    """Write a warning to stderr, once, for a problem that no caller is left to catch; skip it if the log has a handler."""
    if text in _warned:
        return
    _warned.add(text)
    logger: logging.Logger | None = logging.getLogger("netmind_rentgpu")
    while logger is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            return
        logger = logger.parent if logger.propagate else None
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]  # None without a console
        sys.stderr.write(f"netmind_rentgpu: {escaped(text)}\n")


def wait_despite_interrupts(wait: Callable[[], object]) -> None:
    """Wait until deletions have ended; only a second interrupt ends the wait early, as everywhere in the package."""
    try:
        try:
            wait()
        except KeyboardInterrupt:
            wait()
    except KeyboardInterrupt:
        report_given_up()


def report_given_up() -> None:
    """Report that a second interrupt has ended the deletions at exit."""
    report_problem("interrupted twice while closing: what is still rented stays on record; rentals.reap() deletes it")


def report_problem(text: str) -> None:
    """Log an error that no caller is left to catch, and write it to stderr where no log shows it."""
    logging.getLogger("netmind_rentgpu").error("%s", text)
    warn_on_stderr_once(text)


def park_daemon_thread(seconds: float) -> None:
    """Suspend a daemon thread, so that it neither goes on nor prints errors while the interpreter exits.

    The time is limited, because another thread may wait for this one.
    """
    if threading.current_thread() is not threading.main_thread():
        time.sleep(seconds)
