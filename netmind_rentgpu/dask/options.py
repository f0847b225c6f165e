"""The arguments of a cluster, checked, and in the forms in which its parts use them."""

# Because the annotations of dask are incomplete:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import dask.config
from dask.utils import parse_bytes
from distributed.scheduler import Scheduler
from distributed.security import Security

from netmind_rentgpu import arguments
from netmind_rentgpu.client import AsyncRentGPU
from netmind_rentgpu.dask.certificates import make_certificates, worker_options
from netmind_rentgpu.dask.software import Software
from netmind_rentgpu.dask.worker_jobs import WorkerPer, WorkerPlan
from netmind_rentgpu.errors import ConfigurationError, InvalidArgumentError
from netmind_rentgpu.ssh.commands import exports

__all__ = ["config_for_workers", "plan_of", "scheduler_spec", "securities_of", "usual_client"]

_LOOPBACK: Final = "127.0.0.1"
# The sections of Dask's own settings. Others may hold a user's tokens, or objects that cannot be sent.
_FOR_WORKERS: Final = ("array", "dataframe", "distributed", "optimization", "tokenize")
# A job's input, in which it is sent with the certificates, holds 64 KiB.
_LONGEST_CONFIG: Final = 40_000
# These lead to files, addresses and keys of this machine.
_OF_THIS_MACHINE: Final = ("distributed.comm.tls", "distributed.dashboard")


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
    exports(environment)  # checks them
    per_gpu = worker_per == "gpu"
    threads = None if nthreads is None else arguments.count("nthreads", nthreads)
    return WorkerPlan(
        per_gpu=per_gpu,
        on_each=arguments.count("gpus", gpus) if per_gpu else 1,
        nthreads=1 if threads is None and per_gpu else threads,
        memory_limit=_memory_limit(memory_limit),
        resources={**_resources(resources), **({"GPU": 1.0} if per_gpu else {})},
        environment=dict(environment or {}),
        software=software,
    )


def _memory_limit(value: str | float | None) -> str | float | None:
    if value not in (None, "auto"):
        try:
            parse_bytes(value)
        except (ValueError, TypeError, AttributeError):
            problem = f"must be a number of bytes, as '4 GB', 'auto' or None: {arguments.shown_value(value)}"
            raise InvalidArgumentError("memory_limit", problem) from None
    return value


def _resources(value: Mapping[str, float] | None) -> dict[str, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and arguments.is_seconds(number, above_zero=False) for name, number in value.items()
    ):
        problem = f"must be a mapping of names to numbers: {arguments.shown_value(value)}"
        raise InvalidArgumentError("resources", problem)
    return dict(value)


def securities_of(ttl: timedelta, *, security: Security | bool) -> tuple[Security, Mapping[str, Any]]:
    """Return the security of the scheduler and the clients, and the keyword arguments of that of a worker."""
    if security is True:
        certificates = make_certificates(ttl)
        return certificates.security, certificates.worker
    if security is False:
        return Security(require_encryption=False), {"require_encryption": False}
    if not isinstance(security, Security):
        raise InvalidArgumentError("security", f"must be True, False or a Security, not {type(security).__name__}")
    return security, worker_options(security)


def scheduler_spec(security: Security, dashboard_address: str | None, idle_timeout: timedelta | None) -> dict[str, Any]:
    """Return the specification of the scheduler for Dask's `SpecCluster`."""
    return {
        "cls": Scheduler,
        "options": {
            "host": _LOOPBACK,
            "port": 0,
            "protocol": "tls://" if security.require_encryption else "tcp://",
            "security": security,
            # Dask's own default is port 8787, which another cluster may have.
            "dashboard_address": dashboard_address or f"{_LOOPBACK}:0",
            "dashboard": dashboard_address is not None,
            "idle_timeout": None if idle_timeout is None else f"{idle_timeout.total_seconds()}s",
        },
    }


def config_for_workers() -> dict[str, Any]:
    """Return Dask's own configuration without what is of this machine alone.

    Raises:
        ConfigurationError: it holds a value that cannot be sent, or is too large.
    """
    ours: dict[str, Any] = dask.config.config  # pyright: ignore[reportUnknownVariableType]  # untyped
    try:
        text = json.dumps({name: ours[name] for name in _FOR_WORKERS if name in ours})
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"dask.config cannot be sent to workers: {error}") from None
    if len(text) > _LONGEST_CONFIG:
        raise ConfigurationError(f"dask.config is too large for workers: {len(text)} bytes; {_LONGEST_CONFIG} at most")
    config: dict[str, Any] = json.loads(text)
    for name in _OF_THIS_MACHINE:
        *parents, last = name.split(".")
        place: Any = config
        for parent in parents:
            place = place.get(parent, {})
        place.pop(last, None)
    return config


def usual_client() -> AsyncRentGPU:
    """Return a client by the environment, with a guardian where the system allows one."""
    return AsyncRentGPU(guardian=os.name == "posix")
