"""The command line, `rentgpu`. The extra `cli` installs its libraries."""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ["main"]

# As in `exit_codes`, which is not imported without the libraries.
_NOT_FOUND = 66


def main() -> None:
    """Run the command line, or exit with a message if its libraries are missing."""
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing and sys.argv[1:2] == ["help"]:
        from netmind_rentgpu.cli.guide import NoSuchTopicError, help_text

        try:
            sys.stdout.write(help_text(sys.argv[2:]))
        except NoSuchTopicError as error:
            sys.stderr.write(f"rentgpu: {error}\n")
            sys.exit(_NOT_FOUND)
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
