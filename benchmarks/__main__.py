"""`python -m benchmarks`: run all, or those that are named."""

from __future__ import annotations

import argparse
import platform
import sys
from functools import partial
from pathlib import Path

from benchmarks import (
    bridging,
    calls,
    commands,
    dask,
    decoding,
    guardian,
    importing,
    load,
    renting,
    spending,
    ssh,
    synchronous,
    waiting,
)

ALL = {
    "calls": calls.run,
    "decoding": decoding.run,
    "importing": importing.run,
    "commands": commands.run,
    "synchronous": synchronous.run,
    "bridging": bridging.run,
    "load": load.run,
    "waiting": waiting.run,
    "renting": renting.run,
    "guardian": guardian.run,
    "spending": spending.run,
    "ssh": ssh.run,
    "dask": dask.run,
}


def main() -> int:
    """Run the benchmarks; return 1 if a limit was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("which", nargs="*", metavar="|".join(ALL), help="all where none is named")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument(
        "--plot", type=Path, metavar="FOLDER", help="draw the curves of 'waiting' there; needs matplotlib"
    )
    options = parser.parse_args()
    if unknown := [name for name in options.which if name not in ALL]:
        parser.error(f"unknown: {', '.join(unknown)}")
    print(f"Python {platform.python_version()}, {platform.machine()}")
    chosen = {**ALL, "waiting": partial(waiting.run, plot=options.plot)}
    kept = [chosen[name](options.rounds) for name in options.which or ALL]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
