"""What is still rented when the interpreter exits, and the event loop that it was rented in has ended: it is deleted.

The synchronous client's loop still runs then, and releases what it has itself.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
from functools import cache

from netmind_rentgpu.errors import RentGPUError
from netmind_rentgpu.loops import loop_factory
from netmind_rentgpu.rentals.desk import left_behind

__all__ = ["release_at_exit"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")


@cache
def release_at_exit() -> None:
    """Delete at exit what nobody can release any more."""
    atexit.register(_release)


def _release() -> None:
    for desk in left_behind():
        logger.warning("the event loop has ended with something still rented in it, which is deleted now")
        try:
            # One that looks up names while no thread can be started any more.
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(desk.reap_elsewhere())
        except RentGPUError as error:
            logger.error("what is still rented could not be deleted; it is on record: %s", error)  # noqa: TRY400  # no traceback
