"""`rentgpu completion` in real shells: words are typed on a terminal, completed by Tab, and run."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from openssh import missing
from state_files import record, write_records
from terminals import Terminal, terminal

pytestmark = pytest.mark.slow

PROMPT = "READY> "
# Completes as the program does, and otherwise prints its words.
PROGRAM = """#!/bin/sh
if [ -n "$_RENTGPU_COMPLETE" ] || [ "$1" = completion ]; then exec '{python}' -m netmind_rentgpu "$@"; fi
printf '<%s>' "$@"; echo
"""
# For each shell: its words, the file that it reads first, and the content of that file.
STARTS = {
    "bash": (
        ["bash", "--noprofile", "--rcfile", ".bashrc", "-i"],
        ".bashrc",
        f"PS1='{PROMPT}'\neval \"$(rentgpu completion bash)\"\n",
    ),
    "zsh": (
        ["zsh", "-d", "-i"],
        ".zshrc",
        f"PS1='{PROMPT}'\nautoload -Uz compinit; compinit -u -D\neval \"$(rentgpu completion zsh)\"\n",
    ),
    "fish": (
        ["fish", "-i"],
        "fish/config.fish",
        f"function fish_prompt; printf '{PROMPT}'; end\nrentgpu completion fish | source\n",
    ),
}
COMPLETED = {
    "rentgpu off": ["offers"],
    "netmind-rentgpu rentals ex": ["rentals", "extend"],
    "rentgpu rent --sha": ["rent", "--shared-budget"],
    "rentgpu -o cs": ["-o", "csv"],
    "rentgpu ssh rg-a": ["ssh", "rg-aaa-1"],
    "rentgpu ssh my": ["ssh", "my label"],
    '~/programs/rentgpu ssh "my': ["ssh", "my label"],
    "rentgpu rentals release desk it": ["rentals", "release", "desk", 'it\'s $5 \\ `x` "q"'],
    "rentgpu logs train:": ["logs", "train:a"],
    "rentgpu --state other.sqlite3 run in": ["--state", "other.sqlite3", "run", "in-other"],
    "rentgpu cp de": ["cp", "desk:"],
    "rentgpu cp ./my": ["cp", "./my file.txt"],
    "rentgpu rent --shared-budget=two": ["rent", "--shared-budget=two words"],
    "rentgpu help guar": ["help", "guardian"],
    "rentgpu run desk -- de": ["run", "desk", "--", "de"],
}
"""For each beginning of a line, the words that it has after Tab."""


@pytest.fixture(params=STARTS)
def shell(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        missing(request.param)
    return str(request.param)


@pytest.fixture
def shown(shell: str, tmp_path: Path) -> Iterator[Terminal]:
    """The shell on a terminal, in a folder with a state file, and without a token or a service."""
    words, start, content = STARTS[shell]
    programs = tmp_path / "programs"
    # fish would otherwise begin to read all manual pages.
    for folder in (programs, tmp_path / "fish" / "generated_completions"):
        folder.mkdir(parents=True)
    for name in ("rentgpu", "netmind-rentgpu"):
        (programs / name).write_text(PROGRAM.format(python=sys.executable))
        (programs / name).chmod(0o755)
    (tmp_path / start).write_text(content)
    (tmp_path / "my file.txt").touch()
    labels = ("desk", "my label", "train:a", 'it\'s $5 \\ `x` "q"')
    names = ("rg-aaa-1", "rg-bbb-2", "rg-ccc-3", "rg-ddd-4")
    state = tmp_path / "state.sqlite3"
    write_records(state, *(record(name, label=label) for name, label in zip(names, labels, strict=True)))
    write_records(tmp_path / "other.sqlite3", record("rg-zzz-9", label="in-other"))
    with closing(sqlite3.connect(state)) as connection, connection:
        connection.execute("INSERT INTO budgets (origin, name, hourly, currency) VALUES ('', 'two words', '5', 'USD')")
    kept = {
        name: value for name, value in os.environ.items() if name.startswith(("COVERAGE_", "PYTHON", "LANG", "LC_"))
    }
    variables = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "NETMIND_RENTGPU_STATE": str(state),
        **dict.fromkeys(("HOME", "ZDOTDIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), str(tmp_path)),
        "INPUTRC": os.devnull,
    }
    with terminal(words, folder=tmp_path, environment={**kept, **variables}) as shown:
        shown.until(PROMPT)
        yield shown


def test_shell_completes_words_that_the_program_gets_whole(shell: str, shown: Terminal) -> None:
    for typed, words in COMPLETED.items():
        shown.type(f"{typed}\t\r")
        # Behind the carriage return of the line that was run.
        shown.until(re.escape("".join(f"<{word}>" for word in words)) + "\r\n")
        shown.until(PROMPT)
    # No space follows a colon, because a path does.
    shown.type("rentgpu cp des\tdata/\r")
    shown.until("<cp><desk:data/>\r\n")
    shown.until(PROMPT)
    if shell == "bash":
        shown.type("rentgpu ssh \t\t")
        shown.until(r"my\\ label")
    else:
        shown.type("rentgpu ssh \t")
        shown.until("desk, detached")
