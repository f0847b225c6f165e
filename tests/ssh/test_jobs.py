"""Jobs on the emulator and on an OpenSSH server: found again, followed, waited for and stopped."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from programs import FOLDER, LONGEST, with_programs
from short_forms import thinned
from until import is_running, until

from netmind_rentgpu import (
    ClientStateError,
    InvalidArgumentError,
    JobExistsError,
    JobNotFoundError,
    SSHError,
    WaitTimeoutError,
)
from netmind_rentgpu.emulator import Fault
from netmind_rentgpu.ssh.connection import ShellConnection
from netmind_rentgpu.ssh.jobs import AsyncJob

from .conftest import Site

# It writes lines to both streams until a file appears.
TALKING = (
    "n=0; while [ ! -e enough ]; do n=$((n + 1)); echo out $n; echo err $n >&2; sleep 0.02; done; echo last; exit 3"
)


def cut(connection: ShellConnection) -> None:
    """Break a connection."""
    connection.connected().abort()


async def texts(job: AsyncJob, *, follow: bool = False, tail: int | None = None) -> list[str]:
    return [line.text async for line in job.logs(follow=follow, tail=tail) if not line.is_update]


@asynccontextmanager
async def running(site: Site, state: Path, file: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program that uses the site's container; kill it at the end."""
    environment = {
        **with_programs({name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}),
        "NETMIND_BASE_URL": site.emulator.url,
        "NETMIND_API_KEY": site.emulator.token,
        "NETMIND_RENTGPU_STATE": str(state),
    }
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, str(FOLDER / file), str(site.container.id), site.container.ssh or "", *arguments),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        yield program
    finally:
        with suppress(ProcessLookupError):
            program.kill()
        await program.communicate()


async def test_job_of_a_killed_process_is_found_again_and_followed_to_its_end(site: Site, state: Path) -> None:
    command = "echo begun; while [ ! -e go ]; do sleep 0.1; done; echo done; exit 3"
    async with running(site, state, "start_job.py", "train", command) as program:
        assert program.stdout is not None
        async with asyncio.timeout(LONGEST):
            assert await program.stdout.readline() == b"started\n"
        program.send_signal(signal.SIGKILL)
        await program.wait()
    async with site.shell() as shell:
        (job,) = await shell.jobs()
        assert (job.name, job.command) == ("train", command)
        assert (await job.status()).state == "running"
        following = asyncio.create_task(texts(job, follow=True))
        (site.home / "go").touch()
        assert await following == ["begun", "done"]
        status = await (await shell.job("train")).wait()
        assert (status.state, status.exit_status, status.ok, status.is_over) == ("exited", 3, False, True)


@pytest.fixture
def kills(request: pytest.FixtureRequest, full: bool) -> int:
    if request.config.getoption("--crash-stride"):
        return 50
    return 10 if full else 3


@pytest.mark.slow
async def test_consumer_that_is_killed_and_goes_on_gets_each_line_once(
    site: Site, state: Path, tmp_path: Path, kills: int
) -> None:
    kept = tmp_path / "lines"
    async with site.shell() as shell:
        job = await shell.start(TALKING, name="talk")
        for _ in range(kills):
            size = kept.stat().st_size if kept.exists() else 0
            async with running(site, state, "follow_log.py", "talk", str(kept)):
                # At a random moment after it has got something, or before.
                if random.random() < 0.8:
                    await until(lambda size=size: kept.exists() and kept.stat().st_size > size)  # type: ignore[misc]  # mypy cannot infer it
                await asyncio.sleep(random.random() / 2)
        (site.home / "enough").touch()
        await job.wait()
    async with running(site, state, "follow_log.py", "talk", str(kept)) as last, asyncio.timeout(LONGEST):
        assert last.stdout is not None
        assert await last.stdout.read() == b"exited 3\n"
    lines = [line.split(" ", 1)[1] for line in kept.read_text().splitlines()]
    out = [line for line in lines if line.startswith("stdout ")]
    err = [line for line in lines if line.startswith("stderr ")]
    assert len(err) > kills
    assert err == [f"stderr err {number}" for number in range(1, len(err) + 1)]
    assert out == [*(f"stdout out {number}" for number in range(1, len(err) + 1)), "stdout last"]
    print(f"{kills} consumers were killed; each of {len(lines)} lines came once")


