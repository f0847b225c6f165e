"""The core on systems that lack what only POSIX has: hidden in a process of its own, from this package alone."""

from __future__ import annotations

import pytest
from renters import Service
from short_forms import paired

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("claimed", ["linux", "darwin", "win32"])
async def test_core_works_without_what_only_posix_has(service: Service, claimed: str) -> None:
    program = await service.run_file("core_without_posix.py", claimed)
    program.assert_silent()
    begin, *stories = program.output.split("An emulated service is at")
    assert begin == (
        "asynchronously\n"
        "cannot interact: this system has no POSIX terminals; use run() or stream()\n"
        "synchronously\n"
        "an emulator with SSH needs POSIX, which this system lacks\n"
    )
    assert ["Nothing is still rented." in story for story in stories] == [True, True]
    await service.assert_nothing_left()


@pytest.mark.parametrize(("known", "claimed"), paired(["boot", "card", "nothing"], ["darwin", "win32"]))
async def test_reaper_off_linux_deletes_what_a_killed_process_rents(service: Service, claimed: str, known: str) -> None:
    program = await service.run_file("reap_without_posix.py", claimed, known)
    # Of a machine without a mark, it cannot be told whether it is this one.
    after = "0 deleted, 1 rented" if known == "nothing" else "1 deleted, 0 rented"
    program.assert_silent(f"while it lives: 0 deleted, 1 rented\nafter its kill: {after}\n")
