"""Waiting until an SSH server answers."""

from __future__ import annotations

import asyncio

from netmind_rentgpu.conditions import Condition
from netmind_rentgpu.errors import WaitTimeoutError
from netmind_rentgpu.models import Container, SSHEndpoint
from netmind_rentgpu.waiting.sweep import Sweep
from netmind_rentgpu.waiting.waits import Wait, checked_timeout

__all__ = ["probe", "wait_until_reachable"]

_LONGEST_PROBE = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0
# A server may say other things first, each a line (RFC 4253, 4.2).
_LONGEST_GREETING = 16 * 1024


async def probe(endpoint: SSHEndpoint) -> str | None:
    """Ask an endpoint for an SSH server's first words; return what is wrong, None if nothing is.

    It takes ten seconds at most.
    """
    try:
        async with asyncio.timeout(_LONGEST_PROBE):
            return await _greeting_of(endpoint)
    except TimeoutError:
        return f"nothing answers within {_LONGEST_PROBE:g} s"
    except OSError as error:
        return f"no connection ({error})"


async def _greeting_of(endpoint: SSHEndpoint) -> str | None:
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, limit=_LONGEST_GREETING)
    read = 0
    try:
        while read <= _LONGEST_GREETING:
            line = await reader.readline()
            if line.startswith(b"SSH-"):
                return None
            if not line:
                return "the connection was closed without an SSH greeting" if not read else "no SSH server answers"
            read += len(line)
    except ValueError:  # a line without end
        pass
    finally:
        writer.transport.abort()
    return "no SSH server answers"


async def wait_until_reachable(
    sweep: Sweep, probes: asyncio.Semaphore, container_id: int, *, timeout: float, fail: Condition | None = None
) -> Container:
    """Wait until an SSH server answers at a container's endpoint.

    Args:
        probes: how many endpoints may be asked at once.

    Raises:
        WaitTimeoutError: none does, in time.
        ContainerFailedError: the container has failed.
        ContainerGoneError: it is gone.
    """
    answered: SSHEndpoint | None = None
    tried: SSHEndpoint | None = None
    problem, ask_at, pause = "", 0.0, 0.0

    def reachable(container: Container) -> bool:
        return answered is not None and container.ssh_endpoint == answered

    wait = Wait((container_id,), reachable, fail)
    seconds = checked_timeout(timeout)
    loop = asyncio.get_running_loop()
    seat = sweep.join((container_id,))

    def endpoint() -> SSHEndpoint | None:
        container = wait.pending.get(container_id)
        return None if container is None else container.ssh_endpoint

    def satisfied() -> bool:
        wait.take(seat.taken())
        found = endpoint()
        return found is not None and (found != tried or loop.time() >= ask_at)

    try:
        async with asyncio.timeout(seconds):
            while True:
                again = endpoint() is not None and endpoint() == tried
                await sweep.attend(seat, satisfied, until=ask_at if again else None)
                async with probes:
                    # Much may have happened until it was our turn.
                    found = endpoint() if satisfied() else None
                    if found is None:
                        continue
                    pause = _FIRST_PAUSE if found != tried else min(_LONGEST_PAUSE, pause * 1.5)
                    tried = found
                    result = await probe(found)
                ask_at = loop.time() + pause
                if result is None:
                    answered = found
                    wait.take({container_id: wait.pending[container_id]} | seat.taken())
                    if not wait.pending:
                        return wait.arrived[container_id]
                problem = f"{found.host} port {found.port}: {result}"
    except TimeoutError as error:
        if isinstance(error, WaitTimeoutError):
            raise
        raise wait.timed_out(seconds, problem) from sweep.failure
    finally:
        sweep.leave(seat)
