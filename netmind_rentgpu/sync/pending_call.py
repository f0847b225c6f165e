"""One call from another thread into an event loop, and back: whoever waits may be interrupted between any two bytecodes.

It knows neither the thread nor the process; see `portal`.
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
    """An asynchronous function on its way through the loop: what is called, and what came of it."""

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
        # Not threading.Event: a signal that arrives while it takes its inner lock leaves that locked for ever.
        self._signal: SimpleQueue[None] = SimpleQueue()
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def finished(self) -> bool:
        """The function has ended, or never will begin."""
        return self._finished

    def wait(self) -> None:
        """Wait until it is finished. In the caller's thread; may be interrupted, and called again then."""
        while not self._finished:
            try:  # noqa: SIM105  # this is waited for in, and has to be quick
                # A signal that comes in the moment before this sleeps does not wake it.
                self._signal.get(timeout=_LONGEST_SLEEP)
            except Empty:
                pass

    def start(self, under_way: set[PendingCall]) -> None:
        """Begin; leave the set when it is finished. In the loop's thread."""
        self._task = asyncio.get_running_loop().create_task(self._run(under_way), context=self._context)

    def cancel(self) -> None:
        """Have the function's task cancelled, natively, so that its cleanup may await. In the loop's thread."""
        self._withdrawn = True
        if self._task is not None:
            self._task.cancel()
        if not self._began and not self._finished:
            # Submitting was interrupted, or the task had not had its first turn: there is nothing to clean up.
            self._task = None
            self.finish()

    def finish(self, error: BaseException | None = None) -> None:
        """Tell the caller. In any thread but the caller's."""
        self.error = error
        self._finished = True
        self._signal.put(None)

    def abandon(self) -> None:
        """Tell the caller that there is no loop any more to run in."""
        self.finish(ClientStateError("the event loop that the call was to run in has ended"))

    async def _run(self, under_way: set[PendingCall]) -> None:
        self._began = True
        error: BaseException | None = None
        try:
            self.result = await self._function(*self._arguments, **self._keywords)
        except asyncio.CancelledError as cancelled:
            if self._task is not None and self._task.cancelling() and not self._withdrawn:
                # The loop is ending. The caller is told when it has ended, and a call would start another.
                return
            error = ClientStateError("the call was cancelled from within")
            error.__cause__ = cancelled
        except BaseException as raised:  # noqa: BLE001  # the caller gets it; some of them would end the loop
            # The traceback goes on with the caller's frames, so this one is left out.
            error = raised.with_traceback(raised.__traceback__.tb_next if raised.__traceback__ else None)
        under_way.discard(self)
        # A task's end runs Python code, in which an interrupt would be lost, so it must not come in the caller's thread.
        self._task = None
        try:
            self.finish(error)
        finally:
            # The error's traceback leads to this frame (from 3.12 on), which must not lead back.
            del error, self
