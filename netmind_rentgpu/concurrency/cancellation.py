"""Waiting for what must come to its end, whoever cancels the waiting. Knows anyio, whose scopes cancel in their own way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

__all__ = ["retry_when_cancelled", "wait_shielded"]

Result = TypeVar("Result")


async def wait_shielded(future: asyncio.Future[Any], *, cancelled: Callable[[], object] | None = None) -> None:
    """Wait for something that takes only so long, whoever cancels that, and however often; be cancelled then.

    What came of it is for the caller to look at.

    Args:
        cancelled: called each time that somebody cancels the waiting.
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
            del cancellation  # its traceback leads here


async def retry_when_cancelled(
    act: Callable[[], Awaitable[Result]], *, cancelled: Callable[[], object] | None = None, times: int = 5
) -> Result:
    """Do something that may be begun again, in spite of being cancelled; be cancelled only when that is too often.

    For the task of a deletion, which an ending event loop cancels as it does every other.

    Args:
        cancelled: called each time that somebody cancels it.
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
