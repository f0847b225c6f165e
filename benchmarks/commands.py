"""The start of the command line: its help, a completion, and commands that read the state file alone, beside an import."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import report

PROGRAM = ("-m", "netmind_rentgpu")
BASELINE = "import click"
CASES: Mapping[str, tuple[tuple[str, ...], Mapping[str, str]]] = {
    BASELINE: (("-c", "import click"), {}),
    "rentgpu --help": ((*PROGRAM, "--help"), {}),
    "rentgpu rent --help": ((*PROGRAM, "rent", "--help"), {}),
    "a completion": (PROGRAM, {"_RENTGPU_COMPLETE": "bash", "_RENTGPU_LINE": "rentgpu ren"}),
    "a completion from the state file": (PROGRAM, {"_RENTGPU_COMPLETE": "bash", "_RENTGPU_LINE": "rentgpu ssh "}),
    "rentgpu rentals list": ((*PROGRAM, "rentals", "list"), {}),
    "rentgpu budgets list -o json": ((*PROGRAM, "budgets", "list", "-o", "json"), {}),
    "import aiohttp": (("-c", "import aiohttp"), {}),
}
# Ratios to the import of click alone, which the help needs in any case.
LIMITS = {"rentgpu --help": 2.5, "a completion": 2.5}


def _milliseconds(words: tuple[str, ...], variables: Mapping[str, str], state: Path) -> float:
    environment = {
        **os.environ,
        "NETMIND_API_KEY": "token",
        "NETMIND_BASE_URL": "http://127.0.0.1:1",
        "NETMIND_RENTGPU_STATE": str(state),
        **variables,
    }
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1000


def run(rounds: int) -> bool:
    """Measure each start in turn."""
    with TemporaryDirectory() as folder:
        state = Path(folder) / "state.sqlite3"
        for words, variables in CASES.values():
            _milliseconds(words, variables, state)
        found = [
            {name: _milliseconds(words, variables, state) for name, (words, variables) in CASES.items()}
            for _ in range(rounds)
        ]
    return report("starts of the command line", found, BASELINE, "ms", LIMITS)
