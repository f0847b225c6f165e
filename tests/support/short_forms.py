"""Which of a test's many cases run without `--full`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def thinned(values: Iterable[Any], *, every: int) -> list[Any]:
    """Return values for `parametrize`: one in so many always runs, the others with `--full` alone, which CI does once."""
    return [
        pytest.param(value, marks=pytest.mark.full if number % every else ()) for number, value in enumerate(values)
    ]
