"""Turns of commands: the limit after each probe, their order, and the reserve. Without a server."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from netmind_rentgpu.ssh import turns
from netmind_rentgpu.ssh.turns import CommandTurns, ProbeResult, SessionLimit


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_PAUSE", 0)


@pytest.mark.parametrize(
    ("before", "opened", "refused", "running", "after"),
    [
        # All that was asked for: 8, 16, 32.
        (SessionLimit(8), 10, 0, 8, SessionLimit(16)),
        (SessionLimit(16), 18, 0, 16, SessionLimit(32)),
        # The reserve alone was left, or less, because a copy has its session.
        (SessionLimit(8), 2, 8, 8, SessionLimit(8, refused=1)),
        (SessionLimit(8), 1, 9, 8, SessionLimit(8, refused=1)),
        (SessionLimit(8), 0, 10, 0, SessionLimit(8, refused=1)),
        (SessionLimit(8, refused=1), 2, 8, 8, SessionLimit(8, is_final=True, refused=2)),
        # Some more were left, and the next probe finds no more.
        (SessionLimit(32), 8, 26, 32, SessionLimit(38)),
        (SessionLimit(38), 2, 38, 38, SessionLimit(38, refused=1)),
        (SessionLimit(38, refused=1), 2, 38, 38, SessionLimit(38, is_final=True, refused=2)),
        # The server still counted a session that had ended.
        (SessionLimit(32), 7, 27, 32, SessionLimit(37)),
        (SessionLimit(37, refused=1), 3, 36, 37, SessionLimit(38)),
        # Commands that ended meanwhile prove nothing, and what was proved before stays.
        (SessionLimit(8), 10, 0, 3, SessionLimit(11)),
        (SessionLimit(16), 18, 0, 0, SessionLimit(16)),
        (SessionLimit(8), 5, 5, 5, SessionLimit(8, refused=1)),
        (SessionLimit(8, refused=1), 10, 0, 0, SessionLimit(8)),
        # A server that is too slow for some or all answers has not refused, unless it is so three times.
        (SessionLimit(8), 7, 0, 8, SessionLimit(13, unanswered=1)),
        (SessionLimit(8), 0, 0, 8, SessionLimit(8, unanswered=1)),
        (SessionLimit(32, unanswered=1), 3, 26, 32, SessionLimit(33, unanswered=2)),
        (SessionLimit(32, unanswered=1), 34, 0, 32, SessionLimit(64, unanswered=1)),
        (SessionLimit(8, unanswered=2), 7, 2, 8, SessionLimit(13, is_final=True, unanswered=3)),
    ],
)
def test_limit_after_a_probe_is_what_the_server_had_open_at_once_without_the_reserve(
    before: SessionLimit, opened: int, refused: int, running: int, after: SessionLimit
) -> None:
    assert before.after(ProbeResult(opened=opened, refused=refused, running=running)) == after


class Server:
    """A server with so many sessions, whose probes last until they are released, and which may be late with answers."""

    def __init__(self, sessions: int, late: int = 0) -> None:
        self.sessions = sessions
        self.late = late
        self.running = 0
        self.probes: list[int] = []
        self.released = asyncio.Event()
        self.released.set()
        self.turns = CommandTurns(self.probe)

    async def probe(self, count: int) -> ProbeResult:
        self.probes.append(count)
        await self.released.wait()
        opened = min(count, self.sessions - self.running)
        if self.late:
            self.late -= 1
            return ProbeResult(opened=opened // 2, refused=0, running=self.running)
        return ProbeResult(opened=opened, refused=count - opened, running=self.running)

    async def run(self, until: asyncio.Event) -> None:
        async with self.turns:
            self.running += 1
            await until.wait()
            self.running -= 1

    def start(self, count: int, until: asyncio.Event) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.run(until)) for _ in range(count)]


async def rest() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("sessions", "wanted", "running", "probes"),
    [
        (10, 8, 8, []),
        (10, 30, 8, [10, 10]),
        (40, 60, 38, [10, 18, 34, 40, 40]),
        (10_000, 60, 60, [10, 18, 34]),
        (40, 9, 9, [10]),
    ],
)
async def test_as_many_commands_run_as_the_server_allows_and_no_probe_before_it_is_needed(
    sessions: int, wanted: int, running: int, probes: list[int]
) -> None:
    server, over = Server(sessions), asyncio.Event()
    tasks = server.start(wanted, over)
    await rest()
    assert (server.running, server.probes) == (running, probes)
    over.set()
    await asyncio.gather(*tasks)
    # A refusal is final, and a limit that was found stays.
    again = server.start(running, over := asyncio.Event())
    await rest()
    assert (server.running, server.probes) == (running, probes)
    over.set()
    await asyncio.gather(*again)


async def test_server_that_is_late_twice_is_asked_again_and_no_more_at_the_third_time() -> None:
    # Each late probe shows half of the sessions that are left: 5, 3 and 3, of which 2 are the reserve.
    late, too_late = Server(18, late=2), Server(18, late=3)
    for server, running, probes in ((late, 16, [10, 13, 14, 18, 18]), (too_late, 13, [10, 13, 14])):
        over = asyncio.Event()
        tasks = server.start(60, over)
        await rest()
        assert server.turns.limit.is_final
        assert (server.running, server.probes) == (running, probes)
        over.set()
        await asyncio.gather(*tasks)


async def test_no_command_starts_during_a_probe() -> None:
    server, first = Server(10), asyncio.Event()
    server.released.clear()
    tasks = server.start(8, first) + server.start(3, second := asyncio.Event())
    await rest()
    first.set()
    await rest()
    assert (server.running, server.probes) == (0, [10])
    server.released.set()
    await rest()
    assert server.running == 3
    second.set()
    await asyncio.gather(*tasks)


async def test_turns_are_given_in_their_order_and_survive_cancellation() -> None:
    server, over = Server(10), asyncio.Event()
    tasks = server.start(8, over)
    order: list[int] = []

    async def note(number: int) -> None:
        async with server.turns:
            order.append(number)

    waiting = [asyncio.create_task(note(number)) for number in range(6)]
    await rest()
    waiting[0].cancel()
    waiting[3].cancel()
    await rest()
    over.set()
    # This one is cancelled in the moment that its turn comes.
    while not tasks[0].done():
        await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.wait([*tasks, *waiting])
    assert order in ([2, 4, 5], [1, 2, 4, 5])
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        for _ in range(8):
            await stack.enter_async_context(server.turns)


async def test_probe_waits_while_the_reserve_is_claimed() -> None:
    server, over = Server(40), asyncio.Event()
    await server.turns.claim_reserve()
    tasks = server.start(9, over)
    await rest()
    assert (server.running, server.probes) == (8, [])
    server.turns.return_reserve()
    await rest()
    assert (server.running, server.probes) == (9, [10])
    over.set()
    await asyncio.gather(*tasks)


async def test_claim_of_the_reserve_waits_for_the_probe_that_is_under_way() -> None:
    server, over = Server(40), asyncio.Event()
    server.released.clear()
    tasks = server.start(9, over)
    await rest()
    claiming = asyncio.create_task(server.turns.claim_reserve())
    await rest()
    assert (server.probes, claiming.done()) == ([10], False)
    server.released.set()
    await claiming
    over.set()
    await asyncio.gather(*tasks)


async def test_probe_that_found_nothing_is_repeated_only_after_a_turn_has_ended() -> None:
    server, over = Server(40), asyncio.Event()
    tasks = server.start(8, over)
    await rest()
    # These commands have ended on the server, but their output is not read yet.
    server.running = 0
    server.sessions = 10
    tasks += server.start(3, over)
    await rest()
    assert (server.probes, server.turns.limit) == ([10], SessionLimit(8))
    server.running = 8
    server.sessions = 40
    over.set()
    await asyncio.gather(*tasks)
    assert server.turns.limit == SessionLimit(8)


async def test_failed_probe_leaves_the_limit_and_is_final() -> None:
    async def fail(_: int) -> ProbeResult:
        raise asyncio.CancelledError

    turns = CommandTurns(fail)
    async with AsyncExitStack() as stack:
        for _ in range(8):
            await stack.enter_async_context(turns)
        waiting = asyncio.create_task(turns.__aenter__())
        await rest()
        assert turns.limit == SessionLimit(8, is_final=True)
        assert not waiting.done()
    await waiting
