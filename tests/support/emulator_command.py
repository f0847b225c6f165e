"""The emulator's command, as a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple


class Serving(NamedTuple):
    url: str
    token: str
    errors: list[str]


COMMAND = [sys.executable, "-W", "error", "-m", "netmind_rentgpu.emulator"]


@asynccontextmanager
async def serving(
    options: list[str], folder: Path, how: signal.Signals = signal.SIGTERM, command: Sequence[str] = COMMAND
) -> AsyncIterator[Serving]:
    """Run the command, yield its URL and token, and check that it ends well."""
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )
    with process:
        try:
            assert process.stdout is not None
            url = re.fullmatch(r"export NETMIND_BASE_URL=(http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
            token = re.fullmatch(r"export NETMIND_API_KEY=(\S+)\n", process.stdout.readline())
            assert url
            assert token
            yield Serving(url[1], token[1], errors := [])
            process.send_signal(how)
            out, err = process.communicate(timeout=120)
            errors.append(err)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "")
