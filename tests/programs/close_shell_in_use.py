"""Close a shell while three threads use it, and print the error of each."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import preamble
from container_user import CONTAINER, HERE, Alive

from netmind_rentgpu import ClientStateError, RentGPU, TransferProgress

preamble.install()
(HERE / "large").touch()
os.truncate(HERE / "large", 2**30)
gpu = RentGPU()
shell = gpu.ssh(CONTAINER).__enter__()
copying = threading.Barrier(3)
errors: list[str] = []


def use(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    """Call a method of the shell, and record its error."""
    try:
        call(*arguments, **keywords)
    except ClientStateError as error:
        errors.append(str(error))


class FirstProgress:
    """A progress callback that passes the barrier, from a thread of its own, when a copy first reports."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, _: TransferProgress) -> None:
        if not self.came:
            self.came = True
            threading.Thread(target=copying.wait).start()


alive = Alive()
threads = [
    threading.Thread(target=use, args=(shell.run, alive.command("true"))),
    *(
        threading.Thread(target=use, args=(shell.upload, HERE / "large", name), kwargs={"on_progress": FirstProgress()})
        for name in ("large", "huge")
    ),
]
for thread in threads:
    thread.start()
alive.began()
copying.wait()
shell.close()
for thread in threads:
    thread.join()
alive.wait()
print(*errors, sep="\n")
with gpu.ssh(CONTAINER) as shell:
    print(shell.run("ls -A").stdout)
