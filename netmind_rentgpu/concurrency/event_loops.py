"""Which event loop the synchronous client runs: the only file that knows uvloop."""

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
"""Those that were made here: at the interpreter's exit, whoever made one ends it, and what is open in it."""


class _SelectorLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, but for the threads that work for it.

    Those of `concurrent.futures` take nothing more once the main thread has ended, and hold up the interpreter's exit.
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
    """Choose the loop. A policy that was set for the program's own loops is not meant for this one.

    Raises:
        ConfigurationError: uvloop is asked for and missing.
    """
    kind: Callable[[], asyncio.AbstractEventLoop] = _SelectorLoop
    if os.environ.get("NETMIND_RENTGPU_UVLOOP") == "1":
        try:
            kind = importlib.import_module("uvloop").new_event_loop
        except ImportError as error:
            raise ConfigurationError(
                f"NETMIND_RENTGPU_UVLOOP=1 asks for uvloop, which cannot be had: {error}"
            ) from error

    def make() -> asyncio.AbstractEventLoop:
        loop = kind()
        our_own.add(loop)
        return loop

    return make
