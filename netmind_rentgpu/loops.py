"""Which event loop the bridge runs: the only file that knows uvloop."""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from netmind_rentgpu.errors import ConfigurationError

__all__ = ["loop_factory"]


class _SelectorLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, but for the threads in which names are looked up.

    Those of `concurrent.futures` take nothing more once the main thread has ended, and hold up the interpreter's exit.
    """

    async def getaddrinfo(self, *arguments: Any, **keywords: Any) -> Any:
        found: asyncio.Future[Any] = self.create_future()

        def look_up() -> None:
            try:
                result, error = socket.getaddrinfo(*arguments, **keywords), None
            except Exception as failure:  # noqa: BLE001  # for whoever asked
                result, error = [], failure
            # By now the loop may have been closed.
            with suppress(RuntimeError):
                self.call_soon_threadsafe(tell, result, error)
            # The error's traceback holds this frame, which must not hold the error.
            del error

        def tell(result: Any, error: Exception | None) -> None:
            if found.done():
                return
            if error is None:
                found.set_result(result)
            else:
                found.set_exception(error)

        try:
            threading.Thread(target=look_up, name="netmind_rentgpu.resolver", daemon=True).start()
        except RuntimeError:
            # While the interpreter exits no thread can be started. Then it is better to wait here than not to know.
            look_up()
        return await found


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Choose the loop. A policy that was set for the program's own loops is not meant for this one.

    Raises:
        ConfigurationError: uvloop is asked for and missing.
    """
    if os.environ.get("NETMIND_RENTGPU_UVLOOP") != "1":
        return _SelectorLoop
    try:
        return cast("Callable[[], asyncio.AbstractEventLoop]", importlib.import_module("uvloop").new_event_loop)
    except ImportError as error:
        raise ConfigurationError(f"NETMIND_RENTGPU_UVLOOP=1 asks for uvloop, which cannot be had: {error}") from error
