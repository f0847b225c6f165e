"""Ways to a state file for tests that need no service."""

from __future__ import annotations

from pathlib import Path

from netmind_rentgpu.fingerprint import Fingerprint
from netmind_rentgpu.state_file import State


def state_at(path: Path, token: str = "a-token") -> State:
    """Return a way to a file, for a token of a service that is nowhere."""
    return State(path, Fingerprint("https://service.example", token))
