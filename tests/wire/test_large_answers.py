"""Answers too large to be read at once: read in turns, within the call's deadline, in bounded memory, or refused."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hostile import Hostile, answer
from programs import Program

from netmind_rentgpu import APITimeoutError, AsyncRentGPU, Machine, Retries, Timeouts, UnexpectedResponseError
from netmind_rentgpu.concurrency.turns import ITEMS_PER_TURN
from netmind_rentgpu.waiting.snapshots import Snapshots
from netmind_rentgpu.wire import payload

LONG = Timeouts(total=120, connect=60, read=60)
MACHINE = json.dumps(
    {"node_name": "n", "gpu_name": "RTX 4090", "gpu_count": 8, "price": "0.45", "labels": ["a", "b"], "more": "x" * 400}
).encode()


def client(server: Hostile, **settings: Any) -> AsyncRentGPU:
    return AsyncRentGPU(
        "token", base_url=server.url, **{"timeout": LONG, "retries": Retries(max_attempts=1), **settings}
    )


# Bodies are made by the tests that send them, because each xdist worker would make all of them otherwise.
Body = Callable[[], bytes]


def list_of(item: bytes, count: int) -> bytes:
    return b"[" + b",".join([item] * count) + b"]"


class Turns:
    """Counts the turns of the event loop, and what is done in each of them."""

    def __init__(self) -> None:
        self._turn = 0
        self.done: dict[int, int] = {}

    def counting(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does what another does, and is counted."""

        def counted(*arguments: Any, **keywords: Any) -> Any:
            self.done[self._turn] = self.done.get(self._turn, 0) + 1
            return act(*arguments, **keywords)

        return counted

    @asynccontextmanager
    async def counted(self) -> AsyncIterator[None]:
        """Count turns within the block."""

        async def count() -> None:
            while True:
                self._turn += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        try:
            yield
        finally:
            counting.cancel()


async def test_items_of_a_long_list_are_read_in_turns_of_the_event_loop() -> None:
    turns = Turns()
    async with Hostile([answer(list_of(MACHINE, 20_000))]) as server, client(server) as gpu:
        readers: Any = gpu._caller.codec._structure
        readers = {**readers, Machine: turns.counting(readers[Machine])}
        gpu._caller.codec._structure = readers
        async with turns.counted():
            assert len(await gpu.machines.list(gpu_names=["RTX 4090"])) == 20_000
    assert sum(turns.done.values()) == 20_000
    assert max(turns.done.values()) <= ITEMS_PER_TURN


async def test_slices_of_a_long_list_are_parsed_in_turns_of_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns()
    monkeypatch.setattr(payload, "parse", turns.counting(payload.parse))
    async with Hostile([answer(list_of(MACHINE, 20_000))]) as server, client(server) as gpu:
        async with turns.counted():
            assert len(await gpu.request("GET", "machines")) == 20_000
    assert max(turns.done.values()) == 1
    assert sum(turns.done.values()) > 30


async def test_page_with_thousands_of_waited_for_containers_is_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns()
    monkeypatch.setattr(Snapshots, "take", turns.counting(Snapshots.take))
    body = (
        b"[" + b",".join(b'{"id":%d,"name":"n","ssh":"ssh root@h -p 3"}' % number for number in range(1, 3001)) + b"]"
    )
    async with Hostile([answer(body)]) as server, client(server) as gpu:
        async with turns.counted():
            found = await gpu.containers.wait_all(range(1, 3001), until=lambda container: True, timeout=60)
    assert len(found) == 3000
    assert sum(turns.done.values()) == 3000
    assert max(turns.done.values()) <= ITEMS_PER_TURN


