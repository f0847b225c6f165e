"""The block of an object that has rented something, which an interrupt may cut short at any moment."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import Any, Protocol, Self

from netmind_rentgpu.errors import ClientStateError, ReleaseError, RentGPUError
from netmind_rentgpu.sync.portal import call

__all__ = ["RentingBlock"]


class _AsyncBlock(Protocol):
    """The asynchronous object."""

    async def open(self) -> Any: ...
    async def close(self) -> None: ...
    async def __aenter__(self) -> Any: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...


class RentingBlock:
    """The part of a rental, or of a fleet, that enters and leaves its block."""

    def __init__(self) -> None:
        self._entries = count()

    @property
    def _async(self) -> _AsyncBlock:
        raise NotImplementedError

    def close(self) -> None:
        """Delete what was rented."""
        call(self._async.close)

    def __enter__(self) -> Self:
        return self._enter(lambda entered: entered.__aenter__())

    def _enter(self, enter: Callable[[Any], Coroutine[Any, Any, object]]) -> Self:
        entered, is_first = self._async, False
        try:
            is_first = next(self._entries) == 0
            call(enter, entered)
        except BaseException as error:
            if not is_first:
                # Another call entered this object first, and its caller may be using it.
                raise
            # It may already have been entered when the interrupt came.
            self._note_what_is_kept(error)
            self._close_after(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            call(self._async.__aexit__, kind, error, traceback)
        except BaseException as raised:
            # The interrupt may have come before the release was started.
            self._close_after(raised)
            raise

    def _note_what_is_kept(self, error: BaseException) -> None:
        """Add a note of what the SDK does not delete to an error."""

    def _close_after(self, error: BaseException) -> None:
        """Close the object after a possible interrupt, and note on the error if something could not be deleted."""
        try:
            with suppress(ClientStateError):
                self.close()
        except RentGPUError as problem:
            is_known = problem is error or str(problem) in getattr(error, "__notes__", ())
            if isinstance(problem, ReleaseError) and not is_known:
                error.add_note(str(problem))
