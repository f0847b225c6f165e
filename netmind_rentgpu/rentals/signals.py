"""SIGTERM and SIGHUP of a process whose clients handle signals: rentals are released, and the signal is passed on.

The handler starts a thread and returns, because it may have interrupted code that holds a lock which the release needs.
The thread waits for the release, and calls the main thread back: in its event loop, if one ran there when the signal came,
and else by the same signal. The main thread then calls the program's own handler, or restores the default disposition and
raises the signal. Until then, no block is left, so that the program does not end with the error of a released rental.

No lock and no `Future` is used, because a handler may interrupt its own thread while that holds the lock: `phase` is polled.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import signal
import sys
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
from netmind_rentgpu.errors import ClientStateError, ConfigurationError
from netmind_rentgpu.rentals.at_exit import release_elsewhere
from netmind_rentgpu.rentals.context import RentalContext, contexts_of_ended_loops, contexts_of_running_loops

__all__ = ["check_signals", "handle_signals", "until_passed_on"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

# In seconds.
_LONGEST_RELEASE: Final = 90.0
_LONGEST_ANSWER: Final = 2.0
_PAUSE: Final = 0.02
_NUMBERS: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Phase(Enum):
    """The phases of a signal's handling; the last is followed by the first."""

    IDLE = "no signal has come"
    RELEASING = "a signal has come, and a thread releases what is rented"
    RELEASED = "the thread has called the main thread back, which is about to pass the signal on"


class _Handling:
    """The signals that have come, and what is done about them.

    Attributes:
        phase: the present phase.
        previous: the handlers that were there before, by signal. A signal that was ignored is not among them.
        waiting: the signals that are to be passed on, in their order.
    """

    def __init__(self) -> None:
        self.previous: dict[int, Callable[[int, FrameType | None], Any] | int | signal.Handlers] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the signals that have come."""
        self.phase = Phase.IDLE
        self.waiting: list[int] = []

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal, in the main thread, between any two bytecodes of it."""
        match self.phase:
            case Phase.IDLE if _contexts():
                self.phase, self.waiting = Phase.RELEASING, [number]
                loop = asyncio._get_running_loop()  # noqa: SLF001  # public under this name alone
                try:
                    # No `Thread`, because an interrupt of its start would break its locks.
                    _thread.start_new_thread(self._release, (os.getpid(), loop))
                except RuntimeError as error:
                    _report(error)
                    self.pass_on(frame)
            case Phase.IDLE:
                self._pass_on(number, frame)
            case Phase.RELEASING if number in self.waiting:
                _interrupt()
            case Phase.RELEASING:
                self.waiting.append(number)
            case Phase.RELEASED:
                self.pass_on(frame)

    def pass_on(self, frame: FrameType | None = None) -> None:
        """Return the signals to the program, in the main thread."""
        waiting, self.waiting = self.waiting, []
        try:
            for number in waiting:
                self._pass_on(number, frame)
        finally:
            self.phase = Phase.IDLE

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Return a signal to the program: call its handler, or raise the signal with its default disposition."""
        previous = self.previous[number]
        if callable(previous):
            previous(number, frame)
            return
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        # The kernel ignores such a signal of the first process of a container.
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(128 + number)

    def _release(self, process_id: int, loop: asyncio.AbstractEventLoop | None) -> None:
        """Release all rentals, in a thread of its own, and call the main thread back.

        Args:
            loop: the event loop that the main thread has run when the signal came.
        """
        try:
            _release_rentals()
        except BaseException as error:  # noqa: BLE001  # no caller is left to raise it to
            _report(error)
        if process_id != os.getpid():
            return
        number = self.waiting[0]
        self.phase = Phase.RELEASED
        if loop is None or not _is_posted(loop, self.pass_on):
            loop = None
            _send_to_main_thread(number)
        began = time.monotonic()
        while self.phase is Phase.RELEASED and time.monotonic() < began + _LONGEST_RELEASE:
            if loop is not None and (not loop.is_running() or time.monotonic() > began + _LONGEST_ANSWER):
                loop = None
                _send_to_main_thread(number)
            elif loop is None and signal.getsignal(number) != self.on_signal:
                break  # the program has set another handler meanwhile
            time.sleep(_PAUSE)
        self.phase = Phase.IDLE


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
        # Once, because a handler that was set since may call this one. None is a handler that no Python code has set.
        if number not in _handling.previous and found not in (signal.SIG_IGN, None):
            _handling.previous[number] = found
            signal.signal(number, _handling.on_signal)
    _register(os.getpid())


@cache
def _register(process_id: int) -> None:
    del process_id  # only the cache's key, because a forked child registers for itself
    at_exit(_wait_until_passed_on)


def check_signals() -> None:
    """Check that a rental may begin; log a warning if the program has replaced a handler, whose signal releases nothing.

    Raises:
        ClientStateError: a signal is just ending the program.
    """
    if _handling.phase is not Phase.IDLE:
        raise ClientStateError("nothing more is rented, because a signal has come that ends the program")
    for number in _handling.previous:
        if signal.getsignal(number) != _handling.on_signal:
            logger.warning(
                "%s releases nothing, because another handler was set after the client was created with"
                " handle_signals=True; set it before",
                signal.Signals(number).name,
            )


async def until_passed_on() -> None:
    """Wait until a signal that has come was passed on, if one has."""
    while _handling.phase is not Phase.IDLE:  # noqa: ASYNC110  # a signal handler could not set an event
        await asyncio.sleep(_PAUSE)


def _wait_until_passed_on() -> None:
    while _handling.phase is not Phase.IDLE:
        time.sleep(_PAUSE)


def _contexts() -> list[RentalContext]:
    """Return the contexts with open rentals whose client handles signals."""
    found = [*contexts_of_running_loops(), *contexts_of_ended_loops()]
    return [context for context in found if context.handles_signals]


def _release_rentals() -> None:
    """Release all rentals, also those that another task makes meanwhile, and wait for that, but not without a limit."""
    deadline = time.monotonic() + _LONGEST_RELEASE
    while (contexts := _contexts()) and time.monotonic() < deadline:
        answering = [context for context in contexts if _answers(context)]
        release_elsewhere([context for context in contexts if context not in answering])
        releasing: list[Future[None]] = []
        for context in answering:
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


def _answers(context: RentalContext) -> bool:
    """Return True if the event loop of a context runs, and is not blocked by the program."""
    answered = threading.Event()
    if context.loop is None:
        return False
    try:
        context.loop.call_soon_threadsafe(answered.set)
    except RuntimeError:  # the loop has ended
        return False
    return context.loop.is_running() and answered.wait(_LONGEST_ANSWER)


def _is_posted(loop: asyncio.AbstractEventLoop, act: Callable[[], object]) -> bool:
    """Return True if an event loop will call a function. A second signal would call the handlers of that loop, too."""
    try:
        loop.call_soon_threadsafe(act)
    except RuntimeError:  # the loop has ended
        return False
    return True


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
