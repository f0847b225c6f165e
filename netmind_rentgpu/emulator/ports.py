"""Where the containers of an emulated service are reached: what the fleet asks of whoever gives out ports.

`MadeUpPorts` gives numbers, behind which nothing is. `shells.Shells` gives ports on which an SSH server answers.
"""

from __future__ import annotations

from typing import Protocol

import attrs

from netmind_rentgpu.emulator.nvidia_smi import GPUs

__all__ = ["Inside", "MadeUpPorts", "Ports"]

_NUMBERS = range(21_001, 61_001)


@attrs.frozen
class Inside:
    """What is found behind a port.

    Attributes:
        password: of the user root.
    """

    password: str = attrs.field(repr=False)
    gpus: GPUs


class Ports(Protocol):
    """Gives each container its port on 127.0.0.1. Called from any thread."""

    def new(self, container_id: int) -> int:
        """Give a container a port, in place of the one it had."""
        ...

    def open(self, container_id: int, inside: Inside) -> None:
        """Let a container be reached."""
        ...

    def close(self, container_id: int, *, new_host_key: bool = False) -> None:
        """Let a container be reached no longer, and end all that runs in it.

        Args:
            new_host_key: it has another one when it is opened again.
        """
        ...

    def remove(self, container_id: int) -> None:
        """Take in that a container is gone, with all that was in it."""
        ...


class MadeUpPorts:
    """Numbers that look like ports."""

    def __init__(self) -> None:
        self._given = 0

    def new(self, container_id: int) -> int:
        """Give the next number."""
        del container_id
        self._given += 1
        return _NUMBERS[(self._given - 1) % len(_NUMBERS)]

    def open(self, container_id: int, inside: Inside) -> None:
        """Do nothing."""

    def close(self, container_id: int, *, new_host_key: bool = False) -> None:
        """Do nothing."""

    def remove(self, container_id: int) -> None:
        """Do nothing."""
