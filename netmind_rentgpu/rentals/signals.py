"""SIGTERM and SIGHUP of a process whose clients handle signals: rentals are released, and the signal is passed on.

The handler starts a thread and returns, because it may have interrupted code that holds a lock which the release needs.
The thread waits for the release, and sends the signal to the main thread once more. The handler then calls the program's
own handler, or restores the default disposition and raises the signal. Until then, no block of such a client is left, so
that the program does not end with the error of a released rental instead.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from enum import Enum
from functools import cache
from types import FrameType
from typing import Any, Final

from netmind_rentgpu.concurrency.exit_hooks import at_exit, report_problem
from netmind_rentgpu.concurrency.forks import at_fork_in_child
from netmind_rentgpu.errors import ConfigurationError
from netmind_rentgpu.rentals.at_exit import release_of_ended_loops
from netmind_rentgpu.rentals.context import RentalContext, contexts_of_running_loops

__all__ = ["check_handlers", "handle_signals", "until_passed_on", "wait_until_passed_on"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_LONGEST_RELEASE: Final = 90.0
_NUMBERS: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Phase(Enum):
    """The phases of a signal's handling; the last is followed by the first."""

    IDLE = "no signal has come"
    RELEASING = "a signal has come, and a thread releases what is rented"
    RELEASED = "the thread has sent the signal once more, and the handler is about to pass it on"


class _Handling:
    """The signals that have come, and what is done about them.

    Attributes:
        phase: the present phase.
        previous: the handlers that were there before, by signal. A signal that was ignored is not among them.
        waiting: the signals that are to be passed on, in their order.
        passed_on: is done once they were passed on.
    """

    def __init__(self) -> None:
        self.previous: dict[int, Callable[[int, FrameType | None], Any] | int | signal.Handlers] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the signals that have come."""
        self.phase = Phase.IDLE
        self.waiting: list[int] = []
        self.passed_on: Future[None] = Future()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal, in the main thread, between any two bytecodes of it."""
        match self.phase:
            case Phase.IDLE:
                if not _contexts():
                    self._pass_on(number, frame)
                    return
                self.phase, self.waiting, self.passed_on = Phase.RELEASING, [number], Future()
                # No `Thread`, because an interrupt of its start would break its locks.
                _thread.start_new_thread(self._release, (os.getpid(),))
            case Phase.RELEASING:
                if number not in self.waiting:
                    self.waiting.append(number)
                _interrupt()
            case Phase.RELEASED:
                self.phase = Phase.IDLE
                try:
                    for waiting in self.waiting:
                        self._pass_on(waiting, frame)
                finally:
                    self.passed_on.set_result(None)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Return a signal to the program: call its handler, or raise the signal with its default disposition."""
        previous = self.previous[number]
        if callable(previous):
            previous(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _release(self, process_id: int) -> None:
        """Release all rentals, in a thread of its own, and send the first signal to the main thread once more."""
        try:
            _release_rentals()
        except BaseException as error:  # noqa: BLE001  # no caller is left to raise it to
            _report(error)
        finally:
            if process_id == os.getpid():
                self.phase = Phase.RELEASED
                _send_to_main_thread(self.waiting[0])


_handling: Final = _Handling()
at_fork_in_child(_handling.reset)


def handle_signals() -> None:
    """Handle SIGTERM and SIGHUP in this process from now on, unless they are ignored.

    Raises:
        ConfigurationError: this is not the main thread, which alone can set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfigurationError("handle_signals=True works in the main thread only; create the client there")
    for number in _NUMBERS:
        found = signal.getsignal(number)
        # None is a handler that no Python code has set, and that none can restore.
        if found is not None and found not in (signal.SIG_IGN, _handling.on_signal):
            _handling.previous[number] = found
            signal.signal(number, _handling.on_signal)
    _register(os.getpid())


@cache
def _register(process_id: int) -> None:
    del process_id  # only the cache's key, because a forked child registers for itself
    at_exit(wait_until_passed_on)


def check_handlers() -> None:
    """Log a warning if the program has replaced a handler, so that its signal releases nothing."""
    for number in _handling.previous:
        if signal.getsignal(number) != _handling.on_signal:
            logger.warning(
                "%s releases nothing, because another handler was set after the client was created with"
                " handle_signals=True; set it before",
                signal.Signals(number).name,
            )


async def until_passed_on() -> None:
    """Wait until a signal that has come was passed on, if one has."""
    if _handling.phase is not Phase.IDLE:
        # Shielded, because a cancellation of this wait must not cancel what others wait for.
        await asyncio.shield(asyncio.wrap_future(_handling.passed_on))


def wait_until_passed_on() -> None:
    """Wait in the main thread until a signal that has come was passed on, if one has."""
    if _handling.phase is not Phase.IDLE:
        _handling.passed_on.result(_LONGEST_RELEASE)


def _contexts() -> list[RentalContext]:
    """Return the contexts with open rentals whose client handles signals."""
    return [context for context in contexts_of_running_loops() if context.handles_signals]


def _release_rentals() -> None:
    """Release all rentals, and wait for that, but not without a limit."""
    deadline = time.monotonic() + _LONGEST_RELEASE
    releasing: list[Future[None]] = []
    for context in _contexts():
        if context.loop is not None:
            release = context.release_all()
            try:
                releasing.append(asyncio.run_coroutine_threadsafe(release, context.loop))
            except RuntimeError:  # the loop has ended a moment ago
                release.close()
    _interrupt()
    for released in releasing:
        try:
            released.result(max(0.0, deadline - time.monotonic()))
        except (Exception, CancelledError) as error:  # noqa: BLE001  # the others are to be released all the same
            _report(error)
    release_of_ended_loops()


def _report(error: BaseException) -> None:
    cause = str(error) or type(error).__name__
    report_problem(f"what is rented could not be released; it is on record: {cause}")


def _interrupt() -> None:
    """Count an interrupt of the deletions, as Ctrl-C is; from the second on, each ends after the attempt under way."""
    for context in _contexts():
        if context.loop is not None:
            with suppress(RuntimeError):  # the loop has ended a moment ago
                context.loop.call_soon_threadsafe(context.interrupt)


def _send_to_main_thread(number: int) -> None:
    ident = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and ident is not None:
        # To that thread, because only then a system call in which it waits is interrupted.
        signal.pthread_kill(ident, number)
    else:
        signal.raise_signal(number)
