"""The running event loop."""

from __future__ import annotations

import asyncio

from netmind_rentgpu.errors import ConfigurationError

__all__ = ["running_loop"]


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop.

    Raises:
        ConfigurationError: no asyncio event loop runs, as under trio.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        pass
    raise ConfigurationError("no asyncio event loop runs here; use RentGPU, or under trio RentGPU in a thread")
