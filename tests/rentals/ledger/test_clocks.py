"""The two clocks: what identifies a boot, and that its clock is never set."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from netmind_rentgpu.rentals.ledger import clocks
from netmind_rentgpu.rentals.ledger.clocks import ClockReading, read_clocks

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the boot is known on Linux")


def test_clocks_go_on() -> None:
    first = read_clocks()
    second = read_clocks()
    assert first.wall.tzinfo is UTC
    assert first.wall <= second.wall
    assert first.since_boot <= second.since_boot
    assert first.boot == second.boot


@ON_LINUX
def test_clock_of_the_boot_goes_on_while_the_machine_sleeps() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= read_clocks().since_boot <= time.clock_gettime(time.CLOCK_BOOTTIME)


@ON_LINUX
def test_all_processes_of_a_boot_see_the_same_boot() -> None:
    program = "from netmind_rentgpu.rentals.ledger.clocks import read_clocks; print(read_clocks().boot)"
    seen = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert seen.stdout.strip() == read_clocks().boot
    assert read_clocks().boot


def test_time_of_the_boot_follows_the_time_of_day() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert ClockReading(noon, "boot", 3600).booted_at == noon - timedelta(hours=1)
    assert ClockReading(noon, "", 3600).booted_at is None


def test_system_that_does_not_tell_its_boot_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks._boot.cache_clear()
    monkeypatch.setattr(sys, "platform", "win32")
    try:
        found = read_clocks()
    finally:
        clocks._boot.cache_clear()
    assert (found.boot, found.booted_at) == ("", None)
    assert found.since_boot > 0
