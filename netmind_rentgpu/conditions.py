"""Conditions for waits: plain functions that take a container and return True or False.

    await gpu.containers.wait(container.id, until=conditions.has_ssh)
    await gpu.containers.wait(container.id, until=all_of(has_ssh, status_in("running")), fail=status_in(3))

Any function that takes a `Container` is a condition. The client calls it in the client's event loop whenever the container
has changed, so the function must not block. The service does not document its status numbers, so prefer a condition that
judges other evidence, as `has_ssh` does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs

from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.models import Container

__all__ = [
    "Condition",
    "all_of",
    "any_of",
    "gone",
    "has_ssh",
    "negate",
    "status_in",
]

Condition: TypeAlias = Callable[[Container], object]
"""A function that returns a true value if a container meets the condition."""


def has_ssh(container: Container) -> bool:
    """Return True if `ssh` names an endpoint. Its server may not answer yet; `wait_reachable` waits for an answer."""
    return container.ssh_endpoint is not None


def gone(container: Container) -> bool:
    """Return False for every container. A wait counts this condition as met once the container does not exist any more."""
    del container
    return False


@attrs.frozen
class _Combined:
    """A condition that a function of this module makes.

    Attributes:
        text: the call that makes this condition.
        judge: the function that judges a container.
        absence: True if a container that is gone meets the condition.
    """

    text: str
    judge: Condition
    absence: bool = False

    def __call__(self, container: Container) -> object:
        return self.judge(container)

    def __repr__(self) -> str:
        return self.text


def status_in(*statuses: int | str) -> Condition:
    """Return a condition that a container with one of these statuses meets.

    Args:
        statuses: the service's numbers, or the names that `ServiceProfile.container_statuses` gives these numbers, in any
            case.
    """
    wanted = frozenset(map(_without_case, statuses))
    text = f"status_in({', '.join(repr(status) for status in statuses)})"
    return _Combined(
        text, lambda container: not wanted.isdisjoint(map(_without_case, (container.status, container.status_name)))
    )


def _without_case(status: Any) -> Any:
    return status.casefold() if isinstance(status, str) else status


def all_of(*conditions: Condition) -> Condition:
    """Return a condition that is met if all of these conditions are; without conditions, it is always met."""
    return _Combined(
        _text("all_of", conditions),
        lambda container: all(judged(condition, container) for condition in conditions),
        bool(conditions) and all(map(met_by_absence, conditions)),
    )


def any_of(*conditions: Condition) -> Condition:
    """Return a condition that is met if at least one of these conditions is; without conditions, it is never met."""
    return _Combined(
        _text("any_of", conditions),
        lambda container: any(judged(condition, container) for condition in conditions),
        any(map(met_by_absence, conditions)),
    )


def negate(condition: Condition) -> Condition:
    """Return a condition that is met by each existing container that does not meet the given condition."""
    return _Combined(_text("negate", (condition,)), lambda container: not judged(condition, container))


def met_by_absence(condition: Condition) -> bool:
    """Return True if a container that is gone meets a condition: `gone`, or a combination that `gone` makes true."""
    return condition is gone or (isinstance(condition, _Combined) and condition.absence)


def checked(argument: str, condition: Condition) -> Condition:
    """Return a condition as it is.

    Raises:
        InvalidArgumentError: the value cannot be called, or is an async function.
    """
    if not callable(condition) or any(map(inspect.iscoroutinefunction, (condition, type(condition).__call__))):
        raise InvalidArgumentError(
            argument, "must be a function, not an async one, that takes a container and returns True or False"
        )
    return condition


def judged(condition: Condition, container: Container) -> bool:
    """Return True if a container meets a condition.

    Raises:
        InvalidArgumentError: the condition returns an awaitable, which would always count as true.
    """
    answer = condition(container)
    if not answer:
        return False
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise InvalidArgumentError("condition", "must return True or False, not an awaitable")
    return True


def _text(name: str, conditions: tuple[Condition, ...]) -> str:
    for condition in conditions:
        checked("condition", condition)
    return f"{name}({', '.join(getattr(condition, '__name__', None) or repr(condition) for condition in conditions)})"