@pytest.mark.parametrize("item", [b"null", b'{"gpu_count":1}', b"[]"])
async def test_unreadable_items_are_counted_and_few_of_them_kept(item: bytes, caplog: pytest.LogCaptureFixture) -> None:
    body = b"[" + b'{"id":7},' + (item + b",") * 90_000 + b'{"id":8}]'
    async with Hostile([answer(body)]) as server, client(server) as gpu:
        page = await gpu.containers.list()
    assert [container.id for container in page.items] == [7, 8]
    assert len(page.unreadable) == 20
    assert page.unreadable_count == 90_000
    assert page.unreadable[0].json_path.startswith("$[1]")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "left out 90000 items that cannot be read" in warnings[0]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (lambda: list_of(b"1", 8_000_000), "a list of more than 100,000 items"),
        (lambda: list_of(b'{"id":1}', 1_500_000), "a list of more than 100,000 items"),
        (lambda: b'[{"id":1,"name":"' + b"x" * 2**23 + b'"}]', "an item of more than 1024 KiB"),
        (lambda: b'{"id":1,"name":"' + b"x" * 2**23 + b'"}', "an object of more than 1024 KiB"),
    ],
    ids=["numbers", "objects", "item", "no list"],
)
async def test_answer_beyond_a_limit_is_unexpected_however_small_it_was_sent(body: Body, problem: str) -> None:
    packed = answer(gzip.compress(body()), Content_Encoding="gzip")
    async with Hostile([packed]) as server, client(server) as gpu:
        with pytest.raises(UnexpectedResponseError, match=f"{problem}, which is more than this client reads"):
            await gpu.machines.list()
        with pytest.raises(UnexpectedResponseError, match=problem):
            await gpu.request("GET", "containers/1")


async def test_deadline_of_a_call_ends_the_reading_of_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Hostile([answer(list_of(MACHINE, 20_000))]) as server, client(server) as gpu:
        caller: Any = gpu._caller
        now = [0.0]
        monkeypatch.setattr(caller, "_clock", lambda: now[0])
        parse = payload.parse

        def parse_slowly(body: bytes) -> Any:
            now[0] += 1
            return parse(body)

        monkeypatch.setattr(payload, "parse", parse_slowly)
        with pytest.raises(APITimeoutError, match="too large to be read in time"):
            await gpu.machines.list(timeout=10)
        assert now[0] == 10
        now[0] = 0
        readers = caller.codec._structure
        structure = readers[Machine]

        def structure_slowly(item: Any) -> Any:
            now[0] += 0.01
            return structure(item)

        caller.codec._structure = {**readers, Machine: structure_slowly}
        with pytest.raises(APITimeoutError, match="too large to be read in time"):
            await gpu.machines.list(timeout=60)
        assert now[0] < 70


async def test_error_with_many_texts_is_masked() -> None:
    texts = ["token"] + ["x"] * 50_000
    async with Hostile([answer({"detail": "no", "more": texts}, 400)]) as server, client(server) as gpu:
        with pytest.raises(Exception, match="answered with 400") as caught:
            await gpu.containers.get(1)
    assert caught.value.body == {"detail": "no", "more": ["***"] + ["x"] * 50_000}  # type: ignore[attr-defined]  # an APIStatusError


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("resource", "body", "read"),
    [
        ("machines", lambda: list_of(MACHINE, 31_000), "31000"),
        ("machines", lambda: list_of(b"1", 8_000_000), "UnexpectedResponseError"),
        pytest.param("machines", lambda: list_of(b"null", 99_999), "UnexpectedResponseError", marks=pytest.mark.full),
        pytest.param(
            "containers",
            lambda: list_of(b'{"id":1,"a":[' + b'{"a":1},' * 80 + b"1]}", 6_000),
            "1",
            marks=pytest.mark.full,
        ),
        (
            "containers",
            lambda: list_of(
                b'{"id":1,%b}' % b",".join(b'"%d\xf0\x9f\x98\x80":[]' % number for number in range(90)), 5_400
            ),
            "1",
        ),
    ],
    ids=["good", "numbers", "unreadable", "nested", "names"],
)
async def test_memory_for_an_answer_is_bounded(resource: str, body: Body, read: str) -> None:
    large = answer(gzip.compress(body()), Content_Encoding="gzip")
    async with Hostile([answer({"id": 1}), large]) as server:
        program = Program(file="read_large_answer.py", arguments=[resource], measured=False)
        await program.run(server.url)
    outcome, grown = program.output.split()
    assert (program.status, program.errors, outcome) == (0, "", read)
    assert int(grown) < 256
