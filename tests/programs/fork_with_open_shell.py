"""Fork twice with an open shell; each child ends in the way that the argument names."""

from __future__ import annotations

import gc
import os
import sys

import preamble
from container_user import CONTAINER

from netmind_rentgpu import ClientStateError, RentGPU

preamble.install()
(end,) = sys.argv[1:]
gpu = RentGPU()
shell = gpu.ssh(CONTAINER).__enter__()
lines = shell.stream("echo one; read wait; echo two")
next(lines)


def use_as_child() -> None:
    """Print the errors of the parent's shell, then use a shell of the child's own."""
    for call in (lambda: shell.run("true"), shell.__enter__):
        try:
            call()
        except ClientStateError as error:
            print(error)
    with gpu.ssh(CONTAINER) as own:
        print(own.run("echo its own").stdout, end="", flush=True)


for _ in range(2):
    if (pid := os.fork()) == 0:
        use_as_child()
        match end:
            case "os._exit":
                os._exit(0)
            case "close":
                shell.close()
                gpu.close()
            case "collection":
                del shell, lines
                gc.collect()
            case _:
                assert end == "sys.exit"
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    print(shell.run("echo the parent").stdout, end="", flush=True)
print(*lines)
shell.close()
