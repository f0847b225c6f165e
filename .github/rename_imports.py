"""Rename what netmind_rentgpu has renamed before its first release, in Python files.

usage: python rename_imports.py FILE_OR_FOLDER ...

Strings and comments stay as they are, and so do folders whose name begins with a dot, and site-packages. Before Python 3.12
names within f-strings stay, too.
"""

from __future__ import annotations

import io
import sys
import tokenize
from collections.abc import Iterator
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
    """Return a module's text with the new names.

    Raises:
        SyntaxError, tokenize.TokenError: it is not Python.
    """
    # Not `splitlines`, which counts more characters as the end of a line than Python's grammar does.
    lines = io.StringIO(source, newline="").readlines()
    tokens = list(tokenize.generate_tokens(iter([*lines, ""]).__next__))
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


def python_files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        for inner in sorted(path.iterdir()):
            if not inner.name.startswith(".") and inner.name != "site-packages" and not inner.is_symlink():
                yield from python_files(inner)
    elif path.suffix == ".py":
        yield path


def main(paths: list[str]) -> int:
    """Rename in place, and print the path of each file that changes; return 1 if a file could not be read or written."""
    if not paths:
        sys.exit(__doc__)
    status = 0
    for path in [file for given in paths for file in python_files(Path(given))]:
        try:
            with path.open("rb") as file:
                encoding, _ = tokenize.detect_encoding(file.readline)
            source = path.read_bytes().decode(encoding)
            if (new := renamed(source)) != source:
                path.write_bytes(new.encode(encoding))
                print(path)
        except (OSError, SyntaxError, UnicodeError, tokenize.TokenError) as error:
            print(f"{path}: {error}; left as it is", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
