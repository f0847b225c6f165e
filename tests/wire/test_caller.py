"""The loop around a call, over a scripted transport and a clock that only the test moves."""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from netmind_rentgpu import (
    APIConnectionError,
    APITimeoutError,
    ClientStateError,
    InsufficientBalanceError,
    Machine,
    NotFoundError,
    RateLimitError,
    RentGPUError,
    Retries,
    ServerError,
    ServiceProfile,
    Timeouts,
    UnexpectedResponseError,
)
from netmind_rentgpu.resources.machines import AsyncMachines
from netmind_rentgpu.settings import Settings
from netmind_rentgpu.wire.caller import Caller
from netmind_rentgpu.wire.messages import RawResponse, Request

GET = Request(method="GET", path="/x")
CREATE = Request(method="POST", path="/x", body={}, idempotent=False, avoid_idle_connection=True)


class Script:
    """A transport that gives each request the next answer, and the last answer again and again."""

    def __init__(self, *answers: Any) -> None:
        self.answers = answers
        self.sent: list[Request] = []
        self.remaining: list[float | None] = []
        self.connection_limit: int | None = None
        self.usable = True
        self.on_send: Callable[[], None] = lambda: None
        self.gate: asyncio.Event | None = None
        self.under_way = self.most_under_way = 0

    def check_usable(self) -> None:
        if not self.usable:
            raise ClientStateError("closed")

    async def send(self, request: Request, timeouts: Timeouts, remaining: float | None) -> RawResponse:
        self.sent.append(request)
        self.remaining.append(remaining)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            self.on_send()
            if self.gate is not None:
                await self.gate.wait()
            found = self.answers[min(len(self.sent), len(self.answers)) - 1]
            if isinstance(found, Exception):
                raise found
            return found
        finally:
            self.under_way -= 1

    async def close(self) -> None:
        self.usable = False


def ok(value: Any = None) -> RawResponse:
    return RawResponse(200, {}, json.dumps(value).encode())


def status(number: int, **headers: str) -> RawResponse:
    return RawResponse(number, {name.replace("_", "-"): value for name, value in headers.items()}, b'{"detail": "no"}')


def lost() -> APIConnectionError:
    return APIConnectionError("lost", maybe_processed=True)


def unsent() -> APIConnectionError:
    return APIConnectionError("unsent", maybe_processed=False)


@pytest.fixture
def make(clock: Any) -> Callable[..., Caller]:
    def make(script: Script, *, max_connections: int = 10, **settings: Any) -> Caller:
        return Caller(
            script,
            Settings(
                token="token",
                base_url="https://x",
                proxy=None,
                timeouts=settings.pop("timeouts", Timeouts()),
                retries=settings.pop("retries", Retries()),
                max_connections=max_connections,
                state=Path("never-made"),
            ),
            ServiceProfile(),
            clock=clock,
            sleep=clock.sleep,
            random=lambda: 1.0,
        )

    return make


async def test_call_that_succeeds_at_once_never_sleeps(make: Any, clock: Any) -> None:
    script = Script(ok({"a": 1}))
    assert (await make(script).call(GET)).payload == {"a": 1}
    assert (clock.slept, script.remaining) == ([], [120])


async def test_backoff_between_attempts_doubles_and_honours_retry_after(make: Any, clock: Any) -> None:
    script = Script(status(502), lost(), status(503, retry_after="3"), ok(1))
    assert (await make(script).call(GET)).payload == 1
    assert clock.slept == [0.5, 1.0, 3.5]
    assert script.remaining == [120, 119.5, 118.5, 115]


@pytest.mark.parametrize("failure", [lost(), status(500), status(502), status(408)])
async def test_create_in_doubt_is_not_sent_again(make: Any, failure: Any) -> None:
    script = Script(failure, ok(1))
    with pytest.raises(RentGPUError):
        await make(script).call(CREATE)
    assert len(script.sent) == 1


@pytest.mark.parametrize("failure", [unsent(), status(429)])
async def test_create_certainly_not_processed_is_sent_again(make: Any, failure: Any) -> None:
    script = Script(failure, ok(1))
    assert (await make(script).call(CREATE)).payload == 1


async def test_request_is_checked_before_each_sending(make: Any) -> None:
    checks: list[int] = []
    script = Script(unsent(), ok())

    def check() -> None:
        checks.append(len(script.sent))
        if len(checks) == 2:
            raise ZeroDivisionError

    caller = make(script)
    with pytest.raises(ZeroDivisionError):
        await caller.call(attrs.evolve(CREATE, check=check))
    assert checks == [0, 1]
    assert len(script.sent) == 1
    # The slot is free again.
    await caller.call(GET)


async def test_last_error_is_raised_with_a_note_on_the_attempts(make: Any) -> None:
    script = Script(status(502))
    with pytest.raises(ServerError) as caught:
        await make(script).call(GET)
    assert caught.value.__notes__ == ["sent 4 times over 3.5 s"]


