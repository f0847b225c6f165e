"""Gates, forks and their ends, for programs that fork many renting processes.

They are forked from one process, which has imported all there is and has called nothing.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import asyncssh

import netmind_rentgpu.client
import netmind_rentgpu.rentals.rental
import netmind_rentgpu.ssh.commands
import netmind_rentgpu.ssh.login
import netmind_rentgpu.sync.client
import netmind_rentgpu.waiting.reachable

assert asyncssh
assert netmind_rentgpu

# With the usual ranking, all would ask for the same machine, the cheapest.
ANY: dict[str, Any] = {"image": "PyTorch 2.4", "timeout": 60, "key": lambda _: random.random()}


def _kill_all(*error: Any) -> None:
    """End the whole group, because a process that waits at a gate would wait for ever."""
    traceback.print_exception(*error)
    sys.stderr.flush()
    os.killpg(0, signal.SIGKILL)


def install() -> None:
    """Let an error of the first process end all of them."""
    sys.excepthook = _kill_all


class Gate:
    """A gate at which processes wait until all have come and it is lifted."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.coming, self.come = os.pipe()
        self.waiting, self.open = os.pipe()

    def passed(self) -> None:
        """Wait at the gate."""
        os.write(self.come, b"x")
        os.close(self.open)
        os.read(self.waiting, 1)

    def wait(self) -> None:
        """Wait until all have come."""
        come = 0
        while come < self.count:
            come += len(os.read(self.coming, self.count - come))

    def lift(self) -> None:
        """Let all pass."""
        os.close(self.open)


def fork(number: int, work: Callable[[], None]) -> list[int]:
    """Fork processes that do the work; return their ids."""
    pids: list[int] = []
    for _ in range(number):
        if (pid := os.fork()) == 0:
            status = 1
            try:
                work()
                status = 0
            except BaseException:  # noqa: BLE001  # it is printed, and the exit code says it
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        pids.append(pid)
    return pids


def ends(pids: Iterable[int]) -> list[int]:
    """Wait for the ends of processes; return their exit codes."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
