"""Refuse a Python that is too old before pip resolves the dependencies, which takes many minutes there."""

from __future__ import annotations

import sys
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class RequiredPython(MetadataHookInterface):
    """Stops a build or an install from source by a Python that is too old."""

    def update(self, metadata: dict[str, Any]) -> None:
        wanted = metadata["requires-python"][len(">=") :]
        if sys.version_info < tuple(map(int, wanted.split("."))):
            running = ".".join(map(str, sys.version_info[:3]))
            sys.exit(f"\nnetmind_rentgpu needs Python {wanted} or newer, and this is Python {running}.\n")
