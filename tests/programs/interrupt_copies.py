"""Interrupt an `upload` or `download` (the argument) of a large file, then copy a small file over it."""

from __future__ import annotations

import os
import signal
import sys

import preamble
from container_user import CONTAINER, HERE, names

from netmind_rentgpu import RentGPU, TransferProgress

preamble.install()
(way,) = sys.argv[1:]
interrupted = False


def interrupt(progress: TransferProgress) -> None:
    """Interrupt this process once, in the middle of a copy."""
    global interrupted  # noqa: PLW0603  # a signal has no other way to report back
    if not interrupted and progress.bytes_done > 1_000_000:
        interrupted = True
        os.kill(os.getpid(), signal.SIGINT)


(HERE / "up").touch()
os.truncate(HERE / "up", 256 * 1024 * 1024)
with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
    shell.run("mkdir there && truncate -s 256M there/down", check=True)
    for _ in range(2):
        interrupted = False
        try:
            if way == "upload":
                shell.upload(HERE / "up", "there/up", on_progress=interrupt)
            else:
                shell.download("there/down", HERE / "down", on_progress=interrupt)
        except KeyboardInterrupt:
            print("interrupted")
        print(*names(), shell.run("ls -A there").stdout, end="")
    (HERE / "small").write_text("small")
    shell.upload(HERE / "small", "there/up")
    shell.download("there/up", HERE / "down")
    print((HERE / "down").read_text())
