"""The program that runs one Dask worker, with its nanny, on a rented machine.

The text of this file is sent to the machine as a part of a job's input, so it needs only what Dask needs there, and imports
nothing of this package. It ends with the worker.
"""

from __future__ import annotations

# Because the annotations of dask and distributed are incomplete:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
import asyncio
import signal
from typing import Any


async def run(given: dict[str, Any]) -> None:
    """Run a worker until it ends.

    Args:
        given: the worker's options, as `worker_jobs.worker_input` writes them.
    """
    import dask.config
    from distributed import Nanny
    from distributed.security import Security
    from distributed.system import MEMORY_LIMIT

    dask.config.update(dask.config.config, given["config"])
    limit = given["memory_limit"]
    if limit == "auto":
        limit = MEMORY_LIMIT // given["workers"]
    nanny = Nanny(
        given["scheduler"],
        name=given["name"],
        host="127.0.0.1",
        port=given["ports"]["nanny"],
        worker_port=given["ports"]["worker"],
        dashboard_address=f"127.0.0.1:{given['ports']['dashboard']}",
        nthreads=given["nthreads"],
        memory_limit=limit,
        resources=given["resources"],
        security=Security(**given["security"]),
        death_timeout=given["death_timeout"],
    )
    async with nanny:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: loop.create_task(nanny.close(reason="signal")))
        await nanny.finished()
