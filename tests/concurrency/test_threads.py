"""Blocking work in threads of its own."""

from __future__ import annotations

import threading
from types import FrameType
from typing import Any

from netmind_rentgpu.concurrency.threads import run_in_thread


async def test_work_run_in_a_thread_is_traced_by_a_debugger() -> None:
    traced: list[str] = []

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        traced.append(frame.f_code.co_name)

    def work_to_be_seen() -> int:
        return threading.get_ident()

    before = threading.gettrace()
    threading.settrace(trace)
    try:
        assert await run_in_thread(work_to_be_seen) != threading.get_ident()
    finally:
        threading.settrace(before)  # type: ignore[arg-type]  # typeshed allows None in sys.settrace alone
    assert "work_to_be_seen" in traced