async def test_log_that_is_followed_goes_on_over_another_connection(site: Site) -> None:
    async with site.shell() as shell:
        job = await shell.start(TALKING)
        seen: list[str] = []
        async for line in job.logs(follow=True):
            seen.append(line.text)
            if line.text in ("out 5", "out 60"):
                cut(await shell._renewed.usable_connection())
            if line.text == "out 100":
                (site.home / "enough").touch()
        out = [text for text in seen if text.startswith("out ")]
        assert out == [f"out {number}" for number in range(1, len(out) + 1)]
        assert len(out) >= 100
        assert "last" in seen
        # The shell itself does not come back.
        with pytest.raises(SSHError, match="connection was lost"):
            await shell.run("true")


async def test_wait_and_stop_go_on_over_another_connection(site: Site) -> None:
    async with site.shell() as shell:
        job = await shell.start("trap '' TERM; echo up; while :; do sleep 1; done")
        waiting = asyncio.create_task(job.wait())
        await until(lambda: shell._connection.operations._commands)
        cut(shell._connection)
        stopping = asyncio.create_task(job.stop(grace=2))
        await until(lambda: len((shell._renewed._other or shell._connection).operations._commands) == 2)
        cut(await shell._renewed.usable_connection())
        for status in await asyncio.gather(waiting, stopping):
            assert (status.state, status.exit_signal) == ("signaled", "KILL")


async def test_each_outage_is_one_of_its_own(site: Site) -> None:
    async with site.shell() as shell:
        job = await shell.start("while [ ! -e go ]; do sleep 0.1; done")
        shell._renewed.longest_outage = 1.0
        waiting = asyncio.create_task(job.wait())
        following = asyncio.create_task(texts(job, follow=True))
        for _ in range(3):
            await until(lambda: len(shell._renewed.long_calls._counts) == 1)
            # Longer than the longest outage, with a connection that works.
            await asyncio.sleep(1.2)
            cut(await shell._renewed.usable_connection())
        (site.home / "go").touch()
        assert (await waiting).ok
        assert await following == []


async def test_many_waits_leave_sessions_for_other_calls(site: Site) -> None:
    async with site.shell() as shell:
        job = await shell.start("while [ ! -e go ]; do sleep 0.1; done")
        waiting = [asyncio.create_task(job.wait()) for _ in range(14)]
        calls = shell._renewed.long_calls
        await until(lambda: sum(calls._counts.values()) == 14)
        async with asyncio.timeout(60):
            assert (await job.status()).state == "running"
        (site.home / "go").touch()
        assert all([(await each).ok for each in waiting])
        assert (calls._counts, calls._own) == ({}, set())


async def test_long_tail_comes_whole(site: Site) -> None:
    async with site.shell() as shell:
        job = await shell.start("n=0; while [ $n -lt 30000 ]; do n=$((n + 1)); echo $n; done")
        await job.wait()
        assert await texts(job, tail=25_000) == [str(number) for number in range(5_001, 30_001)]


async def test_stop_leaves_no_process_of_a_job_that_resists(site: Site) -> None:
    (site.home / "stubborn").write_text("trap '' TERM HUP\necho $$\nwhile :; do sleep 1; done\n")
    async with site.shell() as shell:
        job = await shell.start(
            "trap '' TERM; sh stubborn & setsid sh stubborn & (setsid sh stubborn &); echo $$; wait"
        )
        processes: list[int] = []
        async for line in job.logs(follow=True):
            processes.append(int(line.text))
            if len(processes) == 4:
                break
        assert all(map(is_running, processes))
        status = await job.stop(grace=0.5)
        assert (status.state, status.exit_status, status.exit_signal) == ("signaled", None, "KILL")
        assert not any(map(is_running, processes))
        assert await job.stop() == status


async def test_job_gets_its_input_variables_and_folder(site: Site) -> None:
    (site.home / "work").mkdir()
    data = bytes(range(256)) * 256
    async with site.shell() as shell:
        job = await shell.start("cat > copy; echo $ONE", environment={"ONE": "it's"}, directory="work", input=data)
        assert (await job.wait()).ok
        assert (site.home / "work" / "copy").read_bytes() == data
        assert await texts(job) == ["it's"]
        text = await shell.start("cat; pwd", input="\N{SNOWMAN}\n")
        await text.wait()
        assert await texts(text) == ["\N{SNOWMAN}", str(site.home)]


