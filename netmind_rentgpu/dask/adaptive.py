"""Adaptive scaling of a cluster of rented machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from distributed.deploy.adaptive import Adaptive

if TYPE_CHECKING:
    from distributed.deploy.spec import SpecCluster
    from distributed.scheduler import WorkerState

__all__ = ["MachineAdaptive", "machine_of"]


class MachineAdaptive(Adaptive):
    """Adaptive scaling that leaves the retirement of workers to the cluster: otherwise their end would be a loss."""

    async def scale_down(self, workers: Any) -> None:
        await cast("SpecCluster", self.cluster).scale_down(workers)  # pyright: ignore[reportUnknownMemberType]  # untyped


def machine_of(worker: WorkerState) -> str:
    """Return the name that the workers of one machine share."""
    return str(worker.name).rpartition("-")[0]
