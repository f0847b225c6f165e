"""Names of GPUs, as users write them, and as the service documents and lists them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import takewhile
from typing import Final, get_args

from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.literals import GPUName

__all__ = ["DOCUMENTED_GPUS", "normalized", "resolved_gpu_names"]

DOCUMENTED_GPUS: Final[tuple[str, ...]] = get_args(get_args(GPUName)[0])
# The words of a maker or a line, without which people call a GPU.
_LEADING_WORDS: Final = frozenset({"nvidia", "geforce", "rtx", "gtx"})


def normalized(name: str) -> str:
    """Return a name's letters and digits in lower case, because spellings of a name differ in case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def resolved_gpu_names(wanted: Iterable[str], on_offer: Iterable[str], *, argument: str = "gpu_name") -> frozenset[str]:
    """Return the normalized names of the GPUs that a user means.

    A text means the GPU whose whole name it is, with or without the leading words NVIDIA, GeForce, RTX and GTX; or else the
    only GPU whose name it is a part of. So "RTX 3090" is no RTX 3090 Ti.

    Args:
        on_offer: the names that the service lists. The names that it documents are known, too.
        argument: the name of the user's argument, for the error.

    Raises:
        InvalidArgumentError: a text is a part of several names, or of none.
    """
    offered = tuple(on_offer)
    known = {normalized(name): name for name in (*offered, *DOCUMENTED_GPUS)}
    resolved: set[str] = set()
    for text in wanted:
        part = normalized(text)
        found = [name for name in known if part in _parts(known[name])] if part not in known else [part]
        found = [name for name in found if part in _short_names(known[name])] or found
        if len(found) > 1:
            names = ", ".join(sorted(known[name] for name in found))
            raise InvalidArgumentError(
                argument, f"{text!r} may mean any of {names}; give the whole name of one, or of several"
            )
        if not found:
            there = ", ".join(sorted(set(offered))) or "none"
            raise InvalidArgumentError(argument, f"no GPU is called {text!r}; the GPUs on offer are {there}")
        resolved.add(found[0])
    return frozenset(resolved)


def _parts(name: str) -> set[str]:
    """Return each run of a name's words, normalized: NVIDIA_GeForce_RTX_4090 has the part "rtx4090", but not "409"."""
    words = _words(name)
    return {"".join(words[first:last]) for first in range(len(words)) for last in range(first + 1, len(words) + 1)}


def _short_names(name: str) -> set[str]:
    """Return a name, normalized, without any number of its leading words: nvidiageforcertx4090, ..., rtx4090 and 4090."""
    words = _words(name)
    leading = list(takewhile(_LEADING_WORDS.__contains__, words))
    return {"".join(words[first:]) for first in range(min(len(leading), len(words) - 1) + 1)}


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.casefold())
