"""When an idle machine ends: tables of readings, in virtual time and without a machine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from virtual import VirtualLoop

from netmind_rentgpu import ActivityReading, InvalidArgumentError, RentalRecord
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.lifecycle.idle_clock import IdleClock, between_readings
from netmind_rentgpu.rentals.lifecycle.idleness import IdleOptions, IdleWatch
from netmind_rentgpu.rentals.limits import RentalLimits

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
IDLE = ActivityReading(read_at=NOON, processes=0, connections=0, gpu_use=(0, 4), operations=0)


@pytest.mark.parametrize(
    ("since", "read_at", "is_idle", "at", "after"),
    [
        # Idle readings count from the first, and a busy one begins anew.
        (0, 0, True, 1, 0),
        (0, 5, True, 6, 0),
        (0, 5, False, 6, 6),
        (6, 6, True, 7, 6),
        # A late reading counts, but after a long gap nothing is known.
        (0, 5, True, 8, 0),
        (0, 5, True, 8.1, 8.1),
        (0, 5, True, 600, 600),
        # A clock that goes back proves nothing.
        (0, 5, True, 4, 4),
        (0, 5, True, 5, 0),
    ],
)
def test_machine_is_idle_since_the_last_reading_that_was_not(
    since: float, read_at: float, is_idle: bool, at: float, after: float
) -> None:
    clock = IdleClock(NOON + since * MINUTE, NOON + read_at * MINUTE)
    later = clock.after(is_idle=is_idle, at=NOON + at * MINUTE, pause=MINUTE)
    assert later == IdleClock(NOON + after * MINUTE, NOON + at * MINUTE)
    assert later.idle == (at - after) * MINUTE


@pytest.mark.parametrize(("timeout", "pause"), [(60, 60), (240, 60), (200, 50), (20, 5)])
def test_readings_come_once_a_minute_and_more_often_for_a_short_time(timeout: float, pause: float) -> None:
    assert between_readings(timedelta(seconds=timeout), MINUTE) == timedelta(seconds=min(pause, timeout / 4))


@pytest.mark.parametrize(
    ("changes", "is_busy"),
    [
        ({}, False),
        ({"processes": 1}, True),
        ({"connections": 1}, True),
        ({"operations": 1}, True),
        ({"gpu_use": (0, 5)}, True),
        ({"gpu_use": (100,)}, True),
        ({"gpu_use": (4,)}, False),
        ({"gpu_use": ()}, True),
        ({"processes": None}, True),
        ({"connections": None}, True),
        ({"gpu_use": None}, True),
    ],
)
def test_reading_is_busy_with_anything_in_use_or_unknown(changes: dict[str, Any], is_busy: bool) -> None:
    assert attrs.evolve(IDLE, **changes).is_busy == is_busy


class Watched:
    """A rental of which each reading is given.

    Attributes:
        ended_at: the minute at which it ended; None if it did not.
        expiring_at: the minutes of the events that say that it ends.
    """

    def __init__(self, reading_at: Callable[[float], ActivityReading], **options: Any) -> None:
        self._reading_at = reading_at
        self.options = {"idle_timeout": 20 * MINUTE, "judge": None, "notice": 5 * MINUTE, **options}
        self.used = False
        self.reading_takes = 0.0
        self.ended_at: float | None = None
        self.expiring_at: list[float] = []
        self.has_ended = asyncio.Event()
        self.loop = VirtualLoop()

    @property
    def minute(self) -> float:
        return round(self.loop.time() / 60, 6)

    def clock(self) -> ClockReading:
        return ClockReading(NOON + timedelta(seconds=self.loop.time()), boot="a boot", since_boot=self.loop.time())

    async def read(self) -> ActivityReading:
        await asyncio.sleep(self.reading_takes)
        return self._reading_at(self.minute)

    def expire(self) -> None:
        self.ended_at = self.minute
        self.has_ended.set()

    def emit(self, kind: str, record: RentalRecord, *, reason: str) -> None:
        assert (kind, record.name) == ("expiring", "rg-1")
        assert "is deleted at" in reason
        self.expiring_at.append(self.minute)

    async def let_begin(self) -> None:
        await asyncio.sleep(0)

    def run(self, minutes: float, act: Callable[[], Awaitable[None]] | None = None) -> Watched:
        """Watch it for so long, or until it ends."""
        timeout, judge = self.options["idle_timeout"], self.options["judge"]
        events: Any = SimpleNamespace(
            options=SimpleNamespace(notice=self.options["notice"]), emit=self.emit, let_begin=self.let_begin
        )
        context: Any = SimpleNamespace(clock=self.clock, limits=RentalLimits())
        record = RentalRecord(
            name="rg-1",
            stage="ready",
            container_id=7,
            node_name="a",
            gpus=1,
            hourly_price=None,
            intended_at=NOON,
            expires_at=None,
            certain_at=NOON,
            idle_timeout=timeout,
        )

        async def watch() -> None:
            idle = IdleWatch(context, IdleOptions(timeout=timeout, judge=judge), events)
            idle.begin(record, read=self.read, is_used=lambda: self.used, expire=self.expire)
            if act is not None:
                await act()
            with suppress(TimeoutError):
                async with asyncio.timeout(minutes * 60):
                    await self.has_ended.wait()
            idle.end()
            await idle.let_end()

        self.loop.run_until_complete(watch())
        self.loop.close()
        return self


def busy_until(*minutes: float) -> Callable[[float], ActivityReading]:
    """Return the readings of a machine that runs a command at some minutes, and nothing else."""
    return lambda minute: attrs.evolve(IDLE, processes=int(any(minute == busy for busy in minutes)))


@pytest.mark.parametrize(
    ("busy", "ended_at"),
    [
        ((), 20),
        ((1,), 21),
        ((19,), 39),
        ((20,), 40),
        ((5, 24, 43), 63),
        (range(1, 60), 79),
    ],
)
def test_rental_ends_when_its_machine_has_been_idle_for_so_long_and_not_before(busy: Any, ended_at: float) -> None:
    watched = Watched(busy_until(*busy)).run(200)
    assert watched.ended_at == ended_at
    # An event says so five minutes before, each time that it comes so far.
    assert watched.expiring_at[-1] == ended_at - 5


@pytest.mark.parametrize(
    "reading",
    [
        attrs.evolve(IDLE, processes=1),
        attrs.evolve(IDLE, connections=2),
        attrs.evolve(IDLE, operations=1),
        attrs.evolve(IDLE, gpu_use=(5,)),
        attrs.evolve(IDLE, gpu_use=None, unknown=("the use of the GPUs could not be read: nvidia-smi is missing",)),
        attrs.evolve(IDLE, processes=None, connections=None, gpu_use=None, unknown=("no login",)),
    ],
)
def test_rental_of_a_busy_machine_or_of_one_that_cannot_be_read_never_ends(
    reading: ActivityReading, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(lambda _: reading).run(300)
    assert (watched.ended_at, watched.expiring_at) == (None, [])
    # What cannot be read is said once.
    complaints = [record for record in caplog.records if "counts as busy" in record.getMessage()]
    assert len(complaints) == (1 if reading.unknown else 0)


@pytest.mark.parametrize("notice", [None, timedelta(0), 5 * MINUTE, 100 * MINUTE])
def test_event_comes_before_the_end_once_for_each_time_of_idleness(notice: timedelta | None) -> None:
    watched = Watched(busy_until(18), notice=notice).run(100)
    assert watched.ended_at == 38
    expected = {None: [], timedelta(0): [38], 5 * MINUTE: [15, 33], 100 * MINUTE: [1, 19]}
    assert watched.expiring_at == expected[notice]


def test_machine_that_this_process_begins_to_use_during_the_last_reading_stays() -> None:
    watched = Watched(busy_until())
    watched.used = True

    async def stop_using() -> None:
        watched.loop.call_later(25 * 60, lambda: setattr(watched, "used", False))

    assert watched.run(100, stop_using).ended_at == 40


def test_readings_that_take_long_do_not_end_a_rental_early() -> None:
    watched = Watched(busy_until())
    watched.reading_takes = 30.0
    watched.run(100)
    assert watched.ended_at is not None
    assert 20 <= watched.ended_at <= 21


@pytest.mark.parametrize("seconds", [4, 30, 90])
def test_short_time_is_kept_to_the_second(seconds: float) -> None:
    watched = Watched(busy_until(), idle_timeout=timedelta(seconds=seconds)).run(10)
    assert watched.ended_at == pytest.approx(seconds / 60, abs=1e-4)


def test_function_of_the_user_judges_in_place_of_the_reading(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[ActivityReading] = []

    def is_idle(reading: ActivityReading) -> bool:
        seen.append(reading)
        if len(seen) == 3:
            raise ValueError("mine")
        return reading.gpu_use == (50,)

    always_busy = attrs.evolve(IDLE, processes=9, gpu_use=(50,))
    watched = Watched(lambda _: always_busy, judge=is_idle).run(100)
    # The error at the third reading counts as busy.
    assert watched.ended_at == 23
    assert set(seen) == {always_busy}
    assert "idle_when raised an error" in caplog.text


def test_judgement_that_is_no_answer_counts_as_busy() -> None:
    async def never(reading: ActivityReading) -> bool:
        return False

    with pytest.raises(InvalidArgumentError, match=r"^idle_when: must be a plain function"):
        IdleOptions(timeout=MINUTE, judge=never)  # type: ignore[arg-type]  # refused
    loop = asyncio.new_event_loop()
    futures: Any = lambda reading: loop.create_future()  # noqa: E731  # an awaitable
    assert Watched(lambda _: IDLE, judge=futures).run(60).ended_at is None
    loop.close()


@pytest.mark.parametrize("seed", range(30))
def test_random_readings_end_a_rental_when_and_only_when_all_of_the_last_twenty_minutes_were_idle(seed: int) -> None:
    chance = random.Random(seed)
    share = chance.choice((0.02, 0.1, 0.3))
    busy = {minute for minute in range(1, 301) if chance.random() < share}
    expected = next((minute for minute in range(20, 301) if not busy & set(range(minute - 19, minute + 1))), None)
    watched = Watched(busy_until(*busy)).run(300.5)
    assert watched.ended_at == expected