async def test_names_of_jobs_are_unique_until_they_are_removed(site: Site) -> None:
    async with site.shell() as shell:
        job = await shell.start("exit 1", name="train.v1_a-b")
        with pytest.raises(JobExistsError, match="remove it first") as raised:
            await shell.start("true", name="train.v1_a-b")
        assert raised.value.name == "train.v1_a-b"
        unnamed = [await shell.start("true"), await shell.start("true")]
        assert len({each.name for each in unnamed} | {job.name}) == 3
        assert {each.name for each in await shell.jobs()} == {job.name, *(each.name for each in unnamed)}
        await job.wait()
        await job.remove()
        await job.remove()
        for use in (job.status(), job.wait(), job.stop(), texts(job), shell.job(job.name)):
            with pytest.raises(JobNotFoundError):
                await use
        assert (await (await shell.start("exit 2", name=job.name)).wait()).exit_status == 2
        # The former job is not the new one.
        with pytest.raises(JobNotFoundError):
            await job.status()
        await job.remove()
        assert (await (await shell.job(job.name)).status()).exit_status == 2


async def test_running_job_is_not_removed_and_outlives_a_wait(site: Site) -> None:
    async with site.shell() as shell:
        job = await shell.start("sleep 1000")
        with pytest.raises(ClientStateError, match="still runs and cannot be removed"):
            await job.remove()
        with pytest.raises(WaitTimeoutError, match="still runs after"):
            await job.wait(timeout=0.3)
        waiting = asyncio.create_task(job.wait())
        await until(lambda: shell._connection.operations._commands)
        waiting.cancel()
        assert await asyncio.wait([waiting])
        assert (await job.status()).state == "running"
        assert (await job.stop()).exit_signal == "TERM"


async def test_status_has_moments_and_sizes(site: Site) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    async with site.shell() as shell:
        job = await shell.start("echo 12345; echo 123 >&2")
        status = await job.wait()
        assert (status.stdout_size, status.stderr_size) == (6, 4)
        assert status.started_at is not None
        assert status.ended_at is not None
        assert before <= status.started_at <= status.ended_at <= datetime.now(UTC)
        assert status == await job.status()
        lines = [line async for line in job.logs(since=timedelta(hours=1))]
        assert [line.text for line in lines] == ["12345", "123"]
        # The supervisor looks at the logs once a second, and may have seen these lines before the job's end.
        assert all(status.started_at <= line.time <= status.ended_at for line in lines if line.time is not None)
        assert all(line.time is not None for line in lines)
        assert [line.text async for line in job.logs(tail=1)] == ["123"]
        assert [line.text async for line in job.logs(after=lines[0].position)] == ["123"]


async def test_job_that_cannot_be_started_says_why(site: Site) -> None:
    async with site.shell() as shell:
        with pytest.raises(InvalidArgumentError, match="directory: cannot be entered on the container: 'missing'"):
            await shell.start("true", directory="missing")
        for options, argument in (
            ({"name": ""}, "name"),
            ({"name": ".hidden"}, "name"),
            ({"name": "a b"}, "name"),
            ({"name": "a" * 65}, "name"),
            ({"name": "../x"}, "name"),
            ({"input": b"x" * 65_537}, "input"),
            ({"input": 5}, "input"),
            ({"environment": {"a b": "x"}}, "environment"),
            ({"environment": {"netmind_command": "x"}}, "environment"),
            ({"environment": {"UID": "5"}}, "environment"),
            ({"environment": {"IFS": "/"}}, "environment"),
            ({"directory": ""}, "directory"),
            ({"directory": "a\0"}, "directory"),
        ):
            with pytest.raises(InvalidArgumentError, match=f"^{argument}:"):
                await shell.start("true", **options)  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(InvalidArgumentError, match=r"^command:"):
            await shell.start("x" * 130_000)
        for grace in (-1, float("nan"), "1", 90_000):
            with pytest.raises(InvalidArgumentError, match=r"^grace:"):
                await (await shell.start("true")).stop(grace=grace)  # type: ignore[arg-type]  # wrong on purpose
        (site.home / ".netmind_rentgpu" / "jobs").rename(site.home / "elsewhere")
        (site.home / ".netmind_rentgpu" / "jobs").write_text("a file")
        with pytest.raises(SSHError, match=r"cannot start job x: .*; cannot make") as raised:
            await shell.start("true", name="x")
        assert raised.value.stage == "command"


