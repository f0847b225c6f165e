"""Text of a service or a server, made harmless for a terminal."""

from __future__ import annotations

import re

__all__ = ["escaped"]

# Control characters apart from newline and tab, C1 among them; marks and overrides of the writing direction; halves of
# characters, which no stream can write.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    """Return a text in which each character that a terminal would obey is written out, as Python does in a literal."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
