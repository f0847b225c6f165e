"""The synchronous client under gevent, whose threads are greenlets of the main thread."""

from __future__ import annotations

import pytest
from programs import Program

from netmind_rentgpu.emulator import Emulator

pytest.importorskip("gevent")
# gevent's own modules warn of what they use.
WITH_GEVENTS_WARNINGS = ("-W", "default")


async def test_client_is_refused_where_threads_are_greenlets_and_masks_no_signals(emulator: Emulator) -> None:
    program = Program(file="gevent_client.py", arguments=["threads"], environment={"NETMIND_API_KEY": emulator.token})
    await program.run(emulator.url, WITH_GEVENTS_WARNINGS)
    assert program.status == 0, program.errors
    first, second, mask_is_kept = program.output.splitlines()
    assert first == second
    assert "gevent.monkey.patch_all(thread=False)" in first
    assert mask_is_kept == "True"


async def test_client_works_where_gevent_leaves_threads_alone(emulator: Emulator) -> None:
    program = Program(file="gevent_client.py", environment={"NETMIND_API_KEY": emulator.token})
    await program.run(emulator.url, WITH_GEVENTS_WARNINGS)
    assert (program.status, program.output) == (0, "True\nTrue\nTrue\n"), program.errors