async def test_job_of_a_closed_shell_cannot_be_used(site: Site) -> None:
    async with site.shell() as shell:
        job = await shell.start("sleep 1000")
        lines = job.logs(follow=True)
        reading = asyncio.ensure_future(anext(lines))
        await until(lambda: shell._connection.operations._commands)
        cut(shell._connection)
        await until(lambda: shell._renewed._other)
    with pytest.raises(ClientStateError):
        await reading
    with pytest.raises(ClientStateError):
        await job.status()
    assert "sleep 1000" in repr(job)
    with pytest.raises(TypeError, match="find it again by its name"):
        pickle.dumps(job)
    async with site.shell() as shell:
        assert (await (await shell.job(job.name)).stop()).is_over


async def test_call_gives_up_when_no_connection_can_be_made_for_too_long(site: Site) -> None:
    async with site.shell() as shell:
        job = await shell.start("sleep 1000")
        shell._renewed.longest_outage = 0.5
        if site.kind == "emulator":
            site.emulator.faults.add(Fault("ssh refuse", times="all"))
            cut(shell._connection)
            with pytest.raises(SSHError) as raised:
                await job.status()
            assert raised.value.stage == "connection"
            site.emulator.faults.clear()
        assert (await job.stop()).is_over


@pytest.mark.parametrize("after_bytes", thinned(range(4_000, 30_000, 2_000), every=4))
async def test_start_whose_connections_are_lost_starts_one_job(after_bytes: int, site: Site) -> None:
    if site.kind != "emulator":
        pytest.skip("only the emulator breaks connections on demand")
    async with site.shell() as shell:
        site.emulator.faults.add(Fault("ssh drop", after_bytes=after_bytes, times=3))
        cut(shell._connection)
        job = await shell.start("echo once >> count; sleep 1000", name="once")
        assert len(await shell.jobs()) == 1
        await until((site.home / "count").exists)
        await job.stop()
        assert (site.home / "count").read_text() == "once\n"


@pytest.mark.parametrize(
    "fault", [Fault("ssh drop", after_bytes=60_000, times=5), Fault("ssh freeze", after_bytes=60_000, times=2)]
)
async def test_log_over_connections_that_break_or_freeze_has_each_line_once(fault: Fault, site: Site) -> None:
    if site.kind != "emulator":
        pytest.skip("only the emulator breaks and freezes connections on demand")
    command = "n=0; while [ $n -lt 12000 ]; do n=$((n + 1)); echo $n; echo error $n >&2; done; sleep 1; echo last"
    async with site.gpu.ssh(site.container, keepalive=0.5) as shell:
        job = await shell.start(command)
        site.emulator.faults.add(fault)
        cut(shell._connection)
        lines = [line async for line in job.logs(follow=True)]
        numbers = [*map(str, range(1, 12_001)), "last"]
        assert [line.text for line in lines if line.stream == "stdout"] == numbers
        assert [line.text for line in lines if line.stream == "stderr"] == [f"error {n}" for n in numbers[:-1]]
        assert site.emulator.faults.unmet == ()


async def test_job_whose_supervisor_is_killed_is_lost(site: Site) -> None:
    if site.kind != "emulator":
        pytest.skip("only the emulator kills supervisors")
    site.emulator.faults.add(Fault("kill supervisor", seconds=0.5))
    async with site.shell() as shell:
        job = await shell.start("echo up; sleep 1000")
        status = await job.wait()
        assert (status.state, status.exit_status, status.ended_at) == ("lost", None, None)
        assert await texts(job, follow=True) == ["up"]
        assert (await job.stop()).state == "lost"
        await job.remove()


@pytest.mark.parametrize("steps", thinned([*range(0, 60, 4), *range(60, 400, 25)], every=4))
async def test_cancelled_start_leaves_a_whole_job_or_none(steps: int, site: Site) -> None:
    async with site.shell() as shell:
        starting = asyncio.create_task(shell.start("sleep 1000", name="mine"))
        for _ in range(steps):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        # The container may still be at it.
        for job in await shell.jobs():
            await until(lambda job=job: is_whole(job))  # type: ignore[misc]  # mypy cannot infer it
            assert (await job.stop()).exit_signal == "TERM"


async def is_whole(job: AsyncJob) -> bool:
    return (await job.status()).state == "running"
