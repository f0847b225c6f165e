"""References to files and sections, in code and in pages: each leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

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
    assert "netmind_rentgpu/guide/explanation/wire-contract.md" in cited
    assert ROOT / ".github" / "CONTRIBUTING.md" in PAGES


def test_cited_files_and_their_sections_exist() -> None:
    lost = [
        (str(path.relative_to(ROOT)), target, section)
        for path in FILES
        for target, sections in citations(path)
        for section in sections or [None]
        if not leads_somewhere(target, section)
    ]
    assert lost == []


def leads_somewhere(target: str, section: str | None) -> bool:
    # The guide and CONTRIBUTING.md name files of the package without its folder.
    page = next((page for page in (ROOT / target, ROOT / "netmind_rentgpu" / target) if page.exists()), None)
    return page is not None and (section is None or section in headings(page))


def test_links_of_pages_lead_somewhere() -> None:
    lost = []
    for page in PAGES:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            target, _, section = link.partition("#")
            linked = page if not target else (page.parent / target).resolve()
            if "://" not in target and not (
                linked.exists() and (not section or section in {anchor(heading) for heading in headings(linked)})
            ):
                lost.append((page.name, link))
    assert lost == []
