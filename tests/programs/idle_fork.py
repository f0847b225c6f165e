"""Fork while no call is under way, call the client in the child, and end the child in a given way.

Argument: the way in which the child ends; with "nothing called" the child makes no call.
"""

from __future__ import annotations

import gc
import os
import sys

import preamble

from netmind_rentgpu import RentGPU

preamble.install()
end = sys.argv[1]
gpu = RentGPU()
gpu.containers.get(1)
items = iter(gpu.containers.list(page_size=2))
next(items)
for _ in range(3):
    if (pid := os.fork()) == 0:
        if end != "nothing called":
            assert gpu.containers.get(2).id == 1
        match end:
            case "os._exit":
                os._exit(0)
            case "sys.exit" | "nothing called":
                sys.exit(0)
            case "an error":
                sys.excepthook = lambda *_: os._exit(0)
                raise ZeroDivisionError
            case "close":
                gpu.close()
                sys.exit(0)
            case "collection":
                del gpu, items
                gc.collect()
                sys.exit(0)
            case "a fork of its own":
                pid = os.fork()
                assert gpu.containers.get(2).id == 1
                if pid:
                    os.waitpid(pid, 0)
                sys.exit(0)
            case "multiprocessing's":
                import multiprocessing  # only here, because an import in the parent changes what its children do

                process = multiprocessing.get_context("fork").Process(target=gpu.containers.get, args=(2,))
                process.start()
                process.join()
                sys.exit(process.exitcode)
        sys.exit(f"no such end: {end}")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert gpu.containers.get(1).id == 1
print(sum(1 for _ in items))
