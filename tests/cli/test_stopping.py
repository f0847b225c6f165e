"""Signals by the phase of a run; within this process, whose handlers are restored."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from netmind_rentgpu.cli.stopping import Phase, StoppedError, Stopping

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndedError(Exception):
    """The program would have ended at once."""


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def end(code: int) -> None:
        raise EndedError(code)

    monkeypatch.setattr(os, "_exit", end)
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def begun(stopping: Stopping) -> None:
    """Install the handlers, by work that is done at once."""

    async def work() -> None:
        """Do nothing."""

    stopping.run(work)


@pytest.mark.parametrize("number", NUMBERS)
def test_first_signal_cancels_the_work_and_is_said(number: signal.Signals) -> None:
    stopping, said = Stopping(), list[int]()
    stopping.on_first = said.append

    async def work() -> None:
        signal.raise_signal(number)
        await asyncio.sleep(1000)

    with pytest.raises(StoppedError) as caught:
        stopping.run(work)
    assert (caught.value.number, said, stopping.phase) == (number, [number], Phase.ENDING)
    assert number.name in str(caught.value)


def test_result_stands_if_the_signal_comes_at_its_end() -> None:
    stopping, said = Stopping(), list[int]()
    stopping.on_first = said.append

    async def work() -> str:
        stopping.end()
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0)
        return "done"

    assert stopping.run(work) == "done"
    assert (stopping.number, said) == (signal.SIGTERM, [])


def test_second_signal_ends_the_program_unless_it_comes_at_once() -> None:
    now = [100.0]
    stopping = Stopping(clock=lambda: now[0])
    stopping.on_second = lambda number: 1000 + number
    begun(stopping)
    signal.raise_signal(signal.SIGINT)
    now[0] += 0.5
    signal.raise_signal(signal.SIGINT)
    now[0] += 0.1
    with pytest.raises(EndedError, match="1015"):
        signal.raise_signal(signal.SIGTERM)


def test_signal_during_a_question_or_a_moment_before_gives_it_up() -> None:
    stopping = Stopping()

    async def work() -> None:
        with stopping.asking():
            signal.raise_signal(signal.SIGHUP)

    with pytest.raises(StoppedError):
        stopping.run(work)

    later = Stopping()

    async def work_later() -> None:
        signal.raise_signal(signal.SIGHUP)
        with later.asking():
            raise AssertionError("no question may be asked")

    with pytest.raises(StoppedError):
        later.run(work_later)


def test_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    begun(Stopping())
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
