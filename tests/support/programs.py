"""Programs that run in a process of their own, so that signals, forks and exits are real ones."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

LONGEST = 120.0
"""Seconds; a bound against hanging, not a measure of anything."""
WARNINGS = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")
"""Every warning is an error, but Python's own of a fork in a process with threads."""
FOLDER = Path(__file__).parents[1] / "programs"
"""The folder of the programs that have more than 15 lines."""
BEGIN = """
import asyncio, gc, os, random, signal, sys, threading, time, traceback
from netmind_rentgpu import *
from netmind_rentgpu.sync import portal
import preamble
preamble.install()
"""


INSTALLED = {"PYTHONSAFEPATH": "1"}
"""The variable by which a program uses the package that the tests use, and not the one in the present folder."""


def with_programs(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which programs can import what they share."""
    return {**environment, "PYTHONPATH": os.pathsep.join([str(FOLDER), *filter(None, [environment.get("PYTHONPATH")])])}


@dataclass
class Program:
    """A program, and what it printed and how it ended once it has run.

    Attributes:
        code: what to run; begins after `begin`.
        environment: is added to the test's own.
        measured: False for a program that is interrupted at any moment: coverage's tracer has a lock that an interrupt can
            leave locked.
        file: the name of a file in `FOLDER` to run instead of code.
        arguments: of the file.
    """

    code: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    measured: bool = True
    begin: str = BEGIN
    file: str | None = None
    arguments: Sequence[str] = ()
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
            *(
                ("-c", self.begin + dedent(self.code))
                if self.file is None
                else (str(FOLDER / self.file), *self.arguments)
            ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                **with_programs(environment),
                **INSTALLED,
                "NETMIND_BASE_URL": url,
                "NETMIND_API_KEY": "token",
                **self.environment,
            },
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
        # The last line first, because a summary shows only the beginning.
        last = self.errors.strip().rpartition("\n")[2]
        assert (self.status, self.errors) == (0, ""), f"{last}\n{self.output}{self.errors}"
        if output is not None:
            assert self.output == output
