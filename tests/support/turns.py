"""Computations in turns, run without an event loop."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

Result = TypeVar("Result")


def run_at_once(steps: Generator[None, None, Result]) -> Result:
    """Run a generator to its end; return what it returns."""
    return counted(steps)[0]


def counted(steps: Generator[None, None, Result]) -> tuple[Result, int]:
    """Run a generator to its end; return what it returns, and how many times it yielded."""
    turns = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result, turns
        turns += 1
