"""An interrupt at a given step of the code of some files."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any


class Interrupter:
    """A trace function that raises KeyboardInterrupt at a given bytecode step of some files.

    Attributes:
        moment: the steps that are left until the interrupt; at most 0 once the interrupt was raised.
    """

    def __init__(self, *files: str) -> None:
        self.files = files
        self.moment = 0
        # Python 3.12 asks for this before tracing begins.
        sys._getframe().f_trace_opcodes = True

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Count the steps of the files, and raise at the given moment."""
        frame.f_trace_opcodes = frame.f_code.co_filename in self.files
        if event == "opcode":
            self.moment -= 1
            if self.moment == 0:
                raise KeyboardInterrupt
        return self.trace
