"""A local Rent GPU service, for tests and for experiments without an account.

    from netmind_rentgpu.emulator import Emulator

    async with Emulator(seed=7) as emulator:
        print(emulator.url, emulator.token)

The emulator shares no code with the client, because a mistake in shared code would cancel itself out. It makes up what the
service's documentation leaves open: status numbers, the form of `ssh`, error bodies. A program that works with the emulator
may therefore still fail with the real service.
"""

from __future__ import annotations

from netmind_rentgpu.emulator.billing import Charge, PendingCreate
from netmind_rentgpu.emulator.clock import Clock
from netmind_rentgpu.emulator.faults import Fault, Faults
from netmind_rentgpu.emulator.presets import preset_names, preset_world
from netmind_rentgpu.emulator.recording import RecordedRequest, Recording
from netmind_rentgpu.emulator.server import Emulator
from netmind_rentgpu.emulator.world import World

__all__ = [
    "Charge",
    "Clock",
    "Emulator",
    "Fault",
    "Faults",
    "PendingCreate",
    "RecordedRequest",
    "Recording",
    "World",
    "preset_names",
    "preset_world",
]
