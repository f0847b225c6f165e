"""Waits for work that must finish even if the waiting task is cancelled.

This module uses anyio, because anyio's cancel scopes cancel a task in another way than asyncio.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

__all__ = ["retry_when_cancelled", "wait_shielded"]

Result = TypeVar("Result")


async def wait_shielded(future: asyncio.Future[Any], *, cancelled: Callable[[], object] | None = None) -> None:
    """Wait until a future is done, however often the wait is cancelled; raise the cancellation afterwards.

    The future has to be done within a limited time. The caller reads its result.

    Args:
        cancelled: a function that is called at each cancellation of the wait.
    """
    import anyio

    cancellation: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError as error:
                cancellation = error
                if cancelled is not None:
                    cancelled()
    if cancellation is not None:
        try:
            raise cancellation
        finally:
            del cancellation  # break the reference cycle


async def retry_when_cancelled(
    act: Callable[[], Awaitable[Result]], *, cancelled: Callable[[], object] | None = None, times: int = 5
) -> Result:
    """Run an action, and repeat it if a cancellation interrupts it; raise the last of `times` cancellations.

    The tasks that delete containers need this, because an event loop that ends cancels every task.

    Args:
        act: the action, which has to allow repetition.
        cancelled: a function that is called at each cancellation.
        times: the number of cancellations that end the repetition.
    """
    while True:
        try:
            return await act()
        except asyncio.CancelledError:
            times -= 1
            if cancelled is not None:
                cancelled()
            if times <= 0:
                raise
