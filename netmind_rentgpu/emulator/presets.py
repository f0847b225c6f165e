"""Named worlds that, together, hold every pair of values of any two switches at least once.

They leave alone the switches by which names, ids or deletions mislead, because few programs are made for those.
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
        KeyError: there is none of that name.
    """
    if name == "documented":
        return World()  # at once, because the others take a tenth of a second to choose
    presets = _presets()
    if name not in presets:
        raise KeyError(f"no preset is called {name}; there are {', '.join(presets)}")
    return presets[name]


def pairs_of(choices: dict[str, str]) -> Iterator[_Pair]:
    """Give every pair of choices, each of another switch."""
    return map(frozenset, combinations(choices.items(), 2))


@cache
def _presets() -> dict[str, World]:
    """Choose worlds greedily: each begins with a pair that is still missing, and takes what covers most of the others."""
    random = Random(2)  # noqa: S311  # the presets must be the same everywhere
    switches = World.switches(in_presets=True)
    presets = {"documented": World()}
    missing: set[_Pair] = {
        frozenset(((one, first), (other, second)))
        for one, other in combinations(switches, 2)
        for first in switches[one]
        for second in switches[other]
    }
    missing -= set(pairs_of({switch: values[0] for switch, values in switches.items()}))
    while missing:
        # Sorted, since the order of a set differs from run to run.
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
