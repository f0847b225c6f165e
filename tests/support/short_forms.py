"""Which of a test's many cases run without `--full`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def thinned(values: Iterable[Any], *, every: int) -> list[Any]:
    """Return values for `parametrize`: one in so many always runs, the others with `--full` alone, which CI does once."""
    return [
        pytest.param(value, marks=pytest.mark.full if number % every else ()) for number, value in enumerate(values)
    ]


def paired(values: Iterable[Any], others: Sequence[Any]) -> list[Any]:
    """Return pairs for `parametrize`: each value always runs with one of the others in turn, and with all by `--full`."""
    return [
        pytest.param(value, other, marks=() if place == number % len(others) else pytest.mark.full)
        for number, value in enumerate(values)
        for place, other in enumerate(others)
    ]
