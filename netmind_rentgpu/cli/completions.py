"""The names that complete a word of a command line: of rentals, budgets, accounts and pages. No network is used."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Final, NamedTuple

from netmind_rentgpu.errors import RentGPUError
from netmind_rentgpu.escaping import escaped
from netmind_rentgpu.state_path import state_path

__all__ = [
    "Completion",
    "Typed",
    "accounts",
    "budgets",
    "containers",
    "files",
    "places",
    "rental_before_ports",
    "rentals",
    "results",
    "settings",
    "topics",
]

# As `RentalRecord.may_be_rented`.
_RENTALS: Final = (
    "SELECT account, name, label, gpus, gpu_name, stage FROM rentals WHERE container_id IS NOT NULL OR NOT refused"
    " ORDER BY intended_at, name"
)
_CONTAINERS: Final = (
    "SELECT container_id, name, label FROM rentals WHERE container_id IS NOT NULL ORDER BY container_id"
)
# Without those of fleets, which end with them.
_BUDGETS: Final = 'SELECT name, "limit", per, hourly, currency FROM budgets WHERE expires_at IS NULL ORDER BY name'


class Typed(NamedTuple):
    """The words of a command line, as far as they are typed.

    Attributes:
        current: the beginning of the word to complete.
        earlier: the words before it that belong to the same argument.
        state: the path of the state file; None for that of the environment, or the usual one.
    """

    current: str = ""
    earlier: tuple[str, ...] = ()
    state: str | None = None


class Completion(NamedTuple):
    """A word for a command line.

    Attributes:
        text: the word, without quotes.
        description: a few words on it, which some shells show.
        kind: `plain`; `part` if the word goes on behind the text; or `file`, without a text, for the files that the shell
            finds.
    """

    text: str
    description: str = ""
    kind: str = "plain"


def rentals(typed: Typed) -> list[Completion]:
    """Return the names and labels of the open rentals, except of those that were typed before.

    A label that several rentals share is left out, because it would name none of them.
    """
    rows = _read(typed, _RENTALS)
    counts = Counter((account, label) for account, _, label, *_ in rows)
    found: dict[str, str] = {}
    for account, name, label, gpus, gpu_name, stage in rows:
        if name in typed.earlier or label in typed.earlier:
            continue
        machine = stage if gpu_name is None else f"{gpus} x {gpu_name}, {stage}"
        found.setdefault(name, machine if label is None else f"{label}, {stage}")
        if label is not None and counts[account, label] == 1:
            found.setdefault(label, machine)
    return _words(found)


def containers(typed: Typed) -> list[Completion]:
    """Return the ids of the open rentals' containers, except of those that were typed before."""
    ids = {str(row[0]): row[2] or row[1] for row in _read(typed, _CONTAINERS)}
    return _words({each: name for each, name in ids.items() if each not in map(str, typed.earlier)})


def rental_before_ports(typed: Typed) -> list[Completion]:
    """Return the names and labels of the open rentals for the first word of `forward`, and nothing for a port."""
    return [] if typed.earlier else rentals(typed)


def places(typed: Typed) -> list[Completion]:
    """Return the beginnings of places on rented machines, such as `sweep-3:`, and the files of this machine."""
    target, colon, _ = typed.current.partition(":")
    if colon and "/" not in target:
        return []  # the files there are not known here
    # As `cp` reads a place: its target ends at the first colon, and has no slash.
    names = [word for word in rentals(typed) if not set(word.text) & set(":/\\")]
    return [*(word._replace(text=f"{word.text}:", kind="part") for word in names), *files(typed)]


def budgets(typed: Typed) -> list[Completion]:
    """Return the names of the shared budgets."""
    found: dict[str, str] = {}
    for name, limit, per, hourly, currency in _read(typed, _BUDGETS):
        limits = [
            *([] if limit is None else [f"{limit} {currency}" + ("" if per is None else f" a {per}")]),
            *([] if hourly is None else [f"{hourly} {currency} an hour"]),
        ]
        found.setdefault(name, ", ".join(limits))
    return _words(found)


def accounts(_typed: Typed) -> list[Completion]:
    """Return the names of the accounts of the configuration file."""
    from netmind_rentgpu.config_file import read_config

    try:
        return _words(dict.fromkeys(read_config(os.environ).accounts, ""))
    except RentGPUError:
        return []


def topics(typed: Typed) -> list[Completion]:
    """Return the names of the guide's pages, or behind `reference` the public names."""
    from netmind_rentgpu.cli.guide import public_names, titles

    if typed.earlier == ("reference",):
        return _words(dict.fromkeys(public_names(), ""))
    if typed.earlier:
        return []
    return _words({**titles(), "reference": "a class, a function or a method"})


def results(typed: Typed) -> list[Completion]:
    """Return the next words of the commands that print a result."""
    from netmind_rentgpu.cli.schemas import RESULTS

    count = len(typed.earlier)
    commands = (tuple(name.split()) for name in RESULTS)
    following = (words[count] for words in commands if words[:count] == typed.earlier and len(words) > count)
    return _words(dict.fromkeys(following, ""))


def settings(_typed: Typed) -> list[Completion]:
    """Return the names of the settings of `config list`."""
    from netmind_rentgpu.cli.configuration import NAMES

    return _words(dict.fromkeys(NAMES, ""))


def files(_typed: Typed) -> list[Completion]:
    """Return a stand-in for the files that the shell finds."""
    return [Completion("", kind="file")]


def _words(found: Mapping[str, str]) -> list[Completion]:
    """Return words by texts and their descriptions, but no text that a terminal would obey, or that reads as an option."""
    return [
        Completion(text, escaped(" ".join(description.split())))
        for text, description in found.items()
        if text.isprintable() and not text.startswith("-")
    ]


def _read(typed: Typed, query: str) -> list[Any]:
    """Return rows of the state file; none if there is no file, or it cannot be read now."""
    from netmind_rentgpu.sqlite_file import DatabaseError, open_unchanged

    try:
        with closing(open_unchanged(state_path(typed.state, os.environ))) as connection:
            return connection.execute(query).fetchall()
    # A ValueError if the path holds a null character.
    except (DatabaseError, OSError, RentGPUError, ValueError):
        return []
