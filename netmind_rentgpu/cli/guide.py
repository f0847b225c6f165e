"""The guide's pages and the documentation of public names, as text for a terminal. No output."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

__all__ = ["NoSuchTopicError", "help_text", "public_names", "titles"]

GUIDE: Final = Path(__file__).parent.parent / "guide"
_PACKAGE = "netmind_rentgpu"
_DIRECTIVE = re.compile(r"^\.\. (?:auto|py:)(\w+):: (\S+)(?:\n   :members: ([\w, ]+))?$", re.MULTILINE)
_LONGEST_SIGNATURE = 88
_IMPORTED_FROM: Final = (_PACKAGE, *(f"{_PACKAGE}.{name}" for name in ("conditions", "emulator", "testing")))


class NoSuchTopicError(LookupError):
    """No page and no public name is meant; the text says which are near."""


def help_text(words: list[str]) -> str:
    """Return a page of the guide in Markdown, or the documentation of a public name as plain text.

    Args:
        words: nothing for the index; a page's name or a part of it; or `reference` and the name of a class, function or
            method, such as `rent`, `RentGPU.rent` or `machines.list`.

    Raises:
        NoSuchTopicError: no page or name is meant, or several pages are.
    """
    if not words:
        return _page(GUIDE / "index.md")
    if words[0] == "reference" and len(words) == 2:
        return _documentation(words[1])
    if words == ["reference"]:
        return f"# Reference\n\n{_list_of(public_names())}"
    return _page(_path_of("-".join(words)))


def titles() -> dict[str, str]:
    """Return the names of the pages, each with the page's title."""
    pages: dict[str, str] = {}
    for path in sorted(GUIDE.rglob("*.md")):
        with path.open(encoding="utf-8") as page:
            pages[path.stem] = page.readline().strip("# \n")
    return pages


def public_names() -> dict[str, str]:
    """Return the public names that the reference documents, each with its full name."""
    pages = sorted((GUIDE / "reference").glob("*.md"))
    return dict(found for page in pages for found in _documented_in(page.read_text(encoding="utf-8")))


def _path_of(topic: str) -> Path:
    pages = {str(path.relative_to(GUIDE).with_suffix("")): path for path in sorted(GUIDE.rglob("*.md"))}
    wanted = topic.removesuffix(".md").casefold()
    exact = [name for name in pages if wanted in (name, name.rpartition("/")[2])]
    found = exact or [name for name in pages if wanted in name]
    if len(found) == 1:
        return pages[found[0]]
    if found:
        raise NoSuchTopicError(f"{topic!r} may mean any of{_lines(found)}")
    word = re.compile(rf"\b{re.escape(topic.replace('-', ' '))}", re.IGNORECASE)
    counted = {name: len(word.findall(path.read_text(encoding="utf-8"))) for name, path in pages.items()}
    mentioning = sorted((name for name in pages if counted[name]), key=lambda name: -counted[name])
    if mentioning:
        raise NoSuchTopicError(f"no page is called {topic!r}; it is mentioned in{_lines(mentioning)}")
    raise NoSuchTopicError(f"no page is called {topic!r} or mentions it; the pages are{_lines(pages)}")


def _lines(names: Iterable[str]) -> str:
    return "".join(f"\n    {name}" for name in names)


