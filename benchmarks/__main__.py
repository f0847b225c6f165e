"""`python -m benchmarks`: run all, or those that are named."""

from __future__ import annotations

import argparse
import platform
import sys

from benchmarks import bridging, calls, decoding, importing, load, synchronous

ALL = {
    "calls": calls.run,
    "decoding": decoding.run,
    "importing": importing.run,
    "synchronous": synchronous.run,
    "bridging": bridging.run,
    "load": load.run,
}


def main() -> int:
    """Run the benchmarks; return 1 if a limit was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("which", nargs="*", metavar="|".join(ALL), help="all where none is named")
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    if unknown := [name for name in options.which if name not in ALL]:
        parser.error(f"unknown: {', '.join(unknown)}")
    print(f"Python {platform.python_version()}, {platform.machine()}")
    kept = [ALL[name](options.rounds) for name in options.which or ALL]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
