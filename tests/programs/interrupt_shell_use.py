"""Interrupt commands and copies at random moments, and check after each that nothing is left of them.

Argument: how many interrupts.
"""

from __future__ import annotations

import os
import random
import signal
import sys

import preamble
from container_user import CONTAINER, HERE, names

from netmind_rentgpu import RentGPU, Shell
from netmind_rentgpu.sync import portal

preamble.install()
signal.signal(signal.SIGALRM, signal.default_int_handler)
(HERE / "up").write_bytes(os.urandom(3_000_000))
interrupted = 0


def use(shell: Shell) -> None:
    """Run, stream, upload and download."""
    shell.run("echo one; cat", input="x" * 200_000)
    for _ in shell.stream("echo one; echo two >&2"):
        pass
    shell.upload(HERE / "up", "there/up")
    shell.download("there", HERE / "down")


with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
    use(shell)
    for _ in range(int(sys.argv[1])):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.random() * 0.15 + 1e-6)
            while True:
                use(shell)
        except KeyboardInterrupt:
            interrupted += 1
        assert not portal._loop._calls
        assert shell.run("ls -A there").stdout == "up\n"
        assert names() == ["down", "up"]
        assert names(HERE / "down") == ["up"]
    use(shell)
print(interrupted, (HERE / "down" / "up").read_bytes() == (HERE / "up").read_bytes())
