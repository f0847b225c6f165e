"""The arguments of a cluster, checked, and in the forms in which its parts use them."""

# Because the annotations of dask are incomplete:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypedDict

import dask.config
from distributed.security import Security

from netmind_rentgpu import arguments
from netmind_rentgpu.client import AsyncRentGPU
from netmind_rentgpu.dask.certificates import make_certificates, worker_options
from netmind_rentgpu.dask.software import Software
from netmind_rentgpu.dask.worker_jobs import WorkerPer, WorkerPlan
from netmind_rentgpu.errors import InvalidArgumentError

if TYPE_CHECKING:
    from netmind_rentgpu.models import Auth, PaymentType
    from netmind_rentgpu.rentals.selection.offers import OfferKey

__all__ = ["MachineOptions", "config_for_workers", "plan_of", "securities_of", "usual_client"]

# The sections of Dask's configuration that workers get. Others may hold secrets, or mean this machine.
_SENT: Final = (
    "array",
    "bag",
    "dataframe",
    "delayed",
    "optimization",
    "tokenize",
    "distributed.worker",
    "distributed.p2p",
)


class MachineOptions(TypedDict, total=False):
    """The arguments that choose the machines, as those of `AsyncRentGPU.rent`."""

    min_memory: float | None
    min_gpu_memory: float | None
    min_disk: float | None
    min_cuda: str | None
    nvlink: bool | None
    labels: Iterable[str]
    exclude: Iterable[str]
    key: OfferKey | None
    auth: int | str | Auth | None
    payment_type: PaymentType | str | int
    label: str | None
    wait_for_stock: timedelta | None


def plan_of(
    *,
    worker_per: WorkerPer,
    gpus: int,
    nthreads: int | None,
    memory_limit: str | float | None,
    resources: Mapping[str, float] | None,
    environment: Mapping[str, str] | None,
    software: Software,
) -> WorkerPlan:
    """Return the plan of a cluster's workers; `RentGPUCluster` documents the arguments.

    Raises:
        InvalidArgumentError: an argument cannot be used.
    """
    if worker_per not in ("gpu", "container"):
        raise InvalidArgumentError("worker_per", f"must be 'gpu' or 'container': {arguments.shown_value(worker_per)}")
    if not isinstance(software, Software):
        raise InvalidArgumentError("software", f"must be a Software, not {type(software).__name__}")
    per_gpu = worker_per == "gpu"
    threads = None if nthreads is None else arguments.count("nthreads", nthreads)
    return WorkerPlan(
        per_gpu=per_gpu,
        on_each=arguments.count("gpus", gpus) if per_gpu else 1,
        nthreads=1 if threads is None and per_gpu else threads,
        memory_limit=memory_limit,
        resources={**(resources or {}), **({"GPU": 1.0} if per_gpu else {})},
        environment=dict(environment or {}),
        software=software,
    )


def securities_of(ttl: timedelta, *, security: Security | bool) -> tuple[Security, Mapping[str, Any]]:
    """Return the security of the scheduler and the clients, and the keyword arguments of that of a worker."""
    if security is True:
        certificates = make_certificates(ttl)
        return certificates.security, certificates.worker
    if security is False:
        return Security(require_encryption=False), {"require_encryption": False}
    return security, worker_options(security)


def config_for_workers() -> dict[str, Any]:
    """Return the part of Dask's configuration that workers get, by names with dots; JSON cannot hold all values."""
    found = {name: dask.config.get(name, None) for name in _SENT}
    return {name: json.loads(json.dumps(value, default=lambda _: None)) for name, value in found.items() if value}


def usual_client() -> AsyncRentGPU:
    """Return a client by the environment, with a guardian where the system allows one."""
    return AsyncRentGPU(guardian=os.name == "posix")