def _page(path: Path) -> str:
    """Return a page without what only the site can show: its lists of classes become lists of names."""
    text = re.sub(r"\n```\{toctree\}\n.*?```\n", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(
        r"```\{eval-rst\}\n(.*?)```\n", lambda fence: _list_of(dict(_documented_in(fence[1]))), text, flags=re.DOTALL
    )


def _list_of(names: dict[str, str]) -> str:
    lines = [f"* `{name}`{_summary(full)}\n" for name, full in names.items()]
    if not lines:
        return ""  # the site alone lists the commands
    return "".join(lines) + f"\n`python -m {_PACKAGE} help reference NAME` prints the documentation of one of these.\n"


def _summary(full: str) -> str:
    try:
        line = _first_line(_value_of(full))
    except ImportError as error:
        line = f"not available, because {error.name} is not installed"
    return f": {line}" if line else ""


def _with_member(member: str) -> list[str]:
    """Return the public names that have a member or a field of this name."""
    found: list[str] = []
    for name, full in public_names().items():
        # A module may need a library that is not installed.
        with suppress(ImportError):
            value = _value_of(full)
            if inspect.isclass(value) and (hasattr(value, member) or _field_text(value, member)):
                found.append(f"{name}.{member}")
    return sorted(found, key=lambda name: (name.startswith("Async"), name))


def _documented_in(text: str) -> Iterator[tuple[str, str]]:
    for kind, full, members in _DIRECTIVE.findall(text):
        if kind == "module":
            yield from ((name, f"{full}.{name}") for name in members.split(", "))
        else:
            yield full.rpartition(".")[2], full


def _value_of(full: str) -> Any:
    module, _, name = full.rpartition(".")
    return getattr(import_module(module), name)


def _documentation(name: str) -> str:
    """Return the signature and the docstring of a public name; of a class, also the first line of each member."""
    names = public_names()
    first, *rest = re.sub(rf"^(?:{_PACKAGE}\.)?(?:(?:conditions|emulator|testing|gpu)\.)?", "", name).split(".")
    if first not in names and f"Async{first.capitalize()}" in names:
        first = f"Async{first.capitalize()}"  # the class of `gpu.machines`, for example
    if first not in names and hasattr(_value_of(names["AsyncRentGPU"]), first):
        first, rest = "AsyncRentGPU", [first, *rest]
    try:
        value, field = _value_of(names[first]), None
        for part in rest:
            field = _field_text(value, part)
            value = None if field is not None else getattr(value, part)
    except ImportError as error:
        raise NoSuchTopicError(f"{name} cannot be loaded: {error}") from error
    except (KeyError, AttributeError):
        near = _with_member(name) or get_close_matches(first, names, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise NoSuchTopicError(f"no public name is {name!r}{hint}") from None
    full_name = ".".join([first, *rest])
    if field is not None:
        return f"{full_name}\n\n{field}\n"
    if texts := _texts(value):
        return f"{full_name}\n\n{texts}\n"
    heading = f"{_prefix(value)}{full_name}{_signature(value)}"
    parts = [heading, inspect.getdoc(value) or ""]
    if (module := names[first].rpartition(".")[0]) in _IMPORTED_FROM:
        parts.insert(1, f"from {module} import {first}")
    if inspect.isclass(value):
        members = [
            f"{_prefix(item)}{member}{_signature(item)}\n    {_first_line(item)}" for member, item in _members_of(value)
        ]
        parts += members
    return "\n\n".join(parts) + "\n"


def _field_text(value: Any, name: str) -> str | None:
    """Return what the docstring of a class says of a field; None if it says nothing, or the name is no field."""
    member = inspect.getattr_static(value, name, None) if inspect.isclass(value) else value
    if member is not None and not inspect.ismemberdescriptor(member):
        return None
    entry = rf"^    (?:\w+, )*{re.escape(name)}(?:, \w+)*: ((?:.+)(?:\n {{8}}.+)*)"
    found = re.search(entry, inspect.getdoc(value) or "", re.MULTILINE)
    return None if found is None else re.sub(r"\n\s*", " ", found[1])


def _texts(value: Any) -> str:
    """Return a list of the texts that a type of texts names; an empty text for any other value."""
    if get_origin(value) is Literal:
        return f"A text, one of{_lines(get_args(value))}"
    literals = [text for part in get_args(value) for text in get_args(part) if isinstance(text, str)]
    return f"A text. Editors offer those that the service documents:{_lines(literals)}" if literals else ""


def _prefix(value: Any) -> str:
    is_async = inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value)
    return "async " if is_async else ""


def _members_of(value: type) -> Iterator[tuple[str, Any]]:
    # The reference shows a base that is not public only by the classes that have its members.
    public = public_names().keys() - {value.__name__}
    kinds = [kind for kind in value.__mro__ if kind.__module__.startswith(_PACKAGE) and kind.__name__ not in public]
    for name in dict.fromkeys(name for kind in kinds for name in vars(kind)):
        item = inspect.getattr_static(value, name)
        if (
            not name.startswith("_")
            and inspect.getdoc(item)
            and (inspect.isroutine(item) or isinstance(item, property))
        ):
            yield name, getattr(value, name)


def _signature(value: Any) -> str:
    if not callable(value):
        return ""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    shown = re.sub(r"(: |-> )(['\"])(.*?)\2", r"\1\3", str(signature).replace("(self, ", "(").replace("(self)", "()"))
    shown = shown.replace("= NOTHING", "= ...")
    if len(shown) <= _LONGEST_SIGNATURE:
        return shown
    arguments, _, returned = shown[1:].rpartition(")")
    # A comma within brackets does not end an argument.
    lines = re.split(r", (?=\*|\w+(?::|=|,|$))", arguments)
    return "(\n" + "".join(f"    {line},\n" for line in lines) + f"){returned}"


def _first_line(value: Any) -> str:
    if not (inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, property)):
        return ""  # the docstring of a value is that of its class
    return (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")
