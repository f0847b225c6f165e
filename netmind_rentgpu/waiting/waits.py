"""Waiting until containers are as they should be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import attrs

from netmind_rentgpu import arguments
from netmind_rentgpu.conditions import Condition, checked, judged, met_by_absence
from netmind_rentgpu.errors import (
    ContainerFailedError,
    ContainerGoneError,
    InvalidArgumentError,
    RentGPUError,
    WaitTimeoutError,
)
from netmind_rentgpu.models import Container
from netmind_rentgpu.waiting.shared_poller import SharedPoller

__all__ = ["OnProgress", "WaitProgress", "WaitTracker", "checked_timeout", "wait_for_all"]

_NAMED_AT_MOST = 5
_LONGEST_SHOWN = 200


@attrs.frozen(kw_only=True)
class WaitProgress:
    """How far a wait for several containers has come.

    Attributes:
        total: how many are waited for.
        arrived: how many of them have come to what is waited for.
    """

    total: int
    arrived: int

    @property
    def pending(self) -> int:
        """How many are still waited for."""
        return self.total - self.arrived


OnProgress = Callable[[WaitProgress], object]


class WaitTracker:
    """One wait: what has arrived, and what is still waited for, as it was last seen.

    Raises:
        InvalidArgumentError: what is no condition was given for one.
    """

    def __init__(
        self,
        ids: Iterable[int],
        until: Condition,
        fail: Condition | None = None,
        on_progress: OnProgress | None = None,
        missed: str = "",
    ) -> None:
        """Begin.

        Args:
            missed: what to say if the condition is not met in time; made of its name where it is empty.
        """
        self._missed = missed
        self.arrived: dict[int, Container] = {}
        self.pending: dict[int, Container | None] = dict.fromkeys(ids)
        self._total = len(self.pending)
        self._until = checked("until", until)
        self._fail = None if fail is None else checked("fail", fail)
        self._on_progress = on_progress

    def report(self) -> None:
        """Tell how far it has come."""
        if self._on_progress is not None:
            self._on_progress(WaitProgress(total=self._total, arrived=len(self.arrived)))

    def take(self, news: Mapping[int, Container | None]) -> list[int]:
        """Judge what is new; return the ids that need not be waited for any more.

        Raises:
            ContainerFailedError: one has failed.
            ContainerGoneError: one is gone, and that is not what is waited for.
        """
        arrived: list[int] = []
        # Built when all has been judged: it says what has arrived.
        failure: Callable[[], RentGPUError] | None = None
        for container_id, container in news.items():
            if container is None:
                last = self.pending[container_id]
                if not met_by_absence(self._until):
                    failure = failure or partial(self._gone, container_id, last)
                    continue
                # Of one that was never seen, nothing is known but its id.
                found = Container(id=container_id) if last is None else last
            else:
                self.pending[container_id] = found = container
                if self._fail is not None and judged(self._fail, container):
                    failure = failure or partial(self._failed, container)
                    continue
                if not judged(self._until, container):
                    continue
            del self.pending[container_id]
            self.arrived[container_id] = found
            arrived.append(container_id)
        if arrived:
            self.report()
        if failure is not None:
            raise failure()
        return arrived

    def timed_out(self, timeout: float, note: str = "") -> WaitTimeoutError:
        """Build the error for what did not come in time."""
        shown = [_described(one, container) for one, container in list(self.pending.items())[:_NAMED_AT_MOST]]
        if len(self.pending) > len(shown):
            shown.append(f"and {len(self.pending) - len(shown)} more")
        if note:
            shown.append(note)
        count = f"{len(self.pending)} of {self._total} containers: " if self._total > 1 else ""
        missed = self._missed or f"{_name(self._until)} was not met"
        text = f"{count}{missed} within {timeout:g} s: {'; '.join(shown)}"
        return WaitTimeoutError(text, arrived=self.arrived, pending=self.pending)

    def _gone(self, container_id: int, last: Container | None) -> ContainerGoneError:
        never = "" if last is not None else ", or never did"
        return ContainerGoneError(
            f"{_label(container_id, last)} does not exist any more{never}",
            container_id=container_id,
            container=last,
            arrived=self.arrived,
            pending=self._others(container_id),
        )

    def _failed(self, container: Container) -> ContainerFailedError:
        condition = _name(self._fail) if self._fail is not None else ""
        return ContainerFailedError(
            f"{_described(container.id, container)}: {condition} is met",
            container=container,
            arrived=self.arrived,
            pending=self._others(container.id),
        )

    def _others(self, container_id: int) -> dict[int, Container | None]:
        return {one: container for one, container in self.pending.items() if one != container_id}


async def wait_for_all(
    poller: SharedPoller,
    ids: Iterable[int],
    *,
    until: Condition,
    timeout: float,
    fail: Condition | None = None,
    on_progress: OnProgress | None = None,
) -> dict[int, Container]:
    """Wait until each of some containers is as it should be; return them by id.

    Raises:
        WaitTimeoutError: not all are, in time.
        ContainerFailedError: one has failed.
        ContainerGoneError: one is gone, and that is not what is waited for.
    """
    wait = WaitTracker(ids, until, fail, on_progress)
    seconds = checked_timeout(timeout)
    subscription = poller.subscribe(wait.pending)
    deadline = asyncio.timeout(seconds)

    def satisfied() -> bool:
        if subscription.news:
            poller.unsubscribe(subscription, wait.take(subscription.taken()))
        return not wait.pending

    try:
        wait.report()
        async with deadline:
            await poller.wait_until(subscription, satisfied)
    except TimeoutError:
        if not deadline.expired():
            raise
        raise wait.timed_out(seconds) from poller.failure_of(wait.pending)
    finally:
        poller.unsubscribe(subscription)
        # It has the task, which has its exception, whose traceback leads here.
        del deadline
    return wait.arrived


def _described(container_id: int, container: Container | None) -> str:
    """Name a container, and say how it was last seen."""
    if container is None:
        return f"{_label(container_id, None)} was not seen"
    status = container.status if container.status_name is None else container.status_name
    ssh = container.ssh or ""
    cannot = ", in which no endpoint can be read" if ssh.strip() and container.ssh_endpoint is None else ""
    return f"{_label(container_id, container)} has status {status}, ssh {ssh[:_LONGEST_SHOWN]!r}{cannot}"


def checked_timeout(timeout: float, argument: str = "timeout") -> float:
    """Return a number of seconds as it is.

    Raises:
        InvalidArgumentError: it is none, or not above 0.
    """
    if not arguments.is_seconds(timeout, above_zero=True):
        raise InvalidArgumentError(argument, f"must be a number of seconds above 0: {arguments.shown_value(timeout)}")
    return timeout


def _label(container_id: int, container: Container | None) -> str:
    return f"container {container_id}" + ("" if container is None or container.name is None else f" ({container.name})")


def _name(condition: Condition) -> str:
    return getattr(condition, "__name__", None) or repr(condition)
