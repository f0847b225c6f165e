"""Waits until an SSH server answers, or until a login to it succeeds."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from itertools import count
from typing import TypeAlias

from netmind_rentgpu.concurrency.backoff import backoff, backoff_delay
from netmind_rentgpu.conditions import Condition
from netmind_rentgpu.connecting import connect, look_up
from netmind_rentgpu.errors import RentGPUError
from netmind_rentgpu.models import Container, SSHEndpoint
from netmind_rentgpu.waiting.shared_poller import SharedPoller
from netmind_rentgpu.waiting.snapshots import Subscription
from netmind_rentgpu.waiting.waits import WaitTracker, checked_timeout

__all__ = ["Ask", "ask_for_greeting", "probe", "wait_until_reachable"]

Ask: TypeAlias = Callable[[Container, int], Awaitable[str | RentGPUError | None]]
"""A function that probes a container's endpoint: (container, number of earlier attempts) -> the problem, None if none."""

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_FIRST_PROBE, _LONGEST_PROBE = 2.5, 10.0
_FAILURES_BEFORE_HINT = 3
# A server may send other lines before its greeting (RFC 4253, 4.2).
_LONGEST_GREETING = 16 * 1024


def _hint(container: Container) -> str:
    """Return advice for a container on this machine, which an emulator made; empty for any other container."""
    endpoint = container.ssh_endpoint
    try:
        is_here = endpoint is not None and ipaddress.ip_address(endpoint.host).is_loopback
    except ValueError:
        return ""
    return "an emulator accepts SSH logins only with ssh=True, or --ssh" if is_here else ""


async def probe(endpoint: SSHEndpoint, seconds: float) -> str | None:
    """Wait so many seconds for the greeting of an endpoint's SSH server; return the problem, None if there is none."""
    try:
        async with asyncio.timeout(seconds):
            return await _greeting_of(endpoint)
    except TimeoutError:
        return f"no answer within {seconds:g} s"
    except (OSError, UnicodeError) as error:  # UnicodeError for a text that cannot be the name of a host
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
                return (
                    "the connection was closed without an SSH greeting" if not read else "the answer is no SSH greeting"
                )
            read += len(line)
    except ValueError:  # the line is longer than the limit
        pass
    finally:
        writer.transport.abort()
    return "the answer is no SSH greeting"


async def ask_for_greeting(container: Container, attempt: int) -> str | None:
    """Read the greeting of a container's SSH server; return the problem, None if there is none."""
    endpoint = container.ssh_endpoint
    if endpoint is None:
        return "the container names no endpoint"
    # The first probes are short, because endpoints that do not answer hold up the probes of others.
    seconds = backoff_delay(attempt, first=_FIRST_PROBE, longest=_LONGEST_PROBE, factor=2)
    problem = await probe(endpoint, seconds)
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
    """Wait until `ask` finds no problem with a container's endpoint; return the container as it was then.

    Args:
        probes: limits the number of endpoints that are probed at the same time.
        timeout: the seconds in which a probe has to succeed.
        fail: a condition that ends the wait with an error.
        ask: the function that probes the endpoint.
        missed: the problem that a WaitTimeoutError names.

    Raises:
        WaitTimeoutError: no probe succeeded in time.
        ContainerFailedError: the container met `fail`.
        ContainerGoneError: the container is gone.
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
        raise waiting.wait.timed_out(seconds, "" if problem is None else waiting.described(problem)) from cause
    finally:
        waiting.leave()
        del deadline  # break the reference cycle


class _Waiting:
    """One wait for an endpoint.

    Attributes:
        problem: the problem that the last probe found; None before the first probe of an endpoint has ended.
        wait: the state of the wait.
        subscription: the subscription to the container.
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

    def described(self, problem: str | RentGPUError) -> str:
        """Return the text of a problem, with a hint where the service seems to be an emulator without SSH."""
        container = self.wait.pending.get(self._id)
        hint = "" if container is None else _hint(container)
        return f"{problem}; {hint}" if hint else str(problem)

    def leave(self) -> None:
        """End the subscription."""
        self._poller.unsubscribe(self.subscription)
        del self.wait  # break the reference cycle

    async def until_reachable(self) -> Container:
        while self.wait.pending:
            await self._poller.wait_until(self.subscription, lambda: self._endpoint() is not None)
            self._take_news()
            container = self.wait.pending[self._id]
            endpoint = None if container is None else container.ssh_endpoint
            if container is not None and endpoint is not None and await self._answers(container, endpoint):
                self._answered = endpoint
                # Judge the container, as it was last seen, once more now that its endpoint has answered.
                self.wait.take({self._id: self.wait.pending[self._id]} | self.subscription.taken())
                self._answered = None
        return self.wait.arrived[self._id]

    def _reachable(self, container: Container) -> bool:
        return self._answered is not None and container.ssh_endpoint == self._answered

    def _take_news(self) -> None:
        self.wait.take(self.subscription.taken())

    def _endpoint(self) -> SSHEndpoint | None:
        """Return the endpoint of the container as it was last seen; None if there is none."""
        self._take_news()
        container = self.wait.pending[self._id]
        return None if container is None else container.ssh_endpoint

    async def _answers(self, container: Container, endpoint: SSHEndpoint) -> bool:
        """Probe an endpoint until it answers; return False if the container has another endpoint by then."""
        # Poll and probe at the same time, so that neither a poll nor a probe that hangs holds up the other.
        moved = asyncio.create_task(self._poller.wait_until(self.subscription, lambda: self._endpoint() != endpoint))
        answered = asyncio.create_task(self._ask(container))
        try:
            await asyncio.wait((moved, answered), return_when=asyncio.FIRST_COMPLETED)
            if moved.done():
                await moved
                return False
            await answered
            return True
        finally:
            moved.cancel()
            answered.cancel()
            await asyncio.gather(moved, answered, return_exceptions=True)

    async def _ask(self, container: Container) -> None:
        self.problem = None
        pauses = backoff()
        for attempt in count():
            async with self._probes:
                problem = await self._ask_once(container, attempt)
            if problem is None:
                return
            self.problem = problem
            if attempt == _FAILURES_BEFORE_HINT and (hint := _hint(container)):
                logger.warning("container %d: %s; %s", container.id, problem, hint)
            await asyncio.sleep(next(pauses))
