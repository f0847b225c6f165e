"""Reap what another process rents, where what only POSIX has is missing: while that process lives, and after it was killed.

Run it by `python reap_without_posix.py win32 boot|card|nothing`, which names a platform and what the machine is known by.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from typing import Any

import hidden_posix  # before all others: it hides
import preamble
from renter import WANTED, rented

from netmind_rentgpu import RentGPU
from netmind_rentgpu.rentals.ledger import process_identity

preamble.install()
_, platform, known, *rest = sys.argv


def unreadable(*_path: Any) -> Any:
    raise FileNotFoundError("a file that only Linux has")


def reaped() -> int:
    with RentGPU() as gpu:
        report = gpu.rentals.reap()
    assert not report.failed
    return len(report.deleted)


if known != "boot":
    process_identity.Path = unreadable  # type: ignore[assignment,misc]  # the module's only use of it is to read such files
    # A number is made up, which a bit tells, where there is no network card.
    uuid.getnode = lambda: 0x0011_2233_4455 | (known == "nothing") << 40

if rest:
    if known == "nothing":
        # As on another such machine, where a process may have any number.
        vars(hidden_posix.SEEN["os"])["getpid"] = lambda: int(rest[0])
    with RentGPU() as gpu, gpu.rent(**WANTED):
        print("rents", flush=True)
        sys.stdin.read()
    raise SystemExit("it was not killed")

with subprocess.Popen(
    [sys.executable, *sys.argv, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
) as other:
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "rents\n"
        print("while it lives:", reaped(), "deleted,", len(rented()), "rented")
    finally:
        other.kill()
print("after its kill:", reaped(), "deleted,", len(rented()), "rented")
