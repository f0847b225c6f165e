"""Functions for the workers of clusters, which import this file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import dask.config
from distributed import Worker, worker_client


def square(number: int) -> int:
    """Return the square of a number."""
    return number * number


def sum_of_squares(numbers: list[int]) -> int:
    """Return a sum that other tasks compute, which this one starts."""
    with worker_client() as client:
        return sum(client.gather(client.map(square, numbers)))


def namespace() -> str:
    """Return the name of the network namespace."""
    return str(Path("/proc/self/ns/net").readlink())


def variable(name: str) -> str | None:
    """Return the value of a variable."""
    return os.environ.get(name)


def incoming(dask_worker: Worker) -> list[str]:
    """Return the sender of each transfer that a worker has received."""
    return [str(entry["who"]) for entry in dask_worker.transfer_incoming_log]


def configuration() -> str:
    """Return all of Dask's configuration."""
    return json.dumps(dask.config.config, default=repr)
