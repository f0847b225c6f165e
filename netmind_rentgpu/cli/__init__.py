"""The command line, `netmind-rentgpu`. The extra `cli` installs its libraries."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.util import find_spec

__all__ = ["main"]


def main() -> None:
    """Run the command line, or exit with a message if its libraries are missing."""
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing and sys.argv[1:2] == ["help"]:
        from netmind_rentgpu.cli.guide import NoSuchTopicError, help_text

        try:
            sys.stdout.write(help_text(sys.argv[2:]))
        except NoSuchTopicError as error:
            sys.exit(f"netmind-rentgpu: {error}")
        return
    if missing:
        sys.exit(
            f"netmind-rentgpu: {' and '.join(missing)} missing; the extra `cli` installs them: run"
            " pip install '.[cli]' in the folder of this package's source"
        )

    from netmind_rentgpu.cli.app import app

    try:
        app.main(prog_name="netmind-rentgpu", standalone_mode=True)
    except OSError as error:
        # Otherwise Python fails once more at its exit, when it flushes what could not be written.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"netmind-rentgpu: could not write the output: {error}")
