"""Interrupt a call, and interrupt its cleanup, too."""

from __future__ import annotations

import asyncio
import os
import signal

import preamble

from netmind_rentgpu.sync import portal

preamble.install()


async def work() -> None:
    """Wait for interrupts."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            print("cancelled again")
            raise


try:
    portal.call(work)
except KeyboardInterrupt:
    print("interrupted")
