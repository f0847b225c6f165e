"""The benchmarks, which no test runs, still find what they import from the package."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_benchmark_imports_only_names_that_exist(file: Path) -> None:
    missing = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("netmind_rentgpu")
        for alias in node.names
        if not hasattr(import_module(str(node.module)), alias.name) and not find_spec(f"{node.module}.{alias.name}")
    ]
    assert missing == []


def test_there_are_benchmarks() -> None:
    assert len(FILES) > 5
