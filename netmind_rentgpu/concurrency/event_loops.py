"""The event loop of the synchronous client. No other file knows uvloop."""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack
from weakref import WeakSet

from netmind_rentgpu.concurrency.threads import run_in_thread
from netmind_rentgpu.errors import ConfigurationError

__all__ = ["loop_factory", "our_own"]

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

our_own: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
"""The loops that `loop_factory` made. At exit, the code that runs such a loop ends the loop and all that is open in it."""


class _SelectorLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, except that blocking work runs in the threads of `run_in_thread`.

    The threads of `concurrent.futures` accept no work once the main thread has ended, and delay the interpreter's exit.
    """

    async def getaddrinfo(self, *arguments: Any, **keywords: Any) -> Any:
        return await run_in_thread(lambda: socket.getaddrinfo(*arguments, **keywords))

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Arguments]], Result], *args: *Arguments
    ) -> asyncio.Future[Result]:
        if executor is not None:
            return super().run_in_executor(executor, func, *args)
        return run_in_thread(lambda: func(*args))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return a function that creates the loop, without regard to the event loop policy that the program has set.

    Raises:
        ConfigurationError: the environment asks for uvloop, and uvloop cannot be imported.
    """
    kind: Callable[[], asyncio.AbstractEventLoop] = _SelectorLoop
    if os.environ.get("NETMIND_RENTGPU_UVLOOP") == "1":
        try:
            kind = importlib.import_module("uvloop").new_event_loop
        except ImportError as error:
            raise ConfigurationError(
                f"could not import uvloop, which NETMIND_RENTGPU_UVLOOP=1 asks for: {error}; "
                "install uvloop or unset the variable"
            ) from error

    def make() -> asyncio.AbstractEventLoop:
        loop = kind()
        our_own.add(loop)
        return loop

    return make
