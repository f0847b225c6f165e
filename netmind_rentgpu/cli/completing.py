"""The protocol of the shells' scripts of completion: the line that is typed, and the answer in the form of each shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from netmind_rentgpu.cli.completions import Completion

__all__ = ["Line", "answer", "read_line"]

_PROGRAMS: Final = ("rentgpu", "netmind-rentgpu")
_MARK: Final = "."
# The characters, beside blanks, that bash reads as more than themselves.
_SPECIAL: Final = re.compile(r"([\s!\"#$&'()*;<>?\[\\\]^`{|}~])")


class Line(NamedTuple):
    """A line up to the cursor.

    Attributes:
        words: the words before that at the cursor, without quotes; the first is the program's name.
        current: the word at the cursor, without quotes.
        kept: the beginning of `current` that the shell keeps as it was typed, such as up to a colon; only bash does that.
        quote: the quote that is open at the end of `kept`; an empty text for none.
    """

    words: tuple[str, ...]
    current: str
    kept: str = ""
    quote: str = ""

    @property
    def option(self) -> str:
        """The option and its equals sign if `current` is the value of an option; else an empty text."""
        name, sign, _ = self.current.partition("=")
        return name + sign if sign and name.startswith("-") else ""


def read_line(text: str, replaced: str = "") -> Line:
    """Return the line of a text with the quotes of a shell.

    Args:
        replaced: the end of the text that the shell replaces by a completion; only bash says so.
    """
    words, current, _ = _split(text)
    # fish passes on what stands before the program's name, such as a variable.
    start = next((index for index, word in enumerate(words) if Path(word).name in _PROGRAMS), 0)
    _, kept, quote = _split(text.removesuffix(replaced))
    return Line(tuple(words[start:]), current, kept, quote)


def _split(text: str, quote: str = "") -> tuple[list[str], str, str]:
    """Return the words of a text but the last, the last, which may be empty, and the quote that is open in the end.

    Args:
        quote: the quote that is tried.
    """
    try:
        # The mark makes a word also of nothing.
        *words, last = shlex.split(text + _MARK + quote)
    except ValueError:
        return _split(text, "'" if quote else '"')
    return words, last.removesuffix(_MARK), quote


def answer(shell: str, line: Line, found: Sequence[Completion]) -> str:
    """Return the lines for a shell's script: each has a kind, a tab and a word in the shell's form."""
    if shell not in _FORMS:
        return ""
    whole = [word._replace(text=line.option + word.text) for word in found]
    return "".join(f"{word.kind}\t{text}\n" for word, text in _FORMS[shell](line, whole))


def _for_bash(line: Line, found: Sequence[Completion]) -> Iterator[tuple[Completion, str]]:
    """Find the texts that bash inserts as they are in place of the end of the word."""
    matching = [word for word in found if word.kind != "file" and word.text.startswith(line.current)]
    files = [word for word in found if word.kind == "file"]
    if files and matching:
        # bash itself finds files only where there are no words.
        matching += _paths(line.current)
    for word in matching:
        quoted = _quoted(word.text.removeprefix(line.kept), line.quote)
        if word.text.startswith(line.kept) and quoted is not None:
            yield word, quoted
    if not matching:
        yield from ((word, "") for word in files)


def _quoted(text: str, quote: str) -> str | None:
    """Return a text as it stands in a line of bash, within the quote that is open; None if it cannot stand there."""
    if quote == "'":
        return text.replace("'", "'\\''")
    if quote:
        # A backslash would not keep bash from reading it as a word of its history, and would stay.
        return None if "!" in text else re.sub(r"([\"$\\`])", r"\\\1", text)
    return _SPECIAL.sub(r"\\\1", text)


def _paths(begin: str) -> Iterator[Completion]:
    """Find the files whose paths have a beginning; hidden ones only if it asks for them, and none that breaks a line."""
    folder, slash, name = begin.rpartition("/")
    with suppress(OSError, ValueError):
        for path in sorted(Path(folder + slash).iterdir()):
            text = f"{folder}{slash}{path.name}"
            is_meant = path.name.startswith(name) and (name or not path.name.startswith("."))
            if is_meant and text.isprintable():
                yield Completion(f"{text}/", kind="part") if path.is_dir() else Completion(text)


def _for_zsh(_line: Line, found: Iterable[Completion]) -> Iterator[tuple[Completion, str]]:
    """Find the arguments of `_describe`, which reads a word up to a colon, and its description behind."""
    for word in found:
        text, description = (re.sub(r"([:\\])", r"\\\1", part) for part in (word.text, word.description))
        yield word, f"{text}:{description}" if description else text


def _for_fish(_line: Line, found: Iterable[Completion]) -> Iterator[tuple[Completion, str]]:
    for word in found:
        yield word, f"{word.text}\t{word.description}" if word.description else word.text


_FORMS: Final[Mapping[str, Callable[[Line, Sequence[Completion]], Iterator[tuple[Completion, str]]]]] = {
    "bash": _for_bash,
    "zsh": _for_zsh,
    "fish": _for_fish,
}
