"""The clock of an emulator, and the timeline of events that it makes due."""

import threading
from typing import Any

import pytest

from netmind_rentgpu.emulator import Clock
from netmind_rentgpu.emulator.clock import LATEST, Timeline


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The machine's own clocks, moved by the test."""

    class Machine:
        real, monotonic = 1000.0, 50.0

        def go(self, seconds: float) -> None:
            self.real += seconds
            self.monotonic += seconds

    machine = Machine()
    monkeypatch.setattr(Clock, "_read_wall", lambda _: machine.real)
    monkeypatch.setattr(Clock, "_read_monotonic", lambda _: machine.monotonic)
    return machine


def test_clock_follows_the_monotonic_clock_of_the_machine(machine: Any) -> None:
    clock = Clock()
    assert (clock.now, clock.scale) == (1000, 1)
    machine.go(7)
    assert clock.now == 1007
    # A change of the machine's wall clock does not move the emulator's clock.
    machine.real -= 500
    assert clock.now == 1007


def test_scaled_clock_runs_faster_from_the_change_on(machine: Any) -> None:
    clock = Clock(scale=3600, start=5)
    machine.go(2)
    assert clock.now == 5 + 7200
    clock.scale = 2
    assert clock.now == 5 + 7200
    machine.go(10)
    assert clock.now == 5 + 7200 + 20
    clock.advance(1)
    assert clock.now == 5 + 7200 + 21
    assert repr(clock) == "Clock(scale=2, start=7226.0)"


def test_clock_with_scale_zero_moves_only_by_advance(machine: Any) -> None:
    clock = Clock(scale=0, start=0)
    machine.go(100)
    assert clock.now == 0
    clock.advance(1.5)
    clock.advance(0)
    assert clock.now == 1.5
    clock.advance(1, scale=10)
    machine.go(1)
    assert clock.now == 12.5


def test_clock_stops_at_the_latest_time_that_can_be_written(machine: Any) -> None:
    clock = Clock(start=LATEST - 1)
    machine.go(100)
    assert clock.now == LATEST
    clock.advance(100)
    assert clock.now == LATEST


@pytest.mark.parametrize("seconds", [-1, -1e-9, float("nan"), float("inf"), 1e9 + 1])
def test_advance_refuses_seconds_that_are_negative_or_too_many(seconds: float) -> None:
    clock = Clock(scale=0, start=10)
    with pytest.raises(ValueError, match="goes forward"):
        clock.advance(seconds)
    with pytest.raises(ValueError, match="goes forward"):
        clock.advance(seconds, scale=5)
    assert (clock.now, clock.scale) == (10, 0)


@pytest.mark.parametrize("scale", [-1, float("nan"), 1e6 + 1])
def test_invalid_scale_is_refused(scale: float) -> None:
    clock = Clock(scale=0, start=10)
    with pytest.raises(ValueError, match="scale is from 0"):
        clock.scale = scale
    with pytest.raises(ValueError, match="scale is from 0"):
        clock.advance(1, scale=scale)
    with pytest.raises(ValueError, match="scale is from 0"):
        Clock(scale=scale)
    assert (clock.now, clock.scale) == (10, 0)


@pytest.mark.parametrize("start", [-1, float("nan"), LATEST + 1])
def test_invalid_start_is_refused(start: float) -> None:
    with pytest.raises(ValueError, match="shows the years"):
        Clock(start=start)


def test_advances_of_several_threads_add_up() -> None:
    clock = Clock(scale=0, start=0)
    threads = [threading.Thread(target=lambda: [clock.advance(1) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.now == 8000


def test_due_events_happen_in_order_each_at_its_time() -> None:
    clock = Clock(scale=0, start=0)
    timeline = Timeline(clock)
    seen: list[tuple[str, float]] = []

    def happens(name: str) -> Any:
        return lambda: seen.append((name, timeline.now))

    timeline.plan(30, happens("third"))
    timeline.plan(10, lambda: timeline.plan(timeline.now + 5, happens("second")))
    timeline.plan(10, happens("first"))
    timeline.settle()
    assert seen == []
    clock.advance(20)
    assert (timeline.now, seen) == (0, [])
    timeline.settle()
    assert (timeline.now, seen) == (20, [("first", 10), ("second", 15)])
    clock.advance(10)
    timeline.settle()
    assert seen[2:] == [("third", 30)]


def test_clock_never_goes_back_while_another_thread_moves_it() -> None:
    clock = Clock(scale=3600)
    done = threading.Event()

    def move() -> None:
        for number in range(20_000):
            clock.advance(0, scale=3600 if number % 2 else 1)
        done.set()

    mover = threading.Thread(target=move)
    mover.start()
    last = clock.now
    while not done.is_set():
        last, before = clock.now, last
        assert last >= before
    mover.join()
