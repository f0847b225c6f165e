"""Pauses between repeated attempts, each longer than the one before, up to a limit. Pure."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["backoff", "backoff_delay"]


def backoff_delay(number: int, *, first: float, longest: float, factor: float) -> float:
    """Return the pause, in seconds, that follows a number of earlier pauses.

    Args:
        number: the number of earlier pauses.
        first, longest: the shortest and the longest pause, in seconds.
    """
    # The exponent is bounded so that a large number of attempts cannot overflow.
    return min(longest, first * factor ** min(number, 64))


def backoff(*, first: float = 0.25, longest: float = 5.0, factor: float = 1.5) -> Iterator[float]:
    """Yield pauses, in seconds, without end."""
    number = 0
    while True:
        yield backoff_delay(number, first=first, longest=longest, factor=factor)
        number += 1
