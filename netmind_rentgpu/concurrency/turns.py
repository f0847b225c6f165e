"""Long computations in turns: a generator yields wherever the event loop may run something else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Final, TypeVar

__all__ = ["ITEMS_PER_TURN", "run_in_turns"]

Result = TypeVar("Result")

ITEMS_PER_TURN: Final = 250
"""The number of items that a computation handles before it yields: a few milliseconds of work."""


async def run_in_turns(steps: Generator[None, None, Result], check: Callable[[], object] = lambda: None) -> Result:
    """Run a generator to its end, with a turn of the event loop at each `yield`; return what it returns.

    Args:
        check: called before each turn; what it raises ends the computation.
    """
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
        check()
        await asyncio.sleep(0)
