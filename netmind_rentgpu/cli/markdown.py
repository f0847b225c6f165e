"""Markdown on a terminal, by rich."""

from __future__ import annotations

from rich.console import Console
from rich.markdown import Markdown

__all__ = ["print_markdown"]

_WIDEST = 100


def print_markdown(text: str) -> None:
    """Print a page in lines of at most 100 characters, however wide the terminal is."""
    console = Console()
    console.print(Markdown(text, hyperlinks=False), width=min(console.width, _WIDEST))
