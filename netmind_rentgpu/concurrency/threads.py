"""Blocking work in a thread of its own, also while the interpreter ends.

The event loop's own threads may all be busy, take nothing more once the main thread has ended, and hold up the exit.
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
    """Have work done in a thread; here and now where none can be started any more. It must not raise."""

    def begin() -> None:
        # As the threads of `threading` do, for debuggers and those who measure coverage.
        if (trace := threading.gettrace()) is not None:
            sys.settrace(trace)
        work()

    try:
        # So that nobody waits until the thread runs.
        _thread.start_new_thread(begin, ())
    except RuntimeError:
        work()


def run_in_thread(work: Callable[[], Result]) -> asyncio.Future[Result]:
    """Have work done in a thread; return what will come of it."""
    loop = running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def do() -> None:
        result: Any = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as failure:  # noqa: BLE001  # for whoever asked
            error = failure
        # By now the loop may have been closed.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, result, error)
        # The error's traceback holds this frame, which must not hold the error.
        del error

    def tell(result: Any, error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    start_thread(do)
    return done


def revive(loop: asyncio.AbstractEventLoop) -> None:
    """Give an event loop an executor that works, for libraries that need one: its own takes nothing more."""
    loop.set_default_executor(_Threads())


class _Threads(ThreadPoolExecutor):
    """Has a thread for each piece of work."""

    def submit(
        self, fn: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        future: Future[Result] = Future()

        def do() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  # for whoever asked
                future.set_exception(error)

        start_thread(do)
        return future
