"""Signals that end the command line: the first stops it in order, the second at once. A signal that is ignored stays so."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from enum import Enum
from types import FrameType
from typing import Final, TypeVar, cast

from netmind_rentgpu.cli.exit_codes import code_of_signal

__all__ = ["Phase", "StoppedError", "Stopping"]

Returned = TypeVar("Returned")

_NAMES: Final = ("SIGINT", "SIGTERM", "SIGHUP")
# Seconds within which a second signal counts as the first, because `timeout` and some shells send each one twice.
_SAME: Final = 0.5


class StoppedError(Exception):
    """A signal has ended the command.

    Attributes:
        number: the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name} has ended this command")
        self.number = number


class Phase(Enum):
    """The phases of a run, by which a first signal acts."""

    STARTING = "no work has begun: the program ends"
    WORKING = "the work is cancelled"
    ASKING = "the question is given up, and the work with it"
    ENDING = "the work is done, and its result stands: nothing happens"


class Stopping:
    """The handling of the signals for one run of the program. From `run` on, it lasts until the program's end.

    Attributes:
        phase: the present phase.
        number: the number of the first signal that has come; None before.
        on_first: takes the number of the first signal, unless the work is done; it may only write.
        on_second: takes the number of the second signal, and returns the exit code; it may only write.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.phase: Phase = Phase.STARTING
        self.number: int | None = None
        self.on_first: Callable[[int], object] = _nothing
        self.on_second: Callable[[int], int] = code_of_signal
        self._clock = clock
        self._came_at = 0.0
        self._cancel: Callable[[], object] = lambda: None

    def run(self, work: Callable[[], Awaitable[Returned]]) -> Returned:
        """Run work in an event loop, and cancel it when the first signal comes.

        The signals are handled from now on, in the main thread, but for those that were ignored before.

        Raises:
            StoppedError: a signal has ended the work.
        """
        # Here, because this import takes longer than the help of a command.
        import asyncio

        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                signal.signal(number, self._on_signal)
        try:
            return asyncio.run(self._run(work))
        except asyncio.CancelledError:
            if self.number is None:
                raise
            raise StoppedError(self.number) from None
        finally:
            self.phase = Phase.ENDING

    async def _run(self, work: Callable[[], Awaitable[Returned]]) -> Returned:
        import asyncio

        loop, task = asyncio.get_running_loop(), cast("asyncio.Task[Returned]", asyncio.current_task())
        # From within the loop, because a signal handler runs between any two bytecodes of it.
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        self.phase = Phase.WORKING
        try:
            return await work()
        finally:
            self.phase = Phase.ENDING

    def end(self) -> None:
        """Keep the result of the work, even if a signal comes from now on."""
        self.phase = Phase.ENDING

    @contextmanager
    def asking(self) -> Generator[None]:
        """Raise `StoppedError` at once when a signal comes, because a wait for an answer cannot be cancelled."""
        before, self.phase = self.phase, Phase.ASKING
        try:
            if self.number is not None:  # it came a moment ago
                raise StoppedError(self.number)
            yield
        finally:
            self.phase = before

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.number is not None:
            if self._clock() > self._came_at + _SAME:
                os._exit(self.on_second(number))
            return
        self.number, self._came_at = number, self._clock()
        match self.phase:
            case Phase.STARTING | Phase.ASKING:
                raise StoppedError(number)
            case Phase.WORKING:
                self._cancel()
                self.on_first(number)
            case Phase.ENDING:
                pass


def _nothing(number: int) -> None:
    del number
