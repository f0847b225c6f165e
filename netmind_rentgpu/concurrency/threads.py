"""Blocking work in threads of its own, also while the interpreter exits.

The event loop's own threads may all be busy, accept no work once the main thread has ended, and delay the exit.
"""

from __future__ import annotations

import _thread
import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from netmind_rentgpu.concurrency.running_loop import running_loop

__all__ = ["revive", "run_in_thread", "start_thread"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def start_thread(work: Callable[[], object]) -> None:
    """Run a function, which must not raise, in a new thread; or in this one if no thread can be started any more."""

    def begin() -> None:
        # Enable tracing, as `threading` does, for debuggers and coverage tools.
        if (trace := threading.gettrace()) is not None:
            sys.settrace(trace)
        work()

    try:
        # Not `threading.Thread`, whose `start` waits until the thread runs.
        _thread.start_new_thread(begin, ())
    except RuntimeError:
        work()


def run_in_thread(work: Callable[[], Result]) -> asyncio.Future[Result]:
    """Run a function in a thread of its own; return a future of its result."""
    loop = running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def run() -> None:
        result: Any = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as failure:  # noqa: BLE001  # the caller gets it
            error = failure
        # The loop may be closed by now.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(deliver, result, error)
        del error  # break the reference cycle

    def deliver(result: Any, error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    start_thread(run)
    return done


def revive(loop: asyncio.AbstractEventLoop) -> None:
    """Replace the executor of an event loop, which may accept no work any more, for libraries that need one."""
    loop.set_default_executor(_Threads())


class _Threads(ThreadPoolExecutor):
    """An executor that starts a thread for each piece of work."""

    def submit(
        self, fn: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  # the caller gets it
                future.set_exception(error)

        start_thread(run)
        return future
