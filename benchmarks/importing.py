"""`from netmind_rentgpu import AsyncRentGPU` beside the bare interpreter."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

LIMIT = 0.12
IMPORT = "from netmind_rentgpu import AsyncRentGPU"


def _seconds(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


def run(rounds: int) -> bool:
    """Measure how many seconds the import adds to a start of the interpreter."""
    _seconds(IMPORT)
    pairs = [(_seconds("pass"), _seconds(IMPORT)) for _ in range(rounds)]
    added = sorted(loaded - bare for bare, loaded in pairs)
    median = statistics.median(added)
    print(f"\n{IMPORT!r} ({rounds} interleaved rounds)")
    print(f"  the bare interpreter {statistics.median(bare for bare, _ in pairs):.3f} s")
    quarter = len(added) // 4
    print(
        f"  added {median:.3f} s ({added[quarter]:.3f} to {added[-1 - quarter]:.3f})"
        f"  limit {LIMIT:g}: {'kept' if median <= LIMIT else 'MISSED'}"
    )
    return median <= LIMIT
