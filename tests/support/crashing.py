"""A process that rents, and is killed at a point of its life: the nth step of its loop, commit, or write to a socket.

One process imports everything and forks a child for each run, since a run takes a tenth of what the imports take. It reads
jobs from its standard input and writes what became of them to its standard output, as lines of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
import time
from asyncio import selector_events
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import timedelta
from typing import Any, Self

import anyio
import attrs

LONGEST = 60.0
"""Seconds for one run; a bound against hanging."""
KINDS = ("loop step", "before commit", "after commit", "before write", "after write")


@attrs.frozen(kw_only=True)
class Job:
    """What a child is to do.

    Attributes:
        act: `rent`; `hand on`, which rents, extends, detaches, extends, attaches, extends and leaves; `detach`, which rents
            and detaches; `expire`, which rents until the time is up; or `reap`, once what is detached has expired.
        kind, n: at which point it is killed; nowhere where `n` is 0.
        cancel_at: the steps of its loop at which its main task is cancelled.
        scope: not that task, but a scope of anyio's around it.
        profile: fields of its ServiceProfile.
        guardian: it has a guardian.
    """

    act: str
    url: str
    token: str
    state: str
    kind: str = KINDS[0]
    n: int = 0
    cancel_at: tuple[int, ...] = ()
    scope: bool = False
    profile: dict[str, Any] = attrs.field(factory=dict)
    guardian: bool = False


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of a child.

    Attributes:
        killed: it was killed, at its point.
        counts: how often it came to each kind of point; empty where it was killed.
        error: what was raised in the end, if anything was.
        report: of a reap: what was deleted, gone, doubtful and failed, and the past rentals.
    """

    killed: bool
    counts: dict[str, int] = attrs.field(factory=dict)
    error: str | None = None
    report: dict[str, list[str]] = attrs.field(factory=dict)


