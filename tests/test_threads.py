"""Work in threads of our own."""

from __future__ import annotations

import threading
from types import FrameType
from typing import Any

from netmind_rentgpu.threads import in_a_thread


async def test_a_debugger_sees_what_is_done_there() -> None:
    seen: list[str] = []

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        seen.append(frame.f_code.co_name)

    def work_to_be_seen() -> int:
        return threading.get_ident()

    before = threading.gettrace()
    threading.settrace(trace)
    try:
        assert await in_a_thread(work_to_be_seen) != threading.get_ident()
    finally:
        threading.settrace(before)  # type: ignore[arg-type]  # None is none, as typeshed has it for sys alone
    assert "work_to_be_seen" in seen
