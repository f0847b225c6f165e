"""Escaping of texts from a service or a server, so that a terminal can show them safely."""

from __future__ import annotations

import re

__all__ = ["escaped"]

# Control characters (C0 apart from newline and tab, and C1), characters that change the writing direction, and surrogates,
# which no stream can write.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    """Escape each character that a terminal would obey, in the form of a Python literal."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
