"""The command line, `netmind-rentgpu`. Its libraries come with the extra `cli`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        import click  # noqa: F401  # only whether it is there
        import rich  # noqa: F401  # only whether it is there
    except ImportError as error:
        sys.exit(f"netmind-rentgpu: {error.name} is missing; install the command line with: pip install 'netmind-rentgpu[cli]'")

    from netmind_rentgpu.cli.app import app

    app.main(prog_name="netmind-rentgpu")
