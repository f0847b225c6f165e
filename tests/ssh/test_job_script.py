"""The container's side of jobs in several shells: starting, ending, and what is kept of a job."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from job_folder import SHELLS, JobFolder, use_shell
from until import command_lines, is_running, until

from netmind_rentgpu.ssh import job_scripts
from netmind_rentgpu.ssh.job_scripts import answer_of, given_to_job, job_action, jobs_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the tests look processes up in /proc")

SECRET = "a-secret-of-the-user"
# It says its process id, and then waits.
WAITING = "echo $$; exec sleep 1000"
PROGRAMS = (
    *("cat", "date", "dd", "env", "grep", "ls", "mkdir", "mkfifo", "mv", "printf", "ps", "rm", "sed", "sh", "sleep"),
    *("tail", "tr", "wc"),
)


@pytest.fixture
async def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path)


@pytest.fixture(params=SHELLS)
def any_shell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use_shell(request.param, monkeypatch)
    return str(request.param)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("this user cannot mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def family(folder: JobFolder) -> list[int]:
    """Return the processes whose ids the job has written, a line each."""
    return [int(line) for line in (folder.jobs / "mine" / "stdout").read_text().split()]


@pytest.mark.usefixtures("any_shell")
async def test_job_gets_its_variables_input_and_folder_and_leaves_its_status(folder: JobFolder) -> None:
    (folder.home / "work").mkdir()
    data = bytes(range(256)) + b"%s %d\n"
    values = {"ONE": "it's $HOME `x` \\ \"", "LINES": "a\nb\n", "PATH_LIKE": ""}
    command = 'cat; pwd; printf "[%s]" "$ONE" "$LINES" "$PATH_LIKE"; echo problem >&2; umask; exit 7'
    assert await folder.start(command, environment=values, directory="work", given=data) == "job"
    status = (await folder.found("wait")).status
    assert (status.state, status.exit_status, status.exit_signal) == ("exited", 7, None)
    expected = data + f"{folder.home}/work\n".encode() + b"[it's $HOME `x` \\ \"][a\nb\n][]" + b"0022\n"
    written = (folder.jobs / "mine" / "stdout").read_bytes()
    assert written == expected
    assert (folder.jobs / "mine" / "stderr").read_bytes() == b"problem\n"
    assert (status.stdout_size, status.stderr_size, status.command) == (len(expected), 8, command)
    assert status.started_at is not None
    assert status.ended_at is not None
    assert status.started_at <= status.ended_at


@pytest.mark.usefixtures("any_shell")
async def test_job_ignores_no_signal_and_has_a_session_of_its_own(folder: JobFolder) -> None:
    await folder.start("grep SigIgn /proc/$$/status; cat /proc/$$/stat; echo $$")
    await folder.found("wait")
    ignored, stat, process = (folder.jobs / "mine" / "stdout").read_text().splitlines()
    # A shell cannot restore what was ignored when it started, as in the background of another.
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigIgn"))
    added = int(ignored.split()[1], 16) & ~int(own.split()[1], 16)
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
    assert not added & sum(1 << (number - 1) for number in numbers)
    assert not int(ignored.split()[1], 16) & 1 << (signal.SIGPIPE - 1)
    assert stat.rpartition(") ")[2].split()[3] == process


@pytest.mark.usefixtures("any_shell")
async def test_job_that_a_signal_ends_is_signaled(folder: JobFolder) -> None:
    await folder.start("kill -s KILL $$")
    status = (await folder.found("wait")).status
    assert (status.state, status.exit_status, status.exit_signal) == ("signaled", None, "KILL")


async def test_secrets_of_a_job_are_in_no_file_and_no_command_line(folder: JobFolder) -> None:
    # The job reads its input late, so that the supervisor holds it meanwhile.
    await folder.start(
        "echo up; while [ ! -e go ]; do sleep 0.1; done; wc -c; sleep 1000",
        environment={"TOKEN": SECRET},
        given=SECRET * 100,
    )
    await folder.until_written(3)
    found = [path for path in folder.home.rglob("*") if path.is_file() and SECRET in path.read_text()]
    lines = command_lines()
    assert found == []
    assert any("netmind-job-supervisor" in line for line in lines)
    assert not any(SECRET in line for line in lines)
    (folder.home / "go").touch()
    await folder.until_written(7)
    await folder.found("stop", 5)


async def test_two_starts_with_one_id_start_one_job_and_another_id_is_refused(folder: JobFolder) -> None:
    async def start(job_id: str) -> str:
        return await folder.start("echo once; sleep 1000", job_id=job_id)

    words = await asyncio.gather(
        *(start(folder.id) for _ in range(5)), *(start(f"{folder.id}{number}") for number in range(3))
    )
    winner = (folder.jobs / "mine" / "id").read_text().strip()
    expected = {folder.id: 5}.get(winner, 1)
    assert (words.count("job"), words.count("taken")) == (expected, 8 - expected)
    await folder.until_written(5)
    await folder.found("stop", 5, job_id=winner)
    assert (folder.jobs / "mine" / "stdout").read_text() == "once\n"


async def test_start_whose_input_is_cut_off_starts_nothing(folder: JobFolder) -> None:
    given = given_to_job(folder.id, "true", environment={"A": "b"}, directory=None, given="text")
    for size in (0, 1, len(given) // 2, len(given) - 2, len(given) - 1):
        assert await folder.act("start", "mine", folder.id, given=given[:size]) == b"netmind-job cut\n"
    assert not folder.jobs.exists()


async def test_start_in_a_missing_folder_starts_nothing(folder: JobFolder) -> None:
    assert await folder.start("true", directory="missing") == "directory"
    assert not folder.jobs.exists()


async def test_start_without_a_writable_home_says_why(folder: JobFolder) -> None:
    (folder.home / ".netmind_rentgpu").write_text("a file")
    given = given_to_job(folder.id, "true", environment=None, directory=None, given=None)
    output, errors = await folder.try_to_act("start", "mine", folder.id, given=given)
    assert output == b""
    assert b"cannot make" in errors


@pytest.mark.usefixtures("any_shell")
async def test_stop_ends_all_that_a_job_has_started(folder: JobFolder) -> None:
    (folder.home / "stubborn").write_text("trap '' TERM HUP\necho $$\nwhile :; do sleep 1; done\n")
    await folder.start(
        "trap '' TERM; sh stubborn & setsid sh stubborn & env -i sh stubborn & (setsid sh stubborn &); echo $$; wait"
    )
    await until(lambda: len(family(folder)) == 5)
    status = (await folder.found("stop", 1)).status
    assert (status.state, status.exit_signal) == ("signaled", "KILL")
    assert not any(map(is_running, family(folder)))


@pytest.mark.usefixtures("any_shell")
async def test_stop_gives_a_job_its_grace_to_end_by_itself(folder: JobFolder) -> None:
    await folder.start("trap 'sleep 1; echo saved; exit 4' TERM; echo $$; while :; do sleep 0.1; done")
    await folder.until_written(2)
    status = (await folder.found("stop", 30)).status
    assert (status.state, status.exit_status) == ("exited", 4)
    assert (folder.jobs / "mine" / "stdout").read_text().endswith("saved\n")


async def test_stop_of_a_job_that_is_over_ends_what_it_has_left(folder: JobFolder) -> None:
    await folder.start("echo $$; (setsid sh -c 'echo $$; sleep 1000' &) ; exit 0")
    assert (await folder.found("wait")).status.ok
    await until(lambda: len(family(folder)) == 2)
    assert (await folder.found("stop", 1)).status.ok
    assert not any(map(is_running, family(folder)))


async def test_stop_signals_no_process_whose_start_differs(folder: JobFolder) -> None:
    await folder.start("exit 3")
    await folder.found("wait")
    other = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        for name in ("leader", "supervisor"):
            (folder.jobs / "mine" / name).write_text(f"{other.pid} {boot} 12345\n")
        assert (await folder.found("stop", 0)).status.exit_status == 3
        assert other.poll() is None
        # A session of the same number is another one, because it is younger than the job's end.
        (folder.jobs / "mine" / "leader").write_text(f"{other.pid} {boot}\n")
        assert (await folder.found("stop", 0)).status.exit_status == 3
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


async def test_job_whose_supervisor_is_killed_is_lost_and_can_be_stopped(folder: JobFolder) -> None:
    await folder.start(WAITING)
    await folder.until_written(2)
    os.kill(int((folder.jobs / "mine" / "supervisor").read_text().split()[0]), signal.SIGKILL)
    status = (await folder.found("wait")).status
    assert (status.state, status.exit_status, status.ended_at) == ("lost", None, None)
    assert all(map(is_running, family(folder)))
    assert (await folder.found("stop", 5)).status.state == "lost"
    assert not any(map(is_running, family(folder)))


async def test_job_of_another_boot_is_lost(folder: JobFolder) -> None:
    await folder.start(WAITING)
    file = folder.jobs / "mine" / "supervisor"
    process, boot, start = file.read_text().split()
    file.write_text(f"{process} {boot[::-1]} {start}\n")
    assert (await folder.found()).status.state == "lost"
    file.write_text(f"{process} {boot} {start}\n")
    assert (await folder.found("stop", 5)).status.exit_signal == "TERM"


async def test_running_job_is_not_removed_and_a_removed_one_is_gone_for_good(folder: JobFolder) -> None:
    await folder.start(WAITING)
    assert await folder.act("remove", "mine", folder.id) == b"netmind-job running\n"
    await folder.found("stop", 5)
    assert await folder.act("remove", "mine", "other") == b"netmind-job missing\n"
    assert await folder.act("remove", "mine", folder.id) == b"netmind-job removed\n"
    assert await folder.act("remove", "mine", folder.id) == b"netmind-job missing\n"
    assert list(folder.jobs.iterdir()) == []
    assert await folder.start("exit 1", job_id=f"{folder.id}3") == "job"
    assert (await folder.found("wait", job_id=f"{folder.id}3")).status.exit_status == 1
    assert await folder.act("status", "mine", folder.id) == b"netmind-job missing\n"


async def test_jobs_are_listed_with_their_names_and_commands(folder: JobFolder) -> None:
    assert await folder.act("list", "", "") == b"netmind-job end\n"
    commands = {"two": "exit 2", "one": "echo 'a \N{SNOWMAN} %s\n\\n'\nexit 1"}
    for number, (name, command) in enumerate(commands.items()):
        await folder.start(command, name, f"{folder.id}{number}")
        await folder.found("wait", name=name, job_id=f"{folder.id}{number}")
    found = {each.status.name: each.status for each in jobs_in((await folder.act("list", "", "")).decode())}
    assert {name: status.command for name, status in found.items()} == commands
    assert [(name, status.exit_status) for name, status in found.items()] == [("one", 1), ("two", 2)]
    (only,) = jobs_in((await folder.act("list", "two", "")).decode())
    assert only.status == found["two"]


async def test_job_that_fills_the_disk_leaves_its_status(folder: JobFolder, small_disk: Path) -> None:
    folder.home = small_disk
    await folder.start("cat /dev/zero; exit 5")
    status = (await folder.found("wait")).status
    assert status.exit_status == 5
    assert shutil.disk_usage(small_disk).free == 0


@pytest.mark.parametrize("shell", ["/bin/dash", "/bin/bash"])
async def test_job_without_setsid_outlives_a_hangup(
    shell: str, folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_shell(shell, monkeypatch)
    programs = folder.home / "bin"
    programs.mkdir()
    for name in PROGRAMS:
        (programs / name).symlink_to(str(shutil.which(name)))
    folder.path = str(programs)
    await folder.start("grep SigIgn /proc/$$/status; echo up; sleep 1000 & wait")
    await until(lambda: "up\n" in (folder.jobs / "mine" / "stdout").read_text())
    ignored = (folder.jobs / "mine" / "stdout").read_text().split()[1]
    assert int(ignored, 16) & 1 << (signal.SIGHUP - 1)
    assert (await folder.found()).status.state == "running"
    status = (await folder.found("stop", 5)).status
    assert (status.state, status.exit_signal) == ("signaled", "TERM")


async def test_answers_are_found_among_what_a_startup_script_prints(folder: JobFolder) -> None:
    output = (await folder.act("list", "", "")).decode()
    assert answer_of(f"Welcome!\nnetmind-jobs\n{output}bye") == ("end", "")
    assert answer_of("Welcome!\n") == ("", "")


@pytest.mark.parametrize("action", ["wait", "logs"])
async def test_process_that_waits_for_a_client_that_is_gone_ends(action: str, folder: JobFolder) -> None:
    await folder.start(WAITING)
    arguments = (0, 0, "yes", "-", "-", 0) if action == "logs" else ()
    # It looks after the client in each round, and not only after many.
    script = job_scripts._SCRIPT.replace("-lt 100", "-lt 1").replace("rounds % 15", "rounds % 1")
    ready = job_action(action, "mine", folder.id, *arguments)
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", ready.command.replace(str(len(job_scripts._SCRIPT.encode())), str(len(script.encode())))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"HOME": str(folder.home), "PATH": folder.path},
    )
    assert process.stdin is not None
    process.stdin.write(script.encode())
    process.stdin.close()
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # as a client that is gone
    async with asyncio.timeout(120):
        assert await process.wait() == -signal.SIGPIPE
    assert (await folder.found()).status.state == "running"
    await folder.found("stop", 5)


@pytest.mark.usefixtures("any_shell")
async def test_variables_that_a_shell_uses_reach_the_job_and_not_its_start(folder: JobFolder) -> None:
    (folder.home / "lib").mkdir()
    values = {
        "HOME": "/usr",
        "CDPATH": "/usr",
        "LC_ALL": "de_XX.UTF-8",
        "PS4": "$(exit 1)",
        "ENV": "/nowhere",
        "id": "x",
    }
    assert await folder.start('pwd; echo "$HOME $CDPATH $LC_ALL $id"', environment=values, directory="lib") == "job"
    assert (await folder.found("wait")).status.ok
    assert (folder.jobs / "mine" / "stdout").read_text() == f"{folder.home}/lib\n/usr /usr de_XX.UTF-8 x\n"


@pytest.mark.usefixtures("any_shell")
@pytest.mark.parametrize("variables", [{"TIME_STYLE": "long-iso"}, {"BLOCK_SIZE": "1K"}], ids=str)
async def test_variables_of_the_login_change_no_size(folder: JobFolder, variables: dict[str, str]) -> None:
    folder.variables = variables
    assert await folder.start("echo 1234; echo 12 >&2") == "job"
    status = (await folder.found("wait")).status
    assert (status.stdout_size, status.stderr_size) == (5, 3)


async def test_name_of_a_start_that_was_killed_at_once_is_free_again(folder: JobFolder) -> None:
    (folder.jobs / "mine").mkdir(parents=True)
    (folder.jobs / "mine" / "id.new").write_text("another\n")
    assert await folder.start("exit 4") == "job"
    assert (await folder.found("wait")).status.exit_status == 4


async def test_stop_of_a_job_without_a_first_process_ends_nothing(folder: JobFolder) -> None:
    await folder.start("exit 4")
    await folder.found("wait")
    (folder.jobs / "mine" / "leader").unlink()
    other = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        assert (await folder.found("stop", 0)).status.exit_status == 4
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize(
    "program",
    [
        # A name with a newline and a parenthesis.
        (
            "import ctypes, os, time; ctypes.CDLL(None).prctl(15, b'a) \\nb', 0, 0, 0);"
            " print(os.getpid(), flush=True); time.sleep(1000)"
        ),
        # The first thread ends before another one.
        (
            "import ctypes, os, threading, time; threading.Thread(target=time.sleep, args=(1000,)).start();"
            " print(os.getpid(), flush=True); ctypes.CDLL(None).pthread_exit(None)"
        ),
    ],
    ids=["name", "thread"],
)
async def test_stop_ends_a_process_that_looks_odd(program: str, folder: JobFolder) -> None:
    (folder.home / "odd.py").write_text(program)
    await folder.start(f"exec {sys.executable} odd.py")
    await until(lambda: family(folder))
    assert (await folder.found()).status.state == "running"
    status = (await folder.found("stop", 2)).status
    assert status.state == "signaled"
    assert not Path(f"/proc/{family(folder)[0]}/task").exists() or not is_running(family(folder)[0])
