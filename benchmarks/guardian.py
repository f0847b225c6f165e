"""A guardian: its memory, its start, and the time from its parent's death until the container is deleted.

The emulator runs in this process, and each round starts a program that rents and is killed. Figures are for one guardian.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from netmind_rentgpu.emulator import Emulator

MOST_ROUNDS = 11
MEGABYTES = 25
# The program prints its guardian, and the seconds that the first registration took, in which the guardian starts.
PROGRAM = """
import asyncio, time
from netmind_rentgpu import AsyncRentGPU

async def main():
    async with AsyncRentGPU(guardian=True) as gpu:
        began = time.perf_counter()
        guardian = await gpu._context.guardian.watch(3600, gpu._context.limits)
        seconds = time.perf_counter() - began
        async with gpu.rent(image="PyTorch 2.4"):
            print(guardian.process_id, seconds, flush=True)
            await asyncio.sleep(1000)

asyncio.run(main())
"""


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # the emulator has no event for it
            await asyncio.sleep(0.002)


async def _round(emulator: Emulator, folder: Path) -> tuple[float, float, float]:
    """Return the seconds of the start, the seconds from the death to the deletion, and the megabytes of the guardian."""
    environment = {
        **os.environ,
        "NETMIND_BASE_URL": emulator.url,
        "NETMIND_API_KEY": emulator.token,
        "NETMIND_RENTGPU_STATE": str(folder / "state.sqlite3"),
    }
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM), stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert program.stdout is not None
    guardian, start = (await program.stdout.readline()).split()
    megabytes = _resident(int(guardian))
    program.send_signal(signal.SIGKILL)
    killed = time.perf_counter()
    await _until(lambda: not emulator.running)
    deleted = time.perf_counter() - killed
    await program.wait()
    # Before the next round, and before its state file is removed.
    await _until(lambda: not _runs(int(guardian)))
    return float(start), deleted, megabytes


def _runs(process_id: int) -> bool:
    try:
        status = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _resident(process_id: int) -> float:
    """Return the megabytes of a process."""
    status = Path(f"/proc/{process_id}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


async def _measure(rounds: int) -> list[tuple[float, float, float]]:
    with tempfile.TemporaryDirectory() as folder:
        async with Emulator(ssh=True, boot_seconds=0.02) as emulator:
            return [await _round(emulator, Path(folder)) for _ in range(rounds)]


def _line(name: str, values: Sequence[float], unit: str) -> None:
    print(f"  {name:42} {statistics.median(values):10.2f} {unit}   ({min(values):.2f} to {max(values):.2f})")


def run(rounds: int) -> bool:
    """Measure; return whether the guardian kept its limit of memory."""
    if sys.platform != "linux":
        print("\nA guardian: measured on Linux only")
        return True
    found = asyncio.run(_measure(min(rounds, MOST_ROUNDS) + 1))
    (first, *_), *others = found
    starts, deletions, sizes = ([each[place] for each in others] for place in range(3))
    print(f"\nA guardian ({len(others)} rounds; median, least and most)")
    print(f"  {'its first start, which copies the packages':42} {first:10.2f} s")
    _line("a later start", starts, "s")
    _line("from the parent's death to the deletion", deletions, "s")
    _line("memory while it waits", sizes, "MB")
    kept: bool = max(sizes) <= MEGABYTES
    print(f"  limit of {MEGABYTES} MB: {'kept' if kept else 'MISSED'}")
    return kept
