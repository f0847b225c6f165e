"""Waits until containers meet a condition."""

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

_MOST_NAMED = 5
_LONGEST_SHOWN = 200


@attrs.frozen(kw_only=True)
class WaitProgress:
    """The progress of a wait for several containers.

    Attributes:
        total: the number of containers that the wait is for.
        arrived: the number of containers that have met the condition.
    """

    total: int
    arrived: int

    @property
    def pending(self) -> int:
        """The number of containers that have not met the condition yet."""
        return self.total - self.arrived


OnProgress = Callable[[WaitProgress], object]


class WaitTracker:
    """The state of one wait.

    Attributes:
        arrived: the containers that have met the condition, by id.
        pending: the other containers by id, each as it was last seen; None for a container that was never seen.

    Raises:
        InvalidArgumentError: `until` or `fail` is no condition.
    """

    def __init__(
        self,
        ids: Iterable[int],
        until: Condition,
        fail: Condition | None = None,
        on_progress: OnProgress | None = None,
        missed: str = "",
    ) -> None:
        """Set up.

        Args:
            until: the condition that each container has to meet.
            fail: a condition that ends the wait with an error.
            missed: the problem that a WaitTimeoutError names; if empty, the error says that `until` was not met.
        """
        self._missed = missed
        self.arrived: dict[int, Container] = {}
        self.pending: dict[int, Container | None] = dict.fromkeys(ids)
        self._total = len(self.pending)
        self._until = checked("until", until)
        self._fail = None if fail is None else checked("fail", fail)
        self._on_progress = on_progress

    def report(self) -> None:
        """Report the progress to the caller's function, if there is one."""
        if self._on_progress is not None:
            self._on_progress(WaitProgress(total=self._total, arrived=len(self.arrived)))

    def take(self, news: Mapping[int, Container | None]) -> list[int]:
        """Judge new states of containers, None for a container that is gone; return the ids that have met the condition.

        Raises:
            ContainerFailedError: a container met `fail`.
            ContainerGoneError: a container is gone, and a container that is gone does not meet `until`.
        """
        arrived: list[int] = []
        # The error is built after all states are judged, because it holds the containers that have arrived.
        failure: Callable[[], RentGPUError] | None = None
        for container_id, container in news.items():
            if container is None:
                last = self.pending[container_id]
                if not met_by_absence(self._until):
                    failure = failure or partial(self._gone, container_id, last)
                    continue
                # Only the id is known of a container that was never seen.
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
        """Return the error for a condition that was not met in time."""
        shown = [
            _described(container_id, container) for container_id, container in list(self.pending.items())[:_MOST_NAMED]
        ]
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
        return {pending_id: container for pending_id, container in self.pending.items() if pending_id != container_id}


async def wait_for_all(
    poller: SharedPoller,
    ids: Iterable[int],
    *,
    until: Condition,
    timeout: float,
    fail: Condition | None = None,
    on_progress: OnProgress | None = None,
) -> dict[int, Container]:
    """Wait until each container has met a condition; return the containers by id, each as it was then.

    Raises:
        WaitTimeoutError: not all containers met the condition in time.
        ContainerFailedError: a container met `fail`.
        ContainerGoneError: a container is gone, and a container that is gone does not meet `until`.
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
        del deadline  # break the reference cycle
    return wait.arrived


def _described(container_id: int, container: Container | None) -> str:
    """Describe a container by its name and its last state."""
    if container is None:
        return f"{_label(container_id, None)} was not seen"
    status = container.status if container.status_name is None else container.status_name
    ssh = container.ssh or ""
    cannot = ", in which no endpoint can be read" if ssh.strip() and container.ssh_endpoint is None else ""
    return f"{_label(container_id, container)} has status {status}, ssh {ssh[:_LONGEST_SHOWN]!r}{cannot}"


def checked_timeout(timeout: float, argument: str = "timeout") -> float:
    """Return a number of seconds as it is.

    Raises:
        InvalidArgumentError: the value is no number of seconds above 0.
    """
    if not arguments.is_seconds(timeout, above_zero=True):
        raise InvalidArgumentError(argument, f"must be a number of seconds above 0: {arguments.shown_value(timeout)}")
    return timeout


def _label(container_id: int, container: Container | None) -> str:
    return f"container {container_id}" + ("" if container is None or container.name is None else f" ({container.name})")


def _name(condition: Condition) -> str:
    return getattr(condition, "__name__", None) or repr(condition)
