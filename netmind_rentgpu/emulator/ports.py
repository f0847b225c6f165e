"""The ports at which clients reach the containers of an emulated service.

`MadeUpPorts` returns mere numbers: nothing listens on them. `shells.Shells` returns ports on which an SSH server answers.
"""

from __future__ import annotations

from typing import Protocol

import attrs

from netmind_rentgpu.emulator.nvidia_smi import GPUs

__all__ = ["Inside", "MadeUpPorts", "Ports"]

_NUMBERS = range(21_001, 61_001)


@attrs.frozen
class Inside:
    """The inside of a container, as an SSH login finds it.

    Attributes:
        password: the password of the user root.
        gpus: the GPUs that `nvidia-smi` reports.
    """

    password: str = attrs.field(repr=False)
    gpus: GPUs


class Ports(Protocol):
    """The source of the containers' ports on 127.0.0.1. Any thread may call its methods."""

    def new(self, container_id: int) -> int:
        """Return a new port for a container, in place of its old port."""
        ...

    def open(self, container_id: int, inside: Inside) -> None:
        """Start listening on a container's port."""
        ...

    def close(self, container_id: int, *, new_host_key: bool = False) -> None:
        """Stop listening on a container's port, and end all processes of the container.

        Args:
            new_host_key: True if the container has another host key when its port is opened again.
        """
        ...

    def set_gpu_use(self, container_id: int, percent: int) -> bool:
        """Set the use of each of a container's GPUs; return False if nothing can run in the container."""
        ...

    def remove(self, container_id: int) -> None:
        """Close a deleted container's port, and remove its files."""
        ...


class MadeUpPorts:
    """Numbers that look like ports."""

    def __init__(self) -> None:
        self._count = 0

    def new(self, container_id: int) -> int:
        """Return the next number."""
        del container_id
        self._count += 1
        return _NUMBERS[(self._count - 1) % len(_NUMBERS)]

    def open(self, container_id: int, inside: Inside) -> None:
        """Do nothing."""

    def close(self, container_id: int, *, new_host_key: bool = False) -> None:
        """Do nothing."""

    def set_gpu_use(self, container_id: int, percent: int) -> bool:
        """Do nothing, because no program can run in a container that has no more than a number."""
        del container_id, percent
        return False

    def remove(self, container_id: int) -> None:
        """Do nothing."""
