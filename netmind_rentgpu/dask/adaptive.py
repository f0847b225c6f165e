"""Adaptive scaling of a cluster of rented machines."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, cast

from distributed.deploy.adaptive import Adaptive

from netmind_rentgpu import arguments
from netmind_rentgpu.errors import InvalidArgumentError

if TYPE_CHECKING:
    from distributed.deploy.spec import SpecCluster
    from distributed.scheduler import WorkerState

__all__ = ["MachineAdaptive", "adaptive_like", "checked_bounds", "machine_of"]


class MachineAdaptive(Adaptive):
    """Adaptive scaling that leaves the retirement of workers to the cluster: otherwise their end would be a loss."""

    async def scale_down(self, workers: Any) -> None:
        await cast("SpecCluster", self.cluster).scale_down(workers)  # pyright: ignore[reportUnknownMemberType]  # untyped


def checked_bounds(minimum: int, maximum: int | None, allowed: int) -> int:
    """Check the bounds of the number of workers, and return the upper one.

    Args:
        allowed: the most workers of the cluster.

    Raises:
        InvalidArgumentError: a bound cannot be used.
    """
    most = allowed if maximum is None or maximum == inf else min(arguments.count("maximum", maximum), allowed)
    if type(minimum) is not int or not 0 <= minimum <= most:
        raise InvalidArgumentError("minimum", f"must be 0 to {most} workers: {arguments.shown_value(minimum)}")
    return most


def adaptive_like(wanted: type[Adaptive] | None) -> type[Adaptive]:
    """Return a class of adaptive scaling for a cluster of machines, by a class of the user's own."""
    if wanted is None or issubclass(wanted, MachineAdaptive):
        return wanted or MachineAdaptive
    return type(wanted.__name__, (MachineAdaptive, wanted), {})


def machine_of(worker: WorkerState) -> str:
    """Return the name that the workers of one machine share."""
    return str(worker.name).rpartition("-")[0]
