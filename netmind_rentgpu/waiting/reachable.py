"""Waiting until an SSH server answers, or lets us in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import TypeAlias

from netmind_rentgpu.conditions import Condition
from netmind_rentgpu.connecting import connect, look_up
from netmind_rentgpu.errors import RentGPUError
from netmind_rentgpu.models import Container, SSHEndpoint
from netmind_rentgpu.waiting.shared_poller import SharedPoller
from netmind_rentgpu.waiting.snapshots import Subscription
from netmind_rentgpu.waiting.waits import WaitTracker, checked_timeout

__all__ = ["Ask", "ask_for_greeting", "probe", "wait_until_reachable"]

Ask: TypeAlias = Callable[[Container, int], Awaitable[str | RentGPUError | None]]
"""Asks a container's endpoint, for the nth time from 0 on; returns what is wrong, None if nothing is."""

_FIRST_PROBE, _LONGEST_PROBE = 2.5, 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0
# A server may say other things first, each a line (RFC 4253, 4.2).
_LONGEST_GREETING = 16 * 1024


async def probe(endpoint: SSHEndpoint, seconds: float) -> str | None:
    """Ask an endpoint for an SSH server's first words, for so long; return what is wrong, None if nothing is."""
    try:
        async with asyncio.timeout(seconds):
            return await _greeting_of(endpoint)
    except TimeoutError:
        return f"nothing answers within {seconds:g} s"
    except (OSError, UnicodeError) as error:  # the latter for what can be no host's name
        return f"no connection ({error})"


async def _greeting_of(endpoint: SSHEndpoint) -> str | None:
    connected = await connect(await look_up(endpoint.host, endpoint.port))
    reader, writer = await asyncio.open_connection(sock=connected, limit=_LONGEST_GREETING)
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


async def ask_for_greeting(container: Container, attempt: int) -> str | None:
    """Ask a container for an SSH server's first words; return what is wrong, None if nothing is."""
    endpoint = container.ssh_endpoint
    if endpoint is None:
        return "it names no endpoint"
    # Who does not answer at once is given longer the next time, so that many who hang hold up the others less.
    problem = await probe(endpoint, min(_LONGEST_PROBE, _FIRST_PROBE * 2.0 ** min(attempt, 8)))
    return None if problem is None else f"{endpoint.host} port {endpoint.port}: {problem}"


async def wait_until_reachable(
    poller: SharedPoller,
    probes: asyncio.Semaphore,
    container_id: int,
    *,
    timeout: float,
    fail: Condition | None = None,
    ask: Ask = ask_for_greeting,
    missed: str = "no SSH server answered",
) -> Container:
    """Wait until a container's endpoint is as it should be.

    Args:
        probes: how many endpoints may be asked at once.
        ask: asks the one of a container.
        missed: what to say if it is not so in time.

    Raises:
        WaitTimeoutError: it is not, in time.
        ContainerFailedError: the container has failed.
        ContainerGoneError: it is gone.
    """
    seconds = checked_timeout(timeout)
    waiting = _Waiting(poller, probes, container_id, fail=fail, ask=ask, missed=missed)
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            return await waiting.until_reachable()
    except TimeoutError:
        if not deadline.expired():
            raise
        problem = waiting.problem
        cause = problem if isinstance(problem, RentGPUError) else poller.failure_of(waiting.wait.pending)
        raise waiting.wait.timed_out(seconds, "" if problem is None else str(problem)) from cause
    finally:
        waiting.leave()
        # It has the task, which has its exception, whose traceback leads here.
        del deadline


class _Waiting:
    """One wait for an SSH server.

    Attributes:
        problem: why none has answered yet; None while none was asked.
    """

    def __init__(
        self,
        poller: SharedPoller,
        probes: asyncio.Semaphore,
        container_id: int,
        *,
        fail: Condition | None,
        ask: Ask,
        missed: str,
    ) -> None:
        self._poller = poller
        self._probes = probes
        self._id = container_id
        self._ask_once = ask
        self._answered: SSHEndpoint | None = None
        self.problem: str | RentGPUError | None = None
        self.wait: WaitTracker = WaitTracker((container_id,), self._reachable, fail, missed=missed)
        self.subscription: Subscription = poller.subscribe((container_id,))

    def leave(self) -> None:
        """Ask no more."""
        self._poller.unsubscribe(self.subscription)
        # It leads here.
        del self.wait

    async def until_reachable(self) -> Container:
        while self.wait.pending:
            await self._poller.wait_until(self.subscription, lambda: self._endpoint() is not None)
            self._take_news()
            container = self.wait.pending[self._id]
            endpoint = None if container is None else container.ssh_endpoint
            if container is not None and endpoint is not None and await self._answers(container, endpoint):
                self._answered = endpoint
                # Judged once more, as it was last seen.
                self.wait.take({self._id: self.wait.pending[self._id]} | self.subscription.taken())
                self._answered = None
        return self.wait.arrived[self._id]

    def _reachable(self, container: Container) -> bool:
        return self._answered is not None and container.ssh_endpoint == self._answered

    def _take_news(self) -> None:
        self.wait.take(self.subscription.taken())

    def _endpoint(self) -> SSHEndpoint | None:
        """Return where the container is, as it was last seen."""
        self._take_news()
        container = self.wait.pending[self._id]
        return None if container is None else container.ssh_endpoint

    async def _answers(self, container: Container, endpoint: SSHEndpoint) -> bool:
        """Ask an endpoint until it answers; return False if it is not the container's any more."""
        # A look that hangs must not keep us from asking, nor a server that hangs from looking.
        moved = asyncio.create_task(self._poller.wait_until(self.subscription, lambda: self._endpoint() != endpoint))
        asked = asyncio.create_task(self._ask(container))
        try:
            await asyncio.wait((moved, asked), return_when=asyncio.FIRST_COMPLETED)
            if moved.done():
                await moved
                return False
            await asked
            return True
        finally:
            moved.cancel()
            asked.cancel()
            await asyncio.gather(moved, asked, return_exceptions=True)

    async def _ask(self, container: Container) -> None:
        self.problem = None
        pause = _FIRST_PAUSE
        for attempt in count():
            async with self._probes:
                problem = await self._ask_once(container, attempt)
            if problem is None:
                return
            self.problem = problem
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 1.5)
