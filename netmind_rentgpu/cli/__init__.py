"""The command line, `netmind-rentgpu`. The extra `cli` installs its libraries."""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["main"]


def main() -> None:
    """Run the command line, or exit with a message if its libraries are missing."""
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing:
        sys.exit(f"netmind-rentgpu: {' and '.join(missing)} missing; run: pip install 'netmind-rentgpu[cli]'")

    from netmind_rentgpu.cli.app import app

    app.main(prog_name="netmind-rentgpu")
