"""Events of a rental: their order and content, the log, and functions of the caller that raise, hang or are coroutines."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal, Inexact, localcontext
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from lifecycle import expire, set_clock, set_limits
from rented import IMAGE, PROFILE, TIMEOUTS, client
from short_forms import paired
from until import until

from netmind_rentgpu import (
    AsyncRental,
    AsyncRentGPU,
    ClientStateError,
    InvalidArgumentError,
    NoMachineError,
    RentalEndedError,
    RentalEvent,
    RentalExpiredError,
    RentGPU,
)
from netmind_rentgpu.conditions import status_in
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.rentals.lifecycle.events import EventKind

HOUR = timedelta(hours=1)


def kinds(events: list[RentalEvent]) -> list[str]:
    """Return the kinds of events, of which several `waiting` in a row count once."""
    found = [event.kind for event in events]
    return [kind for number, kind in enumerate(found) if kind != "waiting" or found[number - 1] != "waiting"]


async def test_life_of_a_rental_is_told_in_its_order(
    gpu: AsyncRentGPU, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.faults.add(Fault("stock-out"))
    first, second, *_ = await gpu.offers()
    events: list[RentalEvent] = []
    with caplog.at_level(logging.INFO, logger="netmind_rentgpu"):
        async with gpu.rent(image=IMAGE, label="sweep", on_event=events.append) as rental:
            assert kinds(events) == ["asking", "refused", "asking", "created", "waiting", "ready"]
    assert kinds(events)[6:] == ["releasing", "released"]
    asking, refused, *_, ready, releasing, released = events
    assert (asking.node_name, asking.gpu_name) == (first.machine.node_name, first.machine.gpu_name)
    assert (asking.container_id, asking.label, asking.gpus) == (None, "sweep", 1)
    assert refused.name == asking.name != ready.name == rental.name
    assert refused.reason is not None
    assert (ready.node_name, ready.region) == (second.machine.node_name, second.machine.region)
    assert (ready.hourly_price, ready.currency) == (second.hourly_price, "USD")
    assert (ready.container_id, ready.expires_at) == (rental.container.id, rental.expires_at)
    assert ready.created_at is not None
    assert ready.ready_at is not None
    assert asking.at <= ready.intended_at <= ready.created_at <= ready.ready_at <= ready.at <= released.at
    assert releasing.reason == "its user has ended it"
    assert ready.max_cost == rental.max_cost
    assert released.spent is not None
    # Each is one line of the log.
    assert [record.getMessage() for record in caplog.records if record.levelname == "INFO"] == list(map(str, events))
    emulator.assert_nothing_rented()


async def test_waiting_says_what_the_service_shows(gpu: AsyncRentGPU) -> None:
    events: list[RentalEvent] = []
    async with gpu.rent(image=IMAGE, start_timeout=77, on_event=events.append):
        pass
    reasons = [event.reason for event in events if event.kind == "waiting"]
    assert reasons[0] == "its login has to work within 77 s"
    assert reasons[-1] == "the service shows status 1, and an SSH endpoint"
    assert len(set(reasons)) == len(reasons)


async def test_machines_that_do_not_start_are_told_with_what_follows(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("dies", times=3))
    events: list[RentalEvent] = []
    with pytest.raises(NoMachineError):
        await gpu.rent(image=IMAGE, fail=status_in(3), on_event=events.append).open()
    machine = ["asking", "created", "waiting", "failed", "releasing", "released"]
    assert kinds(events) == machine * 3
    failed = [event for event in events if event.kind == "failed"]
    assert [event.next_step for event in failed] == ["another machine is tried next"] * 2 + ["no other is tried"]
    assert all(event.reason is not None and "status_in(3)" in event.reason for event in failed)
    assert len({event.name for event in failed}) == 3
    assert "did not start: " in str(failed[0])
    assert {event.reason for event in events if event.kind == "releasing"} == {"it did not start"}


async def test_machine_that_does_not_start_in_the_whole_time_is_told(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("never starts", times="all"))
    events: list[RentalEvent] = []
    with pytest.raises(Exception, match="whole start"):
        await gpu.rent(image=IMAGE, timeout=0.5, on_event=events.append).open()
    assert kinds(events) == ["asking", "created", "waiting", "failed", "releasing", "released"]
    assert events[-3].next_step == "no other is tried"


@pytest.mark.parametrize(
    ("when", "told"), [("after", ["asking", "created", "waiting"]), ("before", ["asking", "refused", "asking"])]
)
async def test_lost_answer_is_told_as_created_or_refused(
    gpu: AsyncRentGPU, emulator: Emulator, when: Literal["before", "after"], told: list[str]
) -> None:
    emulator.faults.add(Fault("status", call="create_container", status=502, when=when))
    events: list[RentalEvent] = []
    async with gpu.rent(image=IMAGE, on_event=events.append):
        pass
    assert kinds(events)[:3] == told
    assert all("no container was found after" in (event.reason or "") for event in events if event.kind == "refused")
    assert (await gpu.rentals.reap(wait=True)).clean


# The end comes near.


def ring(gpu: AsyncRentGPU, rental: AsyncRental, passed: timedelta) -> None:
    """Let time pass, and let the timer ring."""
    set_clock(gpu, passed, boot="another")
    rental._expiry._ring()


async def test_end_of_a_rental_is_told_once_before_it_comes(gpu: AsyncRentGPU) -> None:
    events: list[RentalEvent] = []
    notice = timedelta(minutes=10)
    async with gpu.rent(image=IMAGE, ttl=HOUR, notice=notice, on_event=events.append) as rental:
        ring(gpu, rental, timedelta(minutes=45))
        await asyncio.sleep(0)
        assert not rental._expiry._tells
        ring(gpu, rental, timedelta(minutes=6))
        await until(lambda: events[-1].kind == "expiring")
        assert events[-1].expires_at == rental.expires_at
        assert "is deleted then, unless it is extended" in str(events[-1])
        ring(gpu, rental, timedelta(minutes=1))
        assert not rental._expiry._tells
        await rental.extend(ttl=HOUR)
        assert events[-1].kind == "extended"
        assert events[-1].expires_at == rental.expires_at
        ring(gpu, rental, timedelta(minutes=55))
        await until(lambda: events[-1].kind == "expiring")
    assert kinds(events).count("expiring") == 2


async def test_extension_from_elsewhere_is_told_in_place_of_the_end(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[RentalEvent] = []
    async with client(emulator, state) as other, gpu.rent(image=IMAGE, ttl=HOUR, on_event=events.append) as rental:
        with caplog.at_level(logging.INFO, logger="netmind_rentgpu"):
            record = await other.rentals.extend(rental.name, ttl=1.5 * HOUR)
        assert caplog.messages[-1].startswith(
            f"{rental.name}: extended until {record.expires_at:%Y-%m-%d %H:%M:%S} UTC"
        )
        ring(gpu, rental, timedelta(minutes=58))
        await until(lambda: events[-1].kind == "extended")
        assert rental.expires_at == record.expires_at == events[-1].expires_at
        assert not rental._expiry._tells
    assert "expiring" not in kinds(events)


async def test_end_is_told_by_what_is_known_if_the_state_file_cannot_be_read(
    gpu: AsyncRentGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    from netmind_rentgpu import StateFileError
    from netmind_rentgpu.rentals.ledger.store import Ledger

    async def fail(*_: Any) -> Any:
        raise StateFileError("no")

    events: list[RentalEvent] = []
    async with gpu.rent(image=IMAGE, ttl=HOUR, on_event=events.append) as rental:
        monkeypatch.setattr(Ledger, "find", fail)
        ring(gpu, rental, timedelta(minutes=58))
        await until(lambda: events[-1].kind == "expiring")
        monkeypatch.undo()


@pytest.mark.parametrize(("notice", "count"), [(None, 0), (timedelta(0), 0), (HOUR, 1), (timedelta.max, 1)])
async def test_notice_longer_than_the_rental_is_told_at_once(
    gpu: AsyncRentGPU, notice: timedelta | None, count: int
) -> None:
    events: list[RentalEvent] = []
    async with gpu.rent(image=IMAGE, ttl=0.9 * HOUR, notice=notice, on_event=events.append):
        await until(lambda: kinds(events).count("expiring") == count)
    assert kinds(events).count("expiring") == count


async def test_expired_rental_is_released_because_its_time_is_up(gpu: AsyncRentGPU) -> None:
    events: list[RentalEvent] = []
    with pytest.raises(RentalExpiredError):
        async with gpu.rent(image=IMAGE, on_event=events.append) as rental:
            expire(rental)
            await asyncio.Event().wait()
    assert [(event.kind, event.reason) for event in events[-2:]] == [
        ("releasing", "its time is up"),
        ("released", None),
    ]


async def test_attached_rental_tells_its_events(gpu: AsyncRentGPU) -> None:
    events: list[RentalEvent] = []
    async with gpu.rent(image=IMAGE, on_event=events.append) as rental:
        record = await rental.detach()
    assert kinds(events)[-1] == "ready"
    assert record.ready_at is not None
    events.clear()
    async with gpu.rentals.attach(record, notice=timedelta(days=2), on_event=events.append):
        await until(lambda: "expiring" in kinds(events))
    # The notice may come between two looks at the container.
    others = [event for event in events if event.kind != "expiring"]
    assert kinds(others) == ["waiting", "ready", "releasing", "released"]


# The caller's function.


class SomeError(BaseException):
    """An error that no handler of `Exception` catches."""


@pytest.mark.parametrize(
    ("kind", "error"),
    paired(
        [kind for kind in get_args(EventKind) if kind not in ("out_of_stock", "failed", "expiring", "extended")],
        [ValueError, SystemExit, asyncio.CancelledError, SomeError],
    ),
)
async def test_function_that_raises_changes_nothing(
    gpu: AsyncRentGPU,
    emulator: Emulator,
    caplog: pytest.LogCaptureFixture,
    kind: EventKind,
    error: type[BaseException],
) -> None:
    emulator.faults.add(Fault("stock-out"))
    events: list[RentalEvent] = []

    def on_event(event: RentalEvent) -> None:
        events.append(event)
        if event.kind == kind:
            raise error("the caller's own")

    async with gpu.rent(image=IMAGE, on_event=on_event) as rental:
        assert (await rental.run("true")).ok
    assert kinds(events)[-1] == "released"
    assert "on_event raised an error, which changes nothing, at the event" in caplog.text
    assert "the caller's own" in caplog.text
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


@pytest.mark.parametrize("kind", ["failed", "expiring", "extended"])
async def test_function_that_raises_at_a_rare_event_changes_nothing(
    gpu: AsyncRentGPU, emulator: Emulator, kind: EventKind
) -> None:
    emulator.faults.add(Fault("dies"))
    raised: list[str] = []

    def on_event(event: RentalEvent) -> None:
        if event.kind == kind:
            raised.append(kind)
            raise SomeError

    async with gpu.rent(image=IMAGE, fail=status_in(3), ttl=HOUR, on_event=on_event) as rental:
        await rental.extend(ttl=1.2 * HOUR)
        ring(gpu, rental, timedelta(minutes=70))
        await until(lambda: raised == [kind])
        assert (await rental.run("true")).ok
    emulator.assert_nothing_rented()


async def test_coroutines_are_awaited_one_after_the_other_before_the_block_is_left(gpu: AsyncRentGPU) -> None:
    told: list[str] = []
    under_way: set[str] = set()

    async def on_event(event: RentalEvent) -> None:
        assert not under_way
        under_way.add(event.kind)
        await asyncio.sleep(0.02)
        under_way.clear()
        told.append(event.kind)

    async with gpu.rent(image=IMAGE, on_event=on_event):
        pass
    assert told[:2] == ["asking", "created"]
    assert told[-3:] == ["ready", "releasing", "released"]


@pytest.mark.parametrize("error", [ValueError, SystemExit, asyncio.CancelledError])
async def test_coroutine_that_raises_changes_nothing(
    gpu: AsyncRentGPU, emulator: Emulator, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    told: list[str] = []

    async def on_event(event: RentalEvent) -> None:
        told.append(event.kind)
        await asyncio.sleep(0)
        raise error("the caller's own")

    async with gpu.rent(image=IMAGE, on_event=on_event) as rental:
        assert (await rental.run("true")).ok
    assert told[-1] == "released"
    assert caplog.text.count("on_event raised an error") == len(told)
    emulator.assert_nothing_rented()


async def test_coroutine_that_hangs_is_cancelled_after_the_end(
    gpu: AsyncRentGPU, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    set_limits(gpu, callbacks=0.1)
    ended: list[str] = []

    async def on_event(event: RentalEvent) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(event.kind)

    async with gpu.rent(image=IMAGE, on_event=on_event):
        assert ended == []
    await until(lambda: ended == ["asking"])
    assert "on_event did not return within 0.1 s of the rental's end, and was cancelled" in caplog.text
    emulator.assert_nothing_rented()


async def test_coroutine_that_closes_the_rental_ends_it(
    gpu: AsyncRentGPU, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    entered, told = asyncio.Event(), list[str]()

    async def on_event(event: RentalEvent) -> None:
        told.append(event.kind)
        if event.kind == "ready":
            await entered.wait()
            await rental.close()

    rental = await gpu.rent(image=IMAGE, on_event=on_event).open()
    entered.set()
    await until(lambda: not emulator.running)
    await rental.close()
    assert rental._events._telling is not None
    await asyncio.wait({rental._events._telling})
    # It has not been waited for in vain, and has got the last events, too.
    assert told[-2:] == ["releasing", "released"]
    assert "was cancelled" not in caplog.text
    emulator.assert_nothing_rented()


def test_function_of_a_synchronous_rental_runs_in_the_thread_of_the_clients(emulator: Any, tmp_path: Path) -> None:
    del emulator
    threads: set[str] = set()
    errors: list[ClientStateError] = []

    with Emulator(seed=7, boot_seconds=0.02, ssh=True) as own:
        gpu = RentGPU(own.token, base_url=own.url, state=tmp_path / "state", profile=PROFILE, timeout=TIMEOUTS)

        def on_event(event: RentalEvent) -> None:
            threads.add(threading.current_thread().name)
            try:
                gpu.rentals.list()
            except ClientStateError as error:
                errors.append(error)

        with gpu, gpu.rent(image=IMAGE, on_event=on_event) as rental:
            assert rental.run("true").ok
        own.assert_nothing_rented()
    assert len(threads) == 1
    assert threading.current_thread().name not in threads
    assert len(errors) >= 6


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"on_event": "print"}, "on_event: must be a function, not str"),
        ({"notice": 300}, "notice: must be a timedelta of at least 0, or None, not 300"),
        ({"notice": -HOUR}, "notice: must be a timedelta of at least 0, or None"),
    ],
)
async def test_unusable_arguments_are_refused(gpu: AsyncRentGPU, options: dict[str, Any], text: str) -> None:
    calls: list[Callable[..., object]] = [lambda **given: gpu.rent(image=IMAGE, **given)]
    calls.append(lambda **given: gpu.rentals.attach("rg", **given))
    for call in calls:
        with pytest.raises(InvalidArgumentError, match=text):
            call(**options)


def test_event_is_plain_data_for_a_line_of_json() -> None:
    event = RentalEvent(
        kind="created",
        at=datetime(2026, 3, 1, tzinfo=UTC),
        name="rg-1",
        node_name="node",
        gpus=2,
        container_id=7,
        hourly_price=Decimal("0.5"),
        currency="USD",
        intended_at=datetime(2026, 3, 1, tzinfo=UTC),
    )
    plain = json.loads(json.dumps(event.to_dict(json=True)))
    assert plain["at"] == "2026-03-01T00:00:00+00:00"
    assert (plain["kind"], plain["hourly_price"], plain["container_id"]) == ("created", "0.5", 7)
    assert event.to_dict()["hourly_price"] == Decimal("0.5")
    assert str(event) == "rg-1: created on node as container 7, at 0.5 USD an hour"


# Faults that a review has found.


@pytest.mark.parametrize("precision", [1, 3, 6])
async def test_decimal_precision_of_the_program_changes_nothing(
    gpu: AsyncRentGPU, emulator: Emulator, precision: int
) -> None:
    events: list[RentalEvent] = []
    with localcontext() as context:
        context.prec = precision
        context.traps[Inexact] = True
        async with gpu.rent(image=IMAGE, budget=1000, on_event=events.append) as rental:
            set_clock(gpu, HOUR, boot="another")
            assert rental.spent is not None
            await rental.extend(ttl=30 * HOUR)
        (past,) = await gpu.rentals.history()
        report = await gpu.rentals.spent()
    assert kinds(events)[-1] == "released"
    assert past.spent == report.lines[0].spent == report.total["USD"] > 0
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


async def test_event_that_cannot_be_told_stops_no_deletion(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with gpu.rent(image=IMAGE):
        monkeypatch.setattr(RentalEvent, "of", None)
    assert "could not send the event that rg-" in caplog.text
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


async def test_notice_comes_again_after_an_extension_within_it(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    events: list[RentalEvent] = []
    async with (
        client(emulator, state) as other,
        gpu.rent(image=IMAGE, ttl=HOUR, notice=0.5 * HOUR, on_event=events.append) as rental,
    ):
        await other.rentals.extend(rental.name, ttl=1.2 * HOUR)
        ring(gpu, rental, timedelta(minutes=45))
        await until(lambda: events[-1].kind == "expiring")
    assert [kind for kind in kinds(events) if kind in ("extended", "expiring")] == ["extended", "expiring"]


async def test_end_is_not_told_of_a_rental_that_another_process_has_released(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    events: list[RentalEvent] = []
    async with client(emulator, state) as other, gpu.rent(image=IMAGE, ttl=HOUR, on_event=events.append) as rental:
        await other.rentals.release(rental.name, force=True)
        ring(gpu, rental, timedelta(minutes=58))
        await until(lambda: rental._expiry._noticed is not None)
    assert "expiring" not in kinds(events)


async def test_rental_that_is_released_by_force_while_it_starts_begins_on_no_other_machine(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    emulator.faults.add(Fault("never reachable"))
    async with client(emulator, state) as other:
        entering = asyncio.create_task(gpu.rent(image=IMAGE).open())
        while not (records := await other.rentals.list()) or records[0].container_id is None:
            await asyncio.sleep(0.01)
        await other.rentals.release(records[0], force=True)
        with pytest.raises(RentalEndedError, match="was ended by another process while it started"):
            await entering
    assert len(emulator.charges) == 1
    emulator.assert_nothing_rented()
    assert [past.cause for past in await gpu.rentals.history()] == ["released"]