async def test_error_says_if_an_earlier_attempt_may_have_acted(make: Any) -> None:
    with pytest.raises(APIConnectionError) as caught:
        await make(Script(lost(), unsent())).call(GET)
    assert caught.value.maybe_processed is True

    with pytest.raises(NotFoundError) as missing:
        await make(Script(unsent(), status(404))).call(GET)
    assert missing.value.earlier_attempt_unclear is False

    for unclear in (lost(), status(502), UnexpectedResponseError("", status=200, method="", path="", truncated=True)):
        with pytest.raises(NotFoundError) as missing:
            await make(Script(unclear, status(404))).call(GET)
        assert missing.value.earlier_attempt_unclear is True


async def test_too_long_a_retry_after_is_raised_and_pauses_no_call(make: Any, clock: Any) -> None:
    script = Script(status(429, retry_after="3600"), ok(1))
    caller = make(script)
    with pytest.raises(RateLimitError) as caught:
        await caller.call(GET)
    assert caught.value.retry_after == 3600
    await caller.call(GET)
    assert clock.slept == []


async def test_429_with_retry_after_pauses_the_whole_client(make: Any, clock: Any) -> None:
    caller = make(Script(status(429, retry_after="20"), ok(1)), retries=Retries(max_attempts=1))
    with pytest.raises(RateLimitError):
        await caller.call(GET)
    began = clock.now
    await caller.call(GET)
    # With a share of the backoff on top, because otherwise all waiting calls would go on at once.
    assert clock.now - began == 20.5


async def test_queued_calls_obey_a_pause(make: Any, clock: Any) -> None:
    script = Script(status(429, retry_after="20"), ok(1))
    script.gate = asyncio.Event()
    times: list[float] = []
    caller = make(script, max_connections=1, retries=Retries(max_attempts=1))
    script.on_send = lambda: times.append(clock.now)
    calls = [asyncio.create_task(caller.call(GET)) for _ in range(3)]
    await anyio.wait_all_tasks_blocked()
    script.gate.set()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(end).__name__ for end in ends] == ["RateLimitError", "DecodedResponse", "DecodedResponse"]
    assert [moment - times[0] >= 20 for moment in times] == [False, True, True]


async def test_429_without_retry_after_pauses_for_the_backoff(make: Any, clock: Any) -> None:
    caller = make(Script(status(429), status(429), ok(1)), retries=Retries(max_attempts=2))
    with pytest.raises(RateLimitError):
        await caller.call(GET)
    # The call's own wait; its last refusal names no time to wait for.
    assert (clock.slept, caller._paused_until) == ([0.5], clock.now)


async def test_another_call_waits_out_a_429_without_retry_after(make: Any, clock: Any) -> None:
    script = Script(status(429), ok(1))
    caller = make(script)
    times: list[float] = []
    script.on_send = lambda: times.append(clock.now)

    async def other() -> None:
        await asyncio.sleep(0)
        await caller.call(GET)

    await asyncio.gather(caller.call(GET), other())
    assert len(times) == 3
    assert min(times[1:]) - times[0] >= 0.5


async def test_call_does_not_wait_for_a_pause_longer_than_its_slot_timeout(make: Any, clock: Any) -> None:
    caller = make(Script(status(429, retry_after="50"), ok(1)), retries=Retries(max_attempts=1))
    with pytest.raises(RateLimitError):
        await caller.call(GET)
    caller._sleep = asyncio.sleep
    with anyio.fail_after(10), pytest.raises(APITimeoutError, match="asked for a pause") as caught:
        await caller.call(GET, Timeouts(slot=0.01))
    assert caught.value.maybe_processed is False


async def test_slots_limit_the_requests_under_way(make: Any) -> None:
    script = Script(ok(1))
    script.gate = asyncio.Event()
    caller = make(script, max_connections=10)
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(caller.call(GET)) for _ in range(500)]
        await anyio.wait_all_tasks_blocked()
        assert script.under_way == 10
        script.gate.set()
    assert len(calls) == len(script.sent) == 500
    assert script.most_under_way == 10


async def test_session_with_fewer_connections_limits_the_requests_under_way(make: Any) -> None:
    script = Script(ok(1))
    script.connection_limit = 3
    script.gate = asyncio.Event()
    caller = make(script, max_connections=10)
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(caller.call(GET))
        await anyio.wait_all_tasks_blocked()
        assert script.under_way == 3
        script.gate.set()


