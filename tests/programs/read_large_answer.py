"""Ask for a list whose answer is large; print how it ended, and by how many MiB memory grew at most.

Arguments: the resource to list.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import preamble

from netmind_rentgpu import RentGPU, RentGPUError

preamble.install()


def memory(field: str) -> int:
    """Return a figure on this process's memory, in KiB."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


with RentGPU() as gpu:
    gpu.containers.get(1)
    before = memory("VmRSS")
    try:
        read = str(len(list(getattr(gpu, sys.argv[1]).list())))
    except RentGPUError as error:
        read = type(error).__name__
    print(read, (memory("VmHWM") - before) // 1024)
