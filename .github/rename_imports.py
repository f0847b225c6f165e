"""Rename what netmind_rentgpu has renamed before its first release, in the Python files below some folders.

usage: python rename_imports.py FOLDER ...
"""

from __future__ import annotations

import io
import sys
import tokenize
from pathlib import Path

# Names that nothing else is likely to have; each is renamed wherever it stands as a name.
NAMES = {"LedgerError": "StateFileError", "Coming": "PendingCreate"}
# Attributes, by the name before the dot, since the names alone are common ones.
ATTRIBUTES = {
    ("rentals", "open"): "list",
    ("emulator", "coming"): "pending_creates",
    ("rentgpu_emulator", "coming"): "pending_creates",
}


def renamed(source: str) -> str:
    """Return a module's text with the new names; strings and comments stay as they are."""
    lines = source.splitlines(keepends=True)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for position in range(len(tokens) - 1, -1, -1):
        token = tokens[position]
        new = NAMES.get(token.string)
        if position >= 2 and tokens[position - 1].string == ".":
            new = ATTRIBUTES.get((tokens[position - 2].string, token.string), new)
        if token.type == tokenize.NAME and new is not None:
            (row, start), (_, end) = token.start, token.end
            line = lines[row - 1]
            lines[row - 1] = line[:start] + new + line[end:]
    return "".join(lines)


def main(folders: list[str]) -> int:
    """Rename in place, and print the path of each file that changes."""
    if not folders:
        sys.exit(__doc__)
    for folder in folders:
        for path in sorted(Path(folder).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            if (new := renamed(source)) != source:
                path.write_text(new, encoding="utf-8")
                print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
