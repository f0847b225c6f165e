"""Markdown on a terminal, by rich."""

from __future__ import annotations

import re

from rich.console import Console
from rich.markdown import Markdown

__all__ = ["print_markdown"]

_WIDEST = 100
_PAGE_LINK = re.compile(r"\[([^\]]+)\]\((?:[\w.-]+/)*([\w-]+)\.md\)")


def print_markdown(text: str) -> None:
    """Print a page in lines of at most 100 characters, however wide the terminal is.

    A link to another page becomes the command's argument that prints it.
    """
    console = Console()
    linked = _PAGE_LINK.sub(r"\1 (`help \2`)", text)
    console.print(Markdown(linked, hyperlinks=False), width=min(console.width, _WIDEST))
