"""What a container can be waited for: plain functions that are shown a container and say yes or no.

    await gpu.containers.wait(container.id, until=conditions.has_ssh)
    await gpu.containers.wait(container.id, until=all_of(has_ssh, status_in("running")), fail=status_in(3))

Any function of a `Container` is a condition. It is asked when the container has changed, in the event loop of the client, so
it must not block. What the service's status numbers mean is not documented: judge by evidence, as `has_ssh` does, where
there is any.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeAlias

import attrs

from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.models import Container

__all__ = [
    "Condition",
    "all_of",
    "any_of",
    "checked",
    "gone",
    "has_ssh",
    "judged",
    "met_by_absence",
    "negate",
    "status_in",
]

Condition: TypeAlias = Callable[[Container], object]
"""Says of a container whether it is as it should be."""


def has_ssh(container: Container) -> bool:
    """Tell whether `ssh` names an endpoint. That something answers there is another matter: `wait_reachable`."""
    return container.ssh_endpoint is not None


def gone(container: Container) -> bool:
    """Tell whether a container does not exist any more.

    No container that can be shown is gone, so it is only for waiting: it is met when the container is deleted.
    """
    del container
    return False


@attrs.frozen
class _Combined:
    """A condition made of others.

    Attributes:
        absence: it is met by a container that is gone.
    """

    text: str
    judge: Condition
    absence: bool = False

    def __call__(self, container: Container) -> object:
        return self.judge(container)

    def __repr__(self) -> str:
        return self.text


def status_in(*statuses: int | str) -> Condition:
    """Make the condition that a container's status is one of these.

    Args:
        statuses: the service's own numbers, or the names that `ServiceProfile.container_statuses` gives them.
    """
    wanted = frozenset(statuses)
    text = f"status_in({', '.join(repr(status) for status in statuses)})"
    return _Combined(text, lambda container: container.status in wanted or container.status_name in wanted)


def all_of(*conditions: Condition) -> Condition:
    """Make the condition that all of these are met; with none, it always is."""
    return _Combined(
        _text("all_of", conditions),
        lambda container: all(judged(condition, container) for condition in conditions),
        bool(conditions) and all(map(met_by_absence, conditions)),
    )


def any_of(*conditions: Condition) -> Condition:
    """Make the condition that at least one of these is met; with none, it never is."""
    return _Combined(
        _text("any_of", conditions),
        lambda container: any(judged(condition, container) for condition in conditions),
        any(map(met_by_absence, conditions)),
    )


def negate(condition: Condition) -> Condition:
    """Make the condition that another is not met, by a container that exists."""
    return _Combined(_text("negate", (condition,)), lambda container: not judged(condition, container))


def met_by_absence(condition: Condition) -> bool:
    """Tell whether a condition is met by a container that is gone: `gone` is, and what it makes true."""
    return condition is gone or (isinstance(condition, _Combined) and condition.absence)


def checked(argument: str, condition: Condition) -> Condition:
    """Return a condition as it is.

    Raises:
        InvalidArgumentError: it is none.
    """
    if not callable(condition) or any(map(inspect.iscoroutinefunction, (condition, type(condition).__call__))):
        raise InvalidArgumentError(argument, "must be a plain function of a container, which says yes or no")
    return condition


def judged(condition: Condition, container: Container) -> bool:
    """Ask a condition.

    Raises:
        InvalidArgumentError: it is none: it gives something that has to be awaited, which would always count as met.
    """
    answer = condition(container)
    if not answer:
        return False
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise InvalidArgumentError("condition", "must say yes or no at once, and not give something to await")
    return True


def _text(name: str, conditions: tuple[Condition, ...]) -> str:
    for condition in conditions:
        checked("condition", condition)
    return f"{name}({', '.join(getattr(one, '__name__', None) or repr(one) for one in conditions)})"
