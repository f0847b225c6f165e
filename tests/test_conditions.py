"""The conditions that a wait can have: which containers meet them, and their reprs."""

from __future__ import annotations

from typing import Any

import pytest

from netmind_rentgpu import Container
from netmind_rentgpu.conditions import (
    Condition,
    all_of,
    any_of,
    gone,
    has_ssh,
    met_by_absence,
    negate,
    status_in,
)

LOGIN = "ssh root@203.0.113.7 -p 30022"


def container(**fields: Any) -> Container:
    return Container(id=1, **fields)


@pytest.mark.parametrize(
    ("condition", "found", "expected"),
    [
        (has_ssh, container(ssh=LOGIN), True),
        (has_ssh, container(ssh=""), False),
        (has_ssh, container(ssh=None), False),
        (has_ssh, container(ssh="see the console"), False),
        (gone, container(), False),
        (status_in(1, 2), container(status=2), True),
        (status_in(1, 2), container(status=3), False),
        (status_in(1, 2), container(status=None), False),
        (status_in(), container(status=1), False),
        (status_in("running"), container(status=4, status_name="running"), True),
        (status_in("running"), container(status=4), False),
        (status_in("running", 4), container(status=4), True),
        (all_of(has_ssh, status_in(1)), container(ssh=LOGIN, status=1), True),
        (all_of(has_ssh, status_in(1)), container(ssh=LOGIN, status=2), False),
        (all_of(), container(), True),
        (any_of(has_ssh, status_in(1)), container(ssh=LOGIN), True),
        (any_of(has_ssh, status_in(1)), container(), False),
        (any_of(), container(), False),
        (negate(has_ssh), container(), True),
        (negate(has_ssh), container(ssh=LOGIN), False),
        (negate(negate(status_in(1))), container(status=1), True),
        (all_of(lambda found: found.gpu == 2, negate(status_in(3))), container(gpu=2, status=1), True),
    ],
)
def test_condition_is_met_by_a_container_as_documented(condition: Condition, found: Container, expected: bool) -> None:
    assert bool(condition(found)) is expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (gone, True),
        (any_of(gone, has_ssh), True),
        (all_of(gone, any_of(gone, has_ssh)), True),
        (all_of(gone, has_ssh), False),
        (all_of(), False),
        (any_of(), False),
        (negate(gone), False),
        (has_ssh, False),
        (lambda _: True, False),
    ],
)
def test_condition_is_met_by_absence_only_if_it_includes_gone(condition: Condition, expected: bool) -> None:
    assert met_by_absence(condition) is expected


def test_conditions_have_readable_reprs() -> None:
    assert repr(status_in(1, "running")) == "status_in(1, 'running')"
    assert repr(all_of(has_ssh, any_of(gone, negate(status_in(3))))) == (
        "all_of(has_ssh, any_of(gone, negate(status_in(3))))"
    )


def test_unknown_status_in_a_condition_is_no_error() -> None:
    assert not status_in(1)(container(status=99))
    assert status_in(99)(container(status=99))
