"""Named worlds, which together hold every pair of values of any two switches that they vary.

Presets do not vary the switches that make names, ids or deletions misleading, because few programs handle these.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import combinations
from random import Random
from typing import Any, TypeAlias

from netmind_rentgpu.emulator.world import World

__all__ = ["pairs_of", "preset_names", "preset_world"]

_Choice: TypeAlias = tuple[str, str]
_Pair: TypeAlias = frozenset[_Choice]


def preset_names() -> list[str]:
    """Return the names of all presets; `documented` is the first."""
    return list(_presets())


def preset_world(name: str) -> World:
    """Return the world of a preset.

    Raises:
        KeyError: no preset has that name.
    """
    if name == "documented":
        return World()  # without `_presets`, which takes a tenth of a second
    presets = _presets()
    if name not in presets:
        raise KeyError(f"no preset is called {name}; there are {', '.join(presets)}")
    return presets[name]


def pairs_of(choices: dict[str, str]) -> Iterator[_Pair]:
    """Return all pairs of choices of different switches."""
    return map(frozenset, combinations(choices.items(), 2))


@cache
def _presets() -> dict[str, World]:
    """Choose worlds greedily: each begins with a missing pair, and adds the values that cover most other missing pairs."""
    random = Random(2)  # noqa: S311  # the presets must be the same everywhere
    switches = World.switches(in_presets=True)
    presets = {"documented": World()}
    missing: set[_Pair] = {
        frozenset(((left, left_value), (right, right_value)))
        for left, right in combinations(switches, 2)
        for left_value in switches[left]
        for right_value in switches[right]
    }
    missing -= set(pairs_of({switch: values[0] for switch, values in switches.items()}))
    while missing:
        # Sorted, because the order of a set differs from run to run.
        chosen: dict[str, str] = dict(min(sorted(pair) for pair in missing))
        rest = [switch for switch in switches if switch not in chosen]
        random.shuffle(rest)
        for switch in rest:
            gains = {
                value: sum(frozenset(((switch, value), choice)) in missing for choice in chosen.items())
                for value in switches[switch]
            }
            chosen[switch] = max(gains, key=gains.__getitem__)
        missing -= set(pairs_of(chosen))
        values: dict[str, Any] = chosen
        presets[f"pairs-{len(presets):02}"] = World(**values)
    return presets
