"""The log of a job: its lines, their order, times and positions, from any place on."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from job_folder import SHELLS, JobFolder, use_shell
from short_forms import thinned

from netmind_rentgpu import InvalidArgumentError, OutputLine
from netmind_rentgpu.ssh.job_logs import LogReader, LogRequest, log_request

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
BEGAN = 1_700_000_000


@pytest.fixture
async def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path)


def filed(folder: JobFolder, samples: list[tuple[int, bytes, bytes]], *, is_over: bool = True) -> None:
    """Write the files of a job that has written pieces of stdout and stderr at some seconds."""
    job = folder.jobs / "mine"
    job.mkdir(parents=True)
    out, err, times = b"", b"", ""
    for second, more_out, more_err in samples:
        out, err = out + more_out, err + more_err
        times += f"{BEGAN + second} {len(out)} {len(err)}\n"
    for name, data in {"stdout": out, "stderr": err, "times": times.encode(), "id": f"{folder.id}\n".encode()}.items():
        (job / name).write_bytes(data)
    if is_over:
        (job / "ended").write_text(f"0 {BEGAN + 9} 1\n")


def read(frames: bytes, request: LogRequest, pieces: random.Random | None = None) -> list[OutputLine]:
    """Read frames that arrive in random pieces, or at once."""
    reader = LogReader(request)
    lines: list[OutputLine] = []
    while frames:
        size = len(frames) if pieces is None else pieces.choice((1, 2, 10, 1000))
        reader.take(frames[:size], error=False)
        frames = frames[size:]
        while (line := reader.next()) is not None:
            lines.append(line)
    assert reader.is_whole
    assert reader.answer == ""
    return lines


async def log_of(folder: JobFolder, request: LogRequest, pieces: random.Random | None = None) -> list[OutputLine]:
    now = datetime.now(UTC)
    return read(await folder.act("logs", "mine", folder.id, *request.arguments(now)), request, pieces)


def whole(lines: list[OutputLine]) -> tuple[list[str], list[str]]:
    """Return the whole lines of each stream."""
    found: tuple[list[str], list[str]] = ([], [])
    for line in lines:
        if not line.is_update:
            found[line.stream == "stderr"].append(line.text)
    return found


def request(**options: object) -> LogRequest:
    values = {"follow": False, "tail": None, "since": None, "after": None, "now": NOW, **options}
    return log_request(**values)  # type: ignore[arg-type]  # the caller's options


@pytest.mark.parametrize("shell", SHELLS)
async def test_lines_come_by_the_second_and_stdout_first_within_one(
    shell: str, folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_shell(shell, monkeypatch)
    filed(folder, [(1, b"a\nb", b"x\n"), (2, b"", b"y\nz"), (5, b"c\n", b"\nlast")])
    lines = await log_of(folder, request())
    assert [(line.text, line.stream) for line in lines] == [
        ("a", "stdout"),
        ("x", "stderr"),
        ("y", "stderr"),
        ("bc", "stdout"),
        ("z", "stderr"),
        ("last", "stderr"),
    ]
    assert [line.time.timestamp() - BEGAN for line in lines if line.time] == [1, 1, 2, 5, 5, 5]
    assert [line.position for line in lines] == ["2-0", "2-2", "2-4", "5-4", "5-6", "5-10"]
    assert not any(line.is_update for line in lines)


@pytest.mark.parametrize("seed", thinned(range(6), every=3))
async def test_log_goes_on_exactly_behind_each_line(seed: int, folder: JobFolder) -> None:
    chance = random.Random(seed)
    texts = [b"", b"a", b"bb ", b"\xff\x00", b"progress\r", b"\r\n", b"\n", b"\n\n", "\N{SNOWMAN}\n".encode()]
    pieces = [
        (second, b"".join(chance.choices(texts, k=5)), b"".join(chance.choices(texts, k=3))) for second in range(20)
    ]
    filed(folder, pieces)
    lines = await log_of(folder, request(), chance)
    for number, line in enumerate(lines):
        if line.is_update:
            continue
        rest = await log_of(folder, request(after=line.position), chance)
        assert whole(rest) == whole(lines[number + 1 :])


@pytest.mark.parametrize("tail", [0, 1, 3, 100])
async def test_tail_is_the_last_lines_of_both_streams(tail: int, folder: JobFolder) -> None:
    filed(folder, [(second, b"out %d\n" % second, b"err %d\n" % second) for second in range(10)])
    everything = [line.text for line in await log_of(folder, request())]
    lines = await log_of(folder, request(tail=tail))
    assert [line.text for line in lines] == everything[max(0, 20 - tail) :]
    if lines:
        assert lines[-1].position == "60-60"


async def test_since_begins_with_the_lines_of_that_second(folder: JobFolder) -> None:
    filed(folder, [(second, b"out %d\nhalf of" % second, b"err %d\n" % second) for second in range(5)])
    begin = datetime.fromtimestamp(BEGAN + 3, UTC)
    lines = await log_of(folder, request(since=begin))
    # The line that was begun before ends in that second.
    assert [line.text for line in lines] == ["err 3", "half ofout 4", "err 4", "half of"]
    assert await log_of(folder, request(since=timedelta(seconds=1), now=datetime.now(UTC))) == []


async def test_unfinished_line_of_a_running_job_comes_as_an_update_and_again_when_it_is_whole(
    folder: JobFolder,
) -> None:
    await folder.start("printf 'whole\\nhalf'; while [ ! -e go ]; do sleep 0.1; done; echo ' and half'")
    await folder.until_written(10)
    *_, whole, update = await log_of(folder, request())
    assert (whole.text, whole.is_update, whole.position) == ("whole", False, "6-0")
    assert (update.text, update.is_update, update.position) == ("half", True, "6-0")
    (folder.home / "go").touch()
    await folder.found("wait")
    assert [line.text for line in await log_of(folder, request(after=update.position))] == ["half and half"]


async def test_large_samples_and_many_samples_come_whole(folder: JobFolder) -> None:
    many = [(second, b"%d\n" % second, b"") for second in range(36_000)]
    large = bytes(random.Random(1).randbytes(3_000_000)).replace(b"\n", b"-").replace(b"\r", b"-")
    filed(folder, [*many, (36_001, large + b"\n", b"small\n"), (36_002, b"end\n", large[:1_000_000] + b"\n")])
    lines = await log_of(folder, request())
    assert [line.text for line in lines[:36_000]] == [str(second) for second in range(36_000)]
    rest = lines[36_000:]
    assert "".join(line.text for line in rest[:3]) == "".join(
        large[start : start + 1_048_576].decode(errors="replace") for start in range(0, 3_000_000, 1_048_576)
    )
    assert [line.text for line in rest[3:5]] == ["small", "end"]
    assert rest[5].text == large[:1_000_000].decode(errors="replace")


async def test_log_that_the_job_has_shortened_has_what_is_left_and_does_not_go_on(folder: JobFolder) -> None:
    filed(folder, [(1, b"a\n" * 1000, b"x\n"), (2, b"b\n", b"y\n")])
    (folder.jobs / "mine" / "stdout").write_bytes(b"short\n")
    assert whole(await log_of(folder, request())) == (["short"], ["x", "y"])
    reader = LogReader(request(after="100-0"))
    reader.take(await folder.act("logs", "mine", folder.id, 100, 0, "no", "-", "-", 0), error=False)
    assert (reader.answer, reader.is_whole, reader.next()) == ("the job has shortened its own output", False, None)


async def test_line_of_times_that_a_full_disk_has_cut_is_skipped(folder: JobFolder) -> None:
    filed(folder, [(1, b"one\n", b""), (2, b"two\n", b""), (3, b"three\n", b"")])
    times = folder.jobs / "mine" / "times"
    first, second, third = times.read_text().splitlines()
    times.write_text(f"{first}\n{second[:-4]}{third}\n{third}\n999\n\nx y z\n")
    lines = await log_of(folder, request())
    assert [line.text for line in lines] == ["one", "two", "three"]
    assert [line.text for line in await log_of(folder, request(since=datetime.fromtimestamp(BEGAN + 3, UTC)))] == [
        "two",
        "three",
    ]


def test_frames_that_cannot_be_read_are_an_answer() -> None:
    reader = LogReader(request())
    reader.take(b"Welcome to this container\nnetmind-job logs 0 0\nT 1 4 0\nO 4\nabc\nT x 1 2\n", error=False)
    line = reader.next()
    assert line is not None
    assert line.text == "abc"
    assert "changed while it was read: 'T x 1 2'" in reader.answer
    assert not reader.is_whole


def test_missing_job_is_an_answer() -> None:
    reader = LogReader(request())
    reader.take(b"netmind-job missing\n", error=False)
    assert (reader.answer, reader.is_whole, reader.next()) == ("missing", False, None)


def test_end_without_the_last_frame_is_not_whole() -> None:
    reader = LogReader(request(follow=True))
    reader.take(b"netmind-job logs 0 0\nT 1 4 0\nO 4\nabc\nC\n", error=False)
    assert reader.next() is not None
    reader.finish()
    assert not reader.is_whole
    reader.take(b"X\nC\n", error=False)
    assert reader.is_whole


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"tail": -1}, "tail"),
        ({"tail": 1.5}, "tail"),
        ({"tail": True}, "tail"),
        ({"tail": 10**7}, "tail"),
        ({"since": datetime(2026, 1, 1)}, "since"),  # noqa: DTZ001  # without a time zone on purpose
        ({"since": 5}, "since"),
        ({"after": ""}, "after"),
        ({"after": "1"}, "after"),
        ({"after": "1--2"}, "after"),
        ({"after": 7}, "after"),
        ({"after": "1-2", "tail": 3}, "after"),
        ({"since": NOW, "tail": 3}, "after"),
    ],
)
def test_part_of_a_log_that_cannot_be_asked_for_is_refused(options: dict[str, object], argument: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{argument}:"):
        request(**options)


def test_part_of_a_log_is_asked_for_by_numbers() -> None:
    now = int(NOW.timestamp())
    assert request(since=timedelta(minutes=2)).arguments(NOW) == (0, 0, "no", "-", now - 120, now)
    assert request(since=NOW - timedelta(seconds=1.5)).arguments(NOW) == (0, 0, "no", "-", now - 2, now)
    assert request(after="7-8", follow=True).arguments(NOW) == (7, 8, "yes", "-", "-", now)
    later = request(tail=5).behind(OutputLine("x", "stdout", position="3-4"))
    assert later.arguments(NOW) == (3, 4, "no", "-", "-", now)


@pytest.mark.parametrize(
    ("skew", "since"),
    [(0, 3), (-1, 4), (-1000, 1003), (61, -58), (1000, -997), (2, 3), (60, 3)],
    ids=["right", "behind", "far behind", "ahead", "far ahead", "request was slow", "request was very slow"],
)
async def test_since_allows_for_a_clock_of_the_container_that_is_wrong(
    skew: int, since: int, folder: JobFolder
) -> None:
    programs = folder.home / "bin"
    programs.mkdir()
    (programs / "date").write_text(f"#!/bin/sh\necho {NOW.timestamp() + skew:.0f}\n")
    (programs / "date").chmod(0o755)
    folder.path = f"{programs}:{folder.path}"
    filed(folder, [(second, b"out %d\n" % second, b"") for second in range(5)])
    wanted = request(since=datetime.fromtimestamp(BEGAN + since, UTC))
    frames = await folder.act("logs", "mine", folder.id, *wanted.arguments(NOW))
    assert [line.text for line in read(frames, wanted)] == ["out 3", "out 4"]
