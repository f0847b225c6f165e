"""The page of the exit codes: it has each code of the program, with its explanation."""

from __future__ import annotations

import re
from pathlib import Path

import netmind_rentgpu
from netmind_rentgpu.cli.exit_codes import EXPLANATIONS, ExitCode
from netmind_rentgpu.cli.guide import help_text

PAGE = (Path(netmind_rentgpu.__file__).parent / "guide" / "reference" / "exit-codes.md").read_text(encoding="utf-8")


def test_table_of_exit_codes_has_the_explanations_in_their_order() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", PAGE, re.MULTILINE)
    assert rows == [(str(code.value), text) for code, text in EXPLANATIONS.items()]
    assert list(EXPLANATIONS) == list(ExitCode)


def test_last_row_of_the_table_is_for_the_status_of_a_remote_command() -> None:
    assert re.findall(r"^\| (\w+) \|", PAGE, re.MULTILINE)[-1] == "others"


def test_help_prints_the_page_of_exit_codes() -> None:
    assert help_text(["exit-codes"]) == PAGE