class Forge:
    """The process that forks; to be used in `async with`."""

    async def __aenter__(self) -> Self:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        await self._process.wait()
        # Closed by the loop's own time otherwise, which a finished test's loop may not have.
        self._process._transport.close()  # type: ignore[attr-defined]

    async def run(self, job: Job) -> Outcome:
        """Have a child do a job."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(attrs.asdict(job)).encode() + b"\n")
        async with asyncio.timeout(2 * LONGEST):
            line = await stdout.readline()
        return Outcome(**json.loads(line))


class _Points:
    """Counts points, and ends the process at one."""

    def __init__(self, kind: str, n: int) -> None:
        self._kind = kind
        self._n = n
        self.counts: Counter[str] = Counter()

    def reach(self, kind: str) -> None:
        self.counts[kind] += 1
        if kind == self._kind and self.counts[kind] == self._n:
            os.kill(os.getpid(), signal.SIGKILL)


def _watch(points: _Points) -> None:
    """Count commits and writes to sockets."""

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            if sql != "COMMIT":
                return super().execute(sql, *arguments)
            points.reach("before commit")
            done = super().execute(sql, *arguments)
            points.reach("after commit")
            return done

    connect = sqlite3.connect
    sqlite3.connect = lambda *arguments, **keywords: connect(*arguments, factory=Connection, **keywords)  # type: ignore[assignment]
    transport = selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
    for name in ("write", "writelines"):
        method = getattr(transport, name)

        def written(self: Any, data: Any, method: Callable[..., Any] = method) -> Any:
            points.reach("before write")
            done = method(self, data)
            points.reach("after write")
            return done

        setattr(transport, name, written)


def _loop(points: _Points, cancel_at: tuple[int, ...]) -> asyncio.AbstractEventLoop:
    class Loop(asyncio.SelectorEventLoop):
        cancel: Callable[[], object] = staticmethod(lambda: None)

        def _run_once(self) -> None:
            points.reach("loop step")
            if points.counts["loop step"] in cancel_at:
                self.cancel()
            super()._run_once()  # type: ignore[misc]

    return Loop()


async def _act(job: Job) -> dict[str, list[str]]:
    from netmind_rentgpu import AsyncRentGPU, RentalExpiredError, Retries, ServiceProfile, Timeouts, conditions

    profile = ServiceProfile(
        **{"list_lag": timedelta(seconds=0.2), "create_lag": timedelta(seconds=0.3), **job.profile}
    )
    async with AsyncRentGPU(
        job.token,
        base_url=job.url,
        state=job.state,
        profile=profile,
        timeout=Timeouts(total=0.8, connect=0.5, read=0.3, slot=0.3),
        retries=Retries(base_delay=0.02, max_delay=0.05),
        guardian=job.guardian,
    ) as gpu:
        # No process here locks the state file for long, so no create is in doubt for as long as elsewhere.
        gpu._context.limits = attrs.evolve(gpu._context.limits, write=1.0)
        if job.act == "reap":
            with sqlite3.connect(job.state) as connection, suppress(sqlite3.OperationalError):  # none was made
                connection.execute("UPDATE rentals SET expires_at = intended_at WHERE stage = 'detached'")
            connection.close()
            report = await gpu.rentals.reap(wait=True)
            return {
                "deleted": list(report.deleted),
                "gone": list(report.gone),
                "doubtful": [record.name for record in report.doubtful],
                "failed": [f"{name}: {error}" for name, error in report.failed],
                "history": [past.name for past in await gpu.rentals.history()],
            }
        with anyio.CancelScope() as scope:
            task = asyncio.current_task()
            assert task is not None
            loop: Any = asyncio.get_running_loop()
            loop.cancel = scope.cancel if job.scope else task.cancel
            died = conditions.status_in(3)  # as the emulator has it
            with suppress(RentalExpiredError) if job.act == "expire" else nullcontext():
                async with gpu.rent(image="PyTorch 2.4", timeout=2, fail=died) as rental:
                    await rental.run("true")
                    if job.act == "rent":
                        return {}
                    if job.act == "detach":
                        await rental.detach()
                        return {}
                    if job.act == "expire":
                        await _let_time_pass(job, rental)
                    await rental.extend(ttl=timedelta(hours=25))
                    record = await rental.detach()
                await gpu.rentals.extend(record, ttl=timedelta(hours=26))
                async with gpu.rentals.attach(record, timeout=2) as rental:
                    await rental.extend(ttl=timedelta(hours=27))
                    await rental.run("true")
    return {}


async def _let_time_pass(job: Job, rental: Any) -> None:
    """Move the deadline of a rental into the past, in the file and in this process, and wait to be cancelled for it."""
    with sqlite3.connect(job.state) as connection:
        connection.execute("UPDATE rentals SET expires_at = intended_at")
    connection.close()
    timer = rental._expiry
    timer._record = attrs.evolve(timer._record, expires_at=timer._record.intended_at)
    timer._ring()
    await asyncio.sleep(LONGEST)


def _child(job: Job, told: int) -> None:
    points = _Points(job.kind, job.n)
    _watch(points)
    error, report = None, {}
    try:
        with asyncio.Runner(loop_factory=lambda: _loop(points, job.cancel_at)) as runner:
            report = runner.run(_act(job))
    except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001  # told to who asked
        error = f"{type(raised).__name__}: {raised}"
    outcome = Outcome(killed=False, counts=dict(points.counts), error=error, report=report)
    os.write(told, json.dumps(attrs.asdict(outcome)).encode())


def _run(job: Job) -> Outcome:
    tell, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(tell)
            _child(job, told)
        finally:
            os._exit(0)
    os.close(told)
    deadline = time.monotonic() + LONGEST
    hung = False
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline and not hung:
            hung = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    with os.fdopen(tell, "rb") as said:
        text = said.read()
    if text:
        return Outcome(**json.loads(text))
    return Outcome(killed=True, error="it hung" if hung else None)


def main() -> None:
    """Serve jobs."""
    import asyncssh

    import netmind_rentgpu

    for name in netmind_rentgpu.__all__:
        getattr(netmind_rentgpu, name)
    import netmind_rentgpu.rentals.rental
    import netmind_rentgpu.rentals.renting
    import netmind_rentgpu.ssh.commands
    import netmind_rentgpu.ssh.login
    import netmind_rentgpu.wire.transport

    assert asyncssh
    for line in sys.stdin:
        values = json.loads(line)
        values["cancel_at"] = tuple(values["cancel_at"])
        outcome = _run(Job(**values))
        with suppress(BrokenPipeError):
            print(json.dumps(attrs.asdict(outcome)), flush=True)


if __name__ == "__main__":
    main()
