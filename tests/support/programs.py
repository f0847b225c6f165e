"""Programs that run in a process of their own, so that signals, forks and exits are real ones."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import dedent

LONGEST = 120.0
"""Seconds; a bound against hanging, not a measure of anything."""
WARNINGS = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")
"""Every warning is an error, but Python's own of a fork in a process with threads."""
BEGIN = """
import asyncio, gc, os, random, signal, sys, threading, time, traceback
from netmind_rentgpu import *
from netmind_rentgpu import bridge

def unraisable(what, say=sys.unraisablehook):
    # An interrupt that comes in a finalizer is swallowed by Python itself: it comes again.
    if what.exc_type is not KeyboardInterrupt or bridge._exiting:
        return say(what)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01)

sys.unraisablehook = unraisable
"""


@dataclass
class Program:
    """A program, and what it printed and how it ended once it has run.

    One that is interrupted at any moment is not measured: coverage's tracer has a lock that an interrupt can leave locked.
    """

    code: str
    environment: dict[str, str] = field(default_factory=dict)
    measured: bool = True
    begin: str = BEGIN
    pid: int = 0
    status: int | None = None
    output: str = ""
    errors: str = ""

    async def run(self, url: str, warnings: Sequence[str] = WARNINGS) -> Program:
        """Run with a client's settings in the environment."""
        environment = {
            name: value for name, value in os.environ.items() if self.measured or not name.startswith("COVERAGE_")
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *warnings,
            *("-X", "faulthandler"),
            *("-c", self.begin + dedent(self.code)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**environment, "NETMIND_BASE_URL": url, "NETMIND_API_KEY": "token", **self.environment},
            start_new_session=True,
        )
        self.pid = process.pid
        ended = asyncio.create_task(process.communicate())
        try:
            if hung := not (await asyncio.wait([ended], timeout=LONGEST))[0]:
                # It then says where each of its threads stands; what else has its pipes keeps them open.
                process.send_signal(signal.SIGABRT)
                await asyncio.wait([ended], timeout=5.0)
        finally:
            if not ended.done():
                # Its children, too.
                os.killpg(process.pid, signal.SIGKILL)
            output, errors = await ended
        assert not hung, output.decode() + errors.decode()
        self.status, self.output, self.errors = process.returncode, output.decode(), errors.decode()
        return self

    def assert_silent(self, output: str | None = None) -> None:
        """Assert that it succeeded, wrote nothing to stderr, and printed what it should."""
        assert (self.status, self.errors) == (0, ""), self.output + self.errors
        if output is not None:
            assert self.output == output
