"""Plain English: no docstring, comment or message of the package uses a banned word or a banned opening."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "netmind_rentgpu"
# Words without an actor, or with another meaning than their plain one.
WORDS = re.compile(
    r"\b(?:whoever|whomever|whosoever|whatever|somebody|nobody|anybody|everybody|surely|lain|borne|for ever|here and now"
    r"|tak(?:e|es|en|ing) in|took in|let(?:s|ting)? (?:us|go|in)|see(?:s|n)? to|struck out|strik(?:e|es|ing) out"
    r"|(?:be|is|are|was|were|been) told|tells? (?:whether|by|of)|(?:be|is) had|c[ao]mes? of|c[ao]me to nothing"
    r"|(?:the )?ones? (?:who|that|which|whose)|those who|he who|they who)\b",
    re.IGNORECASE,
)
OPENINGS = re.compile(r"(?:What|Who|Whose|Where|Whether|That|Of|Such)\b")
# A function's docstring begins with one of these, or names what a call of the service sends.
VERBS = frozenset(
    re.findall(
        r"\w+",
        """
        Accept Act Add Adopt Advance Allow Append Apply Approve Arm Ask Assert Attach Begin Bind Break Build Cache Call
        Cancel Change Charge Check Choose Claim Clear Close Collect Compare Compute Configure Confirm Connect Consume
        Continue Convert Copy Count Create Cut Decide Decode Delete Derive Describe Detach Discard Disconnect Divide
        Do Download Draw Drop Encode End Ensure Enter Escape Estimate Examine Exclude Execute Expire Extend Fail Feed
        Fetch Fill Filter Find Finish Fire Flush Follow Forget Format Forward Generate Get Grow Handle Hash Hide
        Identify Ignore Import Initialize Insert Install Interrupt Iterate Join Judge Keep Kill Leave Limit List Listen
        Load Lock Log Look Make Map Mark Mask Match Measure Merge Migrate Mount Move Name Normalize Notify Number Open Order
        Park Parse Pass Pause Perform Pick Poll Prepare Print Probe Propose Protect Prove Provision Publish Put Raise
        Rank Read Receive Reconnect Record Reduce Refresh Refuse Register Reject Release Reload Remember Remove Rename
        Render Rent Repeat Replace Report Request Require Reserve Reset Resolve Restart Restore Resume Retry Return
        Reuse Reverse Run Sample Save Scale Schedule Search Seed Select Send Serve Set Shorten Show Shut Sign Simulate
        Skip Sleep Sort Split Start Stop Store Stream Subscribe Sum Suspend Swap Switch Tighten Track Transfer
        Translate Try Turn Unlock Unregister Unsubscribe Untrack Update Upload Use Validate Verify Wait Wake Walk Warn
        Watch Wrap Write Yield
        """,
    )
)
NO_PROPERTY = re.compile(r"(?:It|How|When|Why|Which|There|Over|Its) ?\b")
PAGES = [PACKAGE.parent / "README.md", *sorted((PACKAGE / "guide").rglob("*.md"))]
PARTS = sorted({path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")})


class Text(NamedTuple):
    line: int
    kind: str
    content: str


def docstring_kind(node: ast.AST) -> str:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
        return "property" if decorators & {"property", "cached_property"} else "function"
    return "docstring"


def texts_of(source: str) -> Iterator[Text]:
    """Find every docstring, every other text with a space in it, and every comment."""
    tree = ast.parse(source)
    docstrings: set[ast.AST] = set()
    for node in ast.walk(tree):
        for child in getattr(node, "body", []) if not isinstance(node, (ast.Lambda, ast.IfExp)) else []:
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                docstrings.add(child.value)
                kind = docstring_kind(node) if child is node.body[0] else "docstring"  # type: ignore[attr-defined]  # has one
                yield Text(child.lineno, kind, child.value.value.strip())
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node not in docstrings
            and " " in node.value
        ):
            yield Text(node.lineno, "text", node.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text(token.start[0], "comment", token.string.lstrip("# "))


def faults_of(text: Text) -> list[str]:
    """Return what a text does that it must not."""
    faults = [f"says {found[0]!r}" for found in WORDS.finditer(" ".join(text.content.split()))]
    first = re.split(r"[\s.,;:]", text.content, maxsplit=1)[0]
    if OPENINGS.match(text.content):
        faults.append(f"opens with {first!r}")
    elif text.kind == "function" and first not in VERBS and not first.startswith("`"):
        faults.append(f"opens with {first!r}, which is none of the verbs")
    elif text.kind == "property" and NO_PROPERTY.match(text.content):
        faults.append(f"opens with {first!r}, not with the thing")
    return faults


def paragraphs_of(page: str) -> Iterator[Text]:
    """Find every paragraph, heading, list item and table row of a page in Markdown, without its code."""
    line = 1
    for part in re.split(r"(^ *```.*?^ *```$)", page, flags=re.MULTILINE | re.DOTALL):
        if not part.lstrip().startswith("```"):
            for found in re.finditer(r"^(?:[#*|]+|\d+\.)? *(.+(?:\n(?![#*|\n]|\d+\.).+)*)", part, re.MULTILINE):
                # A heading may be a question.
                kind, text = ("heading", f"# {found[1]}") if found[0].startswith("#") else ("paragraph", found[1])
                yield Text(line + part.count("\n", 0, found.start()), kind, re.sub(r"`[^`]*`", "`code`", text))
        line += part.count("\n")


def faults_in_page(page: Path) -> list[str]:
    return [
        f"{page.name}:{text.line}: {fault}"
        for text in paragraphs_of(page.read_text(encoding="utf-8"))
        for fault in faults_of(text)
    ]


def faults_in(part: str) -> list[str]:
    path = PACKAGE / part
    return [
        f"{file.relative_to(PACKAGE.parent)}:{text.line}: {fault}: {text.content.splitlines()[0][:80]}"
        for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))
        for text in texts_of(file.read_text(encoding="utf-8"))
        for fault in faults_of(text)
    ]


@pytest.mark.parametrize("part", PARTS)
def test_package_reads_as_plain_english(part: str) -> None:
    assert faults_in(part) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_reads_as_plain_english_in_lines_of_125_characters(page: Path) -> None:
    assert faults_in_page(page) == []
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 125 and not line.startswith("|")] == []


def test_faults_of_a_page_are_found() -> None:
    page = (
        "# What it surely is\n\n* Nobody said it.\n  And `whoever` is code.\n\n```text\nnobody\n```\n\nA\nsurely B.\n"
    )
    assert [(text.line, faults_of(text)) for text in paragraphs_of(page)] == [
        (1, ["says 'surely'"]),
        (3, ["says 'Nobody'"]),
        (10, ["says 'surely'"]),
    ]


@pytest.mark.parametrize(
    ("source", "faults"),
    [
        ('"""What a thing is."""', ["opens with 'What'"]),
        ('def f():\n    """Take in a thing."""', ["says 'Take in'", "opens with 'Take', which is none of the verbs"]),
        ('def f():\n    """Return a thing."""\n    # Whoever asks\n', ["says 'Whoever'"]),
        (
            'class C:\n    @property\n    def f(self):\n        """How much it is."""',
            ["opens with 'How', not with the thing"],
        ),
        ('f("nobody\\nwants it")', ["says 'nobody'"]),
        ('f("is"\n  " told")', ["says 'is told'"]),
        ('f(f"{x} cannot surely be")', ["says 'surely'"]),
        ('x = 1\n"""Such a thing."""', ["opens with 'Such'"]),
        ('def f():\n    """`GET /machines`: all machines."""', []),
    ],
)
def test_faults_are_found(source: str, faults: list[str]) -> None:
    assert [fault for text in texts_of(source) for fault in faults_of(text)] == faults


if __name__ == "__main__":
    import sys

    for name in sys.argv[1:] or PARTS:
        print(*faults_in(name), sep="\n")
