"""The command line, as a user starts it."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import click
import pytest
from click.testing import CliRunner
from short_forms import paired, thinned

import netmind_rentgpu.cli
from netmind_rentgpu import AsyncRentGPU, PaymentType, __version__
from netmind_rentgpu.cli.app import app
from netmind_rentgpu.emulator import Clock, Emulator

pytestmark = pytest.mark.slow

PROGRAM = str(Path(sys.executable).with_name("rentgpu"))
WAIT = "gpu.containers.wait_all(ids, until=has_ssh, on_progress=...)"
RENT = "gpu.rent(gpu_name='RTX 4090', max_price=0.60, image='demo')"
# The emulator's token is random, and its controls need it.
WITH_KNOWN_TOKEN = """
import secrets
from netmind_rentgpu.cli import main
secrets.token_urlsafe = lambda _: "known-to-a-test"
main()
"""
CALLS = [
    "gpu.machines.list()",
    "gpu.auths.create(...)",
    "gpu.auths.list()",
    "gpu.auths.get(1)",
    "gpu.images.list()",
    "gpu.images.create(...)",
    "gpu.images.get(6)",
    "gpu.offers(gpu_name='RTX 4090', max_price=0.60)",
    RENT,
    "rental.run('nvidia-smi')",
    "rental.shell.upload('train.py', 'train.py')",
    "rental.run('python3 train.py > result.txt')",
    "rental.shell.download('result.txt', 'result.txt')",
    "rental.spent",
    *["gpu.containers.create(...)"] * 3,
    "gpu.containers.list()",
    WAIT,
    "gpu.containers.get(1002)",
    "gpu.containers.stop(1002)",
    "gpu.containers.restart(1002)",
    "gpu.containers.wait(1002, until=has_ssh)",
    "gpu.containers.delete(1002)",
    "gpu.containers.delete(1003)",
    "gpu.containers.delete(1004)",
]


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("interface", [(), ("--sync",)])
def test_demo_makes_all_thirteen_calls_and_leaves_nothing_rented(tmp_path: Path, interface: tuple[str, ...]) -> None:
    done = run("demo", "--boot-seconds", "0.1", *interface, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^ ?\d+\. (.+)$", done.stdout, re.MULTILINE) == CALLS
    service = {call.partition("(")[0] for call in CALLS if re.match(r"gpu\.\w+\.(?!wait)", call)}
    assert len(service) == 13
    assert "Nothing is still rented." in done.stdout
    assert len(re.findall(r"^ +demo-\w+-\d: ssh root@127\.0\.0\.1 -p \d+ *$", done.stdout, re.MULTILINE)) == 3
    assert "NVIDIA-SMI" in done.stdout
    assert "trained on" in done.stdout
    spent = re.findall(r"^ +about (0\.\d{6}) USD; rental\.close\(\) deleted the container", done.stdout, re.MULTILINE)
    billed = re.findall(r"^The bill: rg-\S+ ran .* (0\.\d{6}) USD\.$", done.stdout, re.MULTILINE)
    assert float(spent[0]) == pytest.approx(float(billed[0]), rel=0.5)
    assert len(re.findall(r"^The bill: ", done.stdout, re.MULTILINE)) == 4
    assert list(tmp_path.iterdir()) == []


def test_demo_on_a_terminal_shows_progress(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    with subprocess.Popen(
        [PROGRAM, "demo", "--boot-seconds", "0.5"], stdout=slave, stderr=slave, cwd=tmp_path
    ) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:
                break
            shown += piece
        assert process.wait(60) == 0
    os.close(master)
    assert b"0/3" in shown
    assert b"Nothing is still rented." in shown


@pytest.mark.parametrize("interface", thinned([(), ("--sync",)], every=2))
async def test_live_demo_reads_and_rents_nothing(tmp_path: Path, interface: tuple[str, ...]) -> None:
    import anyio

    # Time stands still, so that the container is still starting when it is read.
    async with Emulator(seed=7, clock=Clock(scale=0)) as emulator:
        environment = {"NETMIND_BASE_URL": emulator.url, "NETMIND_API_KEY": emulator.token}
        empty = await anyio.to_thread.run_sync(lambda: run("demo", "--live", *interface, cwd=tmp_path, **environment))
        assert (empty.returncode, empty.stderr) == (0, "")
        assert "60 machines" in empty.stdout
        assert "0 rented" in empty.stdout

        async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
            auth = await gpu.auths.create("canary-password")
            await gpu.containers.create(
                name="[mine]",
                auth_id=auth.id,
                node_name=(await gpu.machines.list())[0].node_name,
                image_template_id=1,
                payment_type=PaymentType.USD,
            )
        full = await anyio.to_thread.run_sync(lambda: run("demo", "--live", *interface, cwd=tmp_path, **environment))
        assert (full.returncode, full.stderr) == (0, "")
        assert "gpu.auths.get(1)" in full.stdout
        assert "[mine], status 0" in full.stdout
        assert "canary" not in full.stdout
        assert len(emulator.charges) == 1


@pytest.mark.parametrize(
    ("moment", "interface"),
    paired([(3600, RENT, []), (2, WAIT, ["1002", "1003", "1004"])], [(), ("--sync",)]),
)
def test_interrupted_demo_deletes_its_containers(
    tmp_path: Path, moment: tuple[int, str, list[str]], interface: tuple[str, ...]
) -> None:
    boot_seconds, step, deleted = moment
    with subprocess.Popen(
        [sys.executable, "-c", WITH_KNOWN_TOKEN, "demo", "--boot-seconds", str(boot_seconds), *interface],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        shown = ""
        while step not in shown:
            line = process.stdout.readline()
            assert line, shown
            shown += line
        # The container exists now, whatever the demo does next.
        found = re.search(r"http://127\.0\.0\.1:\d+", shown)
        assert found is not None
        deadline = time.monotonic() + 60
        bill = Request(f"{found[0]}/_emulator/bill", headers={"Authorization": "Bearer emulator-token-known-to-a-test"})
        while b'"rg-' not in urlopen(bill).read():
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        shown += process.stdout.read()
        assert process.wait(60) != 0
    assert re.findall(r"gpu.containers.delete\((\d+)\)", shown) == deleted
    assert "The bill: rg-" in shown
    assert "Nothing is still rented." in shown
    assert "stop(1002)" not in shown


def test_live_demo_without_a_token_names_the_missing_variables(tmp_path: Path) -> None:
    done = run("demo", "--live", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(
        "rentgpu: no API token: set NETMIND_API_KEY or NETMIND_API_TOKEN, or run `rentgpu login`\n"
    )


def test_command_prints_help_and_version() -> None:
    runner = CliRunner()
    assert __version__ in runner.invoke(app, ["--version"]).output
    assert "demo" in runner.invoke(app, ["--help"]).output
    assert isinstance(app, click.Group)


def test_command_without_its_libraries_says_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netmind_rentgpu.cli, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        netmind_rentgpu.cli.main()
    assert str(caught.value.code).startswith("rentgpu: click and rich missing; the extra `cli` installs them: run pip")


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "-1", "x"])
def test_demo_refuses_a_start_that_never_ends(seconds: str) -> None:
    result = CliRunner().invoke(app, ["demo", "--boot-seconds", seconds])
    assert result.exit_code == 2
    assert "Invalid value for '--boot-seconds'" in result.output
    assert "Traceback" not in result.output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "arguments",
    thinned([["demo", "--boot-seconds", "0"], ["demo", "--sync", "--boot-seconds", "0"], ["--help"]], every=2),
)
def test_full_output_is_an_error_and_no_traceback(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [PROGRAM, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert ended.returncode == 74
    assert "No space left" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


def test_package_runs_as_a_module() -> None:
    for arguments in (["--version"], ["demo", "--help"]):
        command = [sys.executable, "-W", "error", "-m", "netmind_rentgpu", *arguments]
        as_module = subprocess.run(command, capture_output=True, text=True, check=True)
        as_program = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=True)
        assert as_module.stdout == as_program.stdout
        assert as_module.stdout.startswith(("rentgpu", "Usage: rentgpu"))
