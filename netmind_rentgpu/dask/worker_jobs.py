"""The jobs that run Dask workers on rented machines: one for each worker, with a nanny that restarts it after a crash."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import attrs
from dask.utils import parse_bytes

from netmind_rentgpu.dask.mesh import WorkerPorts
from netmind_rentgpu.dask.software import Software
from netmind_rentgpu.errors import ConfigurationError, InvalidArgumentError, RentGPUError

if TYPE_CHECKING:
    from netmind_rentgpu.rentals.rental import AsyncRental
    from netmind_rentgpu.ssh.jobs import AsyncJob

__all__ = [
    "WorkerPer",
    "WorkerPlan",
    "check_gpus",
    "last_lines",
    "worker_command",
    "worker_environment",
    "worker_input",
]

WorkerPer: TypeAlias = Literal["container", "gpu"]

# The program and its options come by stdin, because a command line would show the key that is among them.
_BOOT: Final = (
    "import asyncio, json, sys; given = json.loads(sys.stdin.readline()); scope = {'__name__': 'dask_worker'};"
    " exec(given.pop('program'), scope); asyncio.run(scope['run'](given))"
)
# For what a machine with lost workers answers, which may not answer at all, in seconds.
_LONGEST_LOOK: Final = 20.0
_LINES_OF_LOG: Final = 10
# Seconds within which a worker has to reach the scheduler.
_DEATH_TIMEOUT: Final = 60


@attrs.frozen(kw_only=True)
class WorkerPlan:
    """A user's wishes for the workers of a cluster, with checked arguments.

    Attributes:
        per_gpu: True for a worker for each GPU of a machine, False for one for each machine.
        on_each: the number of workers on each machine.
        nthreads: the threads of a worker; None for as many as the machine has processors.
        memory_limit: the memory of a worker, as Dask reads it; "auto" for an equal part of the machine's.
        resources: Dask's abstract resources of a worker.
        environment: variables for the workers, and for what installs software.
        software: what must be installed on the machines.
    """

    per_gpu: bool
    on_each: int
    nthreads: int | None
    memory_limit: str | float | None
    resources: Mapping[str, float]
    environment: Mapping[str, str] = attrs.field(repr=False)
    software: Software

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The ends of the names of a machine's workers; empty if each machine has one worker."""
        return () if self.on_each == 1 else tuple(f"-{number}" for number in range(self.on_each))

    def names(self, of_machine: str) -> tuple[str, ...]:
        """Return the names of the workers of one machine."""
        return tuple(f"{of_machine}{suffix}" for suffix in self.suffixes) or (of_machine,)

    @property
    def threads_of_worker(self) -> int:
        """The threads of a worker.

        Raises:
            InvalidArgumentError: the cluster was made without their number.
        """
        if self.nthreads is None:
            raise InvalidArgumentError("cores", "needs the number of threads of a worker; give nthreads to the cluster")
        return self.nthreads

    @property
    def memory_of_worker(self) -> int:
        """The memory of a worker, in bytes.

        Raises:
            InvalidArgumentError: the cluster was made without it.
        """
        if self.memory_limit in (None, "auto"):
            raise InvalidArgumentError("memory", "needs the memory of a worker; give memory_limit to the cluster")
        return int(parse_bytes(self.memory_limit))


def worker_command(python: str) -> str:
    """Return the command of a worker's job.

    Args:
        python: the path of the Python that runs it.
    """
    return f"exec {shlex.quote(python)} -c {shlex.quote(_BOOT)}"


def worker_environment(plan: WorkerPlan, number: int) -> dict[str, str]:
    """Return the variables of a worker's job.

    Args:
        number: the number of the worker on its machine, from 0 on, which is also that of its GPU.
    """
    return {**plan.environment, **({"CUDA_VISIBLE_DEVICES": str(number)} if plan.per_gpu else {})}


def worker_input(
    plan: WorkerPlan, *, name: str, scheduler: str, ports: WorkerPorts, security: Mapping[str, Any], config: Any
) -> str:
    """Return the input of a worker's job.

    Args:
        scheduler: the scheduler's address, as the worker sees it.
        security: the keyword arguments of Dask's `Security` on the worker; they hold a private key.
        config: Dask's configuration for the worker.
    """
    given = {
        "program": files("netmind_rentgpu.dask").joinpath("worker_program.py").read_text("utf-8"),
        "scheduler": scheduler,
        "name": name,
        "ports": attrs.asdict(ports),
        "nthreads": plan.nthreads,
        "memory_limit": plan.memory_limit,
        "workers": plan.on_each,
        "resources": dict(plan.resources),
        "security": dict(security),
        "death_timeout": _DEATH_TIMEOUT,
        "config": config,
    }
    return json.dumps(given) + "\n"


async def check_gpus(rental: AsyncRental, wanted: int) -> None:
    """Check that a machine has a GPU for each worker.

    Raises:
        ConfigurationError: it has fewer, or `nvidia-smi` does not list them.
        RentGPUError: as for `AsyncRental.run`.
    """
    listing = await rental.run("nvidia-smi -L", timeout=_LONGEST_LOOK)
    found = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    if not listing.ok or found < wanted:
        cause = f"lists {found} of {wanted}" if listing.ok else f"failed ({listing.stderr.strip() or 'no message'})"
        raise ConfigurationError(
            f"cannot start a worker for each GPU of {rental.name}: nvidia-smi {cause}; use an image with NVIDIA's tools, or"
            " worker_per='container'"
        )


async def last_lines(job: AsyncJob) -> str:
    """Return the last lines that a job has written, as the end of an error's text; nothing if they cannot be read."""
    try:
        async with asyncio.timeout(_LONGEST_LOOK):
            lines = [line.text async for line in job.logs(tail=_LINES_OF_LOG)]
    except (RentGPUError, TimeoutError):
        return ""
    return "; it wrote: " + " / ".join(lines) if lines else ""
