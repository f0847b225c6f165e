"""One call from another thread into an event loop. An interrupt may reach the waiting caller between any two bytecodes.

This module knows neither the event loop's thread nor the process; `portal` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any

from netmind_rentgpu.errors import ClientStateError

__all__ = ["PendingCall"]

_LONGEST_SLEEP = 0.5


class PendingCall:
    """A call of an asynchronous function in an event loop, with its result or error."""

    __slots__ = (
        "_arguments",
        "_began",
        "_context",
        "_finished",
        "_function",
        "_keywords",
        "_signal",
        "_task",
        "_withdrawn",
        "error",
        "result",
    )

    def __init__(
        self, function: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        self._function = function
        self._arguments = arguments
        self._keywords = keywords
        self._context = copy_context()
        self._task: asyncio.Task[None] | None = None
        self._began = False
        self._withdrawn = False
        self._finished = False
        # threading.Event is not used, because a signal that comes while it acquires its inner lock leaves the lock locked.
        self._signal: SimpleQueue[None] = SimpleQueue()
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def finished(self) -> bool:
        """True if the function has ended, or will never start."""
        return self._finished

    def wait(self) -> None:
        """Wait in the caller's thread until the call is finished. After an interrupt, the caller may wait again."""
        while not self._finished:
            try:  # noqa: SIM105  # the caller waits here, and suppress() is slower
                # The timeout is needed, because a signal that comes just before the sleep does not end it.
                self._signal.get(timeout=_LONGEST_SLEEP)
            except Empty:
                pass

    def start(self, under_way: set[PendingCall]) -> None:
        """Start the function, in the loop's thread. The call leaves the set when it is finished."""
        self._task = asyncio.get_running_loop().create_task(self._run(under_way), context=self._context)

    def cancel(self) -> None:
        """Cancel the function's task, in the loop's thread, by asyncio's own cancellation, so that its cleanup may await."""
        self._withdrawn = True
        if self._task is not None:
            self._task.cancel()
        if not self._began and not self._finished:
            # The call was not submitted, or its task has not run yet, so there is nothing to clean up.
            self._task = None
            self.finish()

    def finish(self, error: BaseException | None = None) -> None:
        """Finish the call and wake the caller, from any thread but the caller's."""
        self.error = error
        self._finished = True
        self._signal.put(None)

    def abandon(self) -> None:
        """Finish the call with an error, because its event loop has ended."""
        self.finish(ClientStateError("the call did not finish: its event loop has ended"))

    async def _run(self, under_way: set[PendingCall]) -> None:
        self._began = True
        error: BaseException | None = None
        try:
            self.result = await self._function(*self._arguments, **self._keywords)
        except asyncio.CancelledError as cancelled:
            if self._task is not None and self._task.cancelling() and not self._withdrawn:
                # The loop is ending. Wake the caller only after that, so that its next call can start another loop.
                return
            error = ClientStateError("the call was cancelled by code in its event loop")
            error.__cause__ = cancelled
        except BaseException as raised:  # noqa: BLE001  # the caller gets it; some errors would end the loop
            # Leave this frame out of the traceback, which goes on with the caller's frames.
            error = raised.with_traceback(raised.__traceback__.tb_next if raised.__traceback__ else None)
        under_way.discard(self)
        # Drop the task here, because its destruction runs Python code, which would lose an interrupt in the caller's thread.
        self._task = None
        try:
            self.finish(error)
        finally:
            del error, self  # break the reference cycle, which exists from Python 3.12 on
