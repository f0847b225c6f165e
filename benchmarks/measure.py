"""Interleaved timing: each round times every candidate once, so that a machine's moods meet them all alike."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence


def ratios(rounds: Sequence[Mapping[str, float]], baseline: str) -> dict[str, tuple[float, float, float]]:
    """Return each candidate's ratio to the baseline of the same round: the median, and the middle half's two ends."""
    found: dict[str, tuple[float, float, float]] = {}
    for name in rounds[0]:
        each = sorted(one[name] / one[baseline] for one in rounds)
        quarter = len(each) // 4
        found[name] = statistics.median(each), each[quarter], each[-1 - quarter]
    return found


def report(
    title: str,
    rounds: Sequence[Mapping[str, float]],
    baseline: str,
    unit: str,
    limits: Mapping[str, float],
    *,
    floors: Mapping[str, float] | None = None,
) -> bool:
    """Print a table; return whether the medians kept every limit, which they may not pass, and every floor."""
    print(f"\n{title} ({len(rounds)} interleaved rounds; ratio to {baseline!r}: median, middle half)")
    kept = True
    for name, (median, low, high) in ratios(rounds, baseline).items():
        value = statistics.median(one[name] for one in rounds)
        verdict = ""
        for word, bound, good in (
            ("limit", limit := limits.get(name), limit is None or median <= limit),
            ("at least", floor := (floors or {}).get(name), floor is None or median >= floor),
        ):
            if bound is not None:
                verdict = f"  {word} {bound:g}: {'kept' if good else 'MISSED'}"
            kept = kept and good
        print(f"  {name:42} {value:10.2f} {unit}   x{median:.3f} ({low:.3f} to {high:.3f}){verdict}")
    return kept
