"""Amounts of money, computed in a decimal context of our own, because a program may have set any precision in its own."""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import wraps
from typing import Final, ParamSpec, TypeVar

__all__ = ["MILLIONTH", "in_own_context", "rounded"]

P = ParamSpec("P")
R = TypeVar("R")

MILLIONTH: Final = Decimal("0.000001")
"""The unit in which costs are given, of any currency. Further digits would say nothing, because a cost is an estimate."""

_CONTEXT: Final = Context(prec=60, rounding=ROUND_HALF_EVEN, traps=[])
_LARGEST_EXPONENT: Final = 40


def in_own_context(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that computes with amounts as it would in any program."""

    @wraps(function)
    def compute(*arguments: P.args, **keywords: P.kwargs) -> R:
        with localcontext(_CONTEXT):
            return function(*arguments, **keywords)

    return compute


@in_own_context
def rounded(amount: Decimal) -> Decimal:
    """Return an amount in whole millionths, or as it is if it is absurdly large."""
    return amount if amount.adjusted() > _LARGEST_EXPONENT else amount.quantize(MILLIONTH)