async def test_waiting_for_a_slot_has_a_timeout_of_its_own(make: Any) -> None:
    script = Script(ok(1))
    script.gate = asyncio.Event()
    caller = make(script, max_connections=1)
    first = asyncio.create_task(caller.call(GET))
    await anyio.wait_all_tasks_blocked()
    with anyio.fail_after(10), pytest.raises(APITimeoutError, match="none of the client's connections") as caught:
        await caller.call(GET, Timeouts(slot=0.01))
    assert caught.value.maybe_processed is False
    script.gate.set()
    assert (await first).payload == 1
    assert len(script.sent) == 1


async def test_slot_is_free_during_a_backoff(make: Any, clock: Any) -> None:
    script = Script(status(502), ok(1))
    caller = make(script, max_connections=1)
    free: list[bool] = []

    async def sleep(seconds: float) -> None:
        free.append(not caller._slots.locked())

    caller._sleep = sleep
    await caller.call(GET)
    assert free == [True]


async def test_total_timeout_starts_with_the_slot_and_covers_all_attempts(make: Any, clock: Any) -> None:
    script = Script(status(502))

    def slow() -> None:
        clock.advance(4)

    script.on_send = slow
    with pytest.raises(ServerError):
        await make(script).call(GET, Timeouts(total=10))
    # 4 s and a pause of 0.5 s, 4 s and a pause of 1 s; after that nothing is left.
    assert script.remaining == [10, 5.5, 0.5]


async def test_total_timeout_that_ends_during_a_backoff_raises_in_doubt(make: Any, clock: Any) -> None:
    script = Script(lost())
    caller = make(script)

    async def oversleep(seconds: float) -> None:
        clock.advance(100)

    caller._sleep = oversleep
    with pytest.raises(APITimeoutError) as caught:
        await caller.call(GET, 50)
    assert caught.value.maybe_processed is True
    assert len(script.sent) == 1


async def test_retries_without_a_total_timeout_still_end(make: Any, clock: Any) -> None:
    script = Script(status(502))

    def slow() -> None:
        clock.advance(50)

    script.on_send = slow
    with pytest.raises(ServerError):
        await make(script, retries=Retries(max_attempts=100)).call(GET, None)
    assert script.remaining == [None, None, None]


async def test_closing_ends_calls_that_wait_for_a_slot(make: Any) -> None:
    script = Script(ok(1))
    script.gate = asyncio.Event()
    caller = make(script, max_connections=1)
    first, second = (asyncio.create_task(caller.call(GET)) for _ in range(2))
    await anyio.wait_all_tasks_blocked()
    await caller.close()
    script.gate.set()
    assert (await first).payload == 1
    with pytest.raises(ClientStateError):
        await second
    assert not caller._slots.locked()


async def test_cancelled_call_releases_its_slot(make: Any) -> None:
    script = Script(ok(1))
    script.gate = asyncio.Event()
    caller = make(script, max_connections=1)
    tasks = [asyncio.create_task(caller.call(GET)) for _ in range(5)]
    await anyio.wait_all_tasks_blocked()
    for task in tasks:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True))
    assert script.under_way == 0
    script.gate.set()
    assert (await caller.call(GET)).payload == 1


async def test_log_line_holds_only_method_path_outcome_and_times(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "netmind_rentgpu")
    request = Request(method="POST", path="/x", query={"q": "canary"}, body={"value": "canary"}, secrets=("canary",))
    await make(Script(lost(), status(502, x_request_id="r1"), ok(1))).call(request)
    ours = [record for record in caplog.records if record.name == "netmind_rentgpu"]
    assert [record.getMessage() for record in ours] == [
        "POST /x -> APIConnectionError, attempt 1, 0.0 ms, request id -",
        "POST /x -> 502, attempt 2, 0.0 ms, request id r1",
        "POST /x -> 200, attempt 3, 0.0 ms, request id -",
    ]


async def test_unreadable_item_does_not_hide_the_others_of_a_list(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    script = Script(ok([{"node_name": "a"}, None, {"gpu_count": "canary"}, {"node_name": "b", "price": "canary"}]))
    listed = await make(script).many(Machine, GET)
    machines = listed.items
    assert [machine.node_name for machine in machines] == ["a", "b"]
    assert machines[1].extra == {"price": "canary"}
    assert [error.json_path for error in listed.unreadable] == ["$[1]", "$[2].node_name"]
    assert listed.unreadable_count == 2
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warnings] == [
        "GET /x left out 2 items that cannot be read; the first: $[1]: is empty or null where an object belongs"
    ]
    assert "canary" not in caplog.text


async def test_list_without_any_readable_item_is_unexpected(make: Any) -> None:
    with pytest.raises(UnexpectedResponseError) as caught:
        await AsyncMachines(make(Script(ok([None, 3])))).list()
    assert caught.value.json_path == "$[0]"


async def test_error_that_no_retry_cures_is_raised_at_once(make: Any) -> None:
    script = Script(RawResponse(402, {}, b""))
    with pytest.raises(InsufficientBalanceError):
        await make(script).call(GET)
    assert len(script.sent) == 1
