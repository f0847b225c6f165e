"""References to files and sections, in code and in pages: each leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A path with a folder, in backquotes, and the sections named after it, each in quotes.
CITATION = re.compile(r'`([\w.-]+/[\w./-]+\.(?:md|py|toml|txt|yml|yaml))`((?:,? (?:and )?"[^"]+")*)')
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = ("netmind_rentgpu", "tests", "benchmarks", ".github", ".ci")
FILES = [
    *(path for folder in FOLDERS for kind in ("*.py", "*.md") for path in sorted((ROOT / folder).rglob(kind))),
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
]
PAGES = [path for path in FILES if path.suffix == ".md"]


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def anchor(heading: str) -> str:
    """Return the anchor that a heading has on the web."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def citations(path: Path) -> Iterator[tuple[str, list[str]]]:
    # A reference may be broken over two lines of a comment or a docstring.
    text = re.sub(r"\s*\n\s*(?:# )?", " ", path.read_text(encoding="utf-8"))
    for target, sections in CITATION.findall(text):
        yield target, re.findall(r'"([^"]+)"', sections)


def test_every_kind_of_file_is_read() -> None:
    cited = {target for path in FILES for target, _ in citations(path)}
    assert "netmind_rentgpu/guide/wire-contract.md" in cited
    assert ROOT / ".github" / "CONTRIBUTING.md" in PAGES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_cited_file_and_its_sections_exist(path: Path) -> None:
    for target, sections in citations(path):
        page = ROOT / target
        # In a user's own folder, or in the package.
        assert page.exists() or (ROOT / "netmind_rentgpu" / target).exists(), target
        for section in sections:
            assert section in headings(page), f"{target} has no section {section!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        target, _, section = link.partition("#")
        if "://" in target:
            continue
        linked = page if not target else (page.parent / target).resolve()
        assert linked.exists(), link
        if section:
            assert section in {anchor(heading) for heading in headings(linked)}, link
