"""The command line, `rentgpu`. The extra `cli` installs its libraries."""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ["main"]


def main() -> None:
    """Run the command line, or exit with a message if its libraries are missing."""
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing and sys.argv[1:2] == ["help"]:
        from netmind_rentgpu.cli.guide import NoSuchTopicError, help_text

        try:
            sys.stdout.write(help_text(sys.argv[2:]))
        except NoSuchTopicError as error:
            sys.exit(f"rentgpu: {error}")
        return
    if missing:
        sys.exit(
            f"rentgpu: {' and '.join(missing)} missing; the extra `cli` installs them: run"
            " pip install '.[cli]' in the folder of this package's source"
        )

    # An interrupt of the imports ends the program without a traceback.
    interrupts = signal.getsignal(signal.SIGINT)
    if interrupts is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from netmind_rentgpu.cli.app import run

    signal.signal(signal.SIGINT, interrupts)
    program = Path(sys.argv[0]).name
    sys.exit(run(sys.argv[1:], prog_name=program if program == "netmind-rentgpu" else "rentgpu"))
