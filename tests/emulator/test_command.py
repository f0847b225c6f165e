"""`python -m netmind_rentgpu.emulator`, as a process of its own."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from emulator_command import serving
from programs import FOLDER

from netmind_rentgpu import AsyncRentGPU, InsufficientBalanceError, PaymentType
from netmind_rentgpu.emulator import Fault
from netmind_rentgpu.emulator.__main__ import _faults, main


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_command_serves_until_interrupted_and_lists_running_containers(
    how: signal.Signals, tmp_path: Path
) -> None:
    async with (
        serving(["--port", "0", "--seed", "7"], tmp_path, how) as served,
        AsyncRentGPU(served.token, base_url=served.url) as gpu,
    ):
        machine = (await gpu.machines.list())[0]
        auth = await gpu.auths.create("a-password")
        await gpu.containers.create(
            name="left-behind",
            auth_id=auth.id,
            node_name=machine.node_name,
            image_template_id=1,
            payment_type=PaymentType.USD,
        )
    assert re.fullmatch(
        r"serving until interrupted\n1 still rented, for (\d\.\d+) USD an hour:\n"
        r"  left-behind \(container 1001\): 1 GPU on node-\S+, \1 USD an hour, 0\.\d+ USD in \d+\.\d s\n",
        served.errors[0],
    )


# On Windows SIGTERM ends a process at once; the others that stop it reach Python as this one does.
@pytest.mark.parametrize("platform", ["darwin", "win32"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_command_serves_where_posix_is_missing_and_puts_back_what_handled_signals(
    how: signal.Signals, platform: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-W", "error", str(FOLDER / "emulator_without_posix.py"), platform]
    async with (
        serving(["--seed", "7"], tmp_path, how, command) as served,
        AsyncRentGPU(served.token, base_url=served.url) as gpu,
    ):
        assert await gpu.machines.list()
    assert served.errors == ["serving until interrupted\n"]


def test_command_says_that_its_ssh_needs_posix() -> None:
    command = [sys.executable, "-W", "error", str(FOLDER / "emulator_without_posix.py"), "win32", "--ssh"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("error: an emulator with SSH needs POSIX, which this system lacks\n")


def test_help_says_how_many_requests_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "keeps the newest 10,000 requests." in " ".join(capsys.readouterr().out.split())


def test_port_in_use_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert f"could not serve on port {port}" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["65536", "-1", "many"])
def test_invalid_port_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--port", port])
    assert caught.value.code == 2
    assert "--port" in capsys.readouterr().err


async def test_options_set_world_time_scale_and_faults(tmp_path: Path) -> None:
    faults = tmp_path / "faults.toml"
    faults.write_text("""
        [[faults]]
        what = "status"
        status = 502
        call = "list_auths"
        times = "all"
        nth = 2

        [[faults]]
        what = "vanishes"
        seconds = 3600
    """)
    options = ["--world", "pairs-01", "--world", "limit=5", "--world", "token=bearer", "--time-scale", "0"]
    async with (
        serving([*options, "--faults", str(faults)], tmp_path) as (url, token, _),
        aiohttp.ClientSession() as http,
    ):
        headers = {"Authorization": f"Bearer {token}"}
        statuses, bodies = [], []
        for number in range(9):
            async with http.post(f"{url}/v1/rentgpu/auths/", json={"value": f"password-{number}"}, headers=headers):
                pass
        for _ in range(3):
            async with http.get(f"{url}/v1/rentgpu/auths/", headers=headers) as answer:
                statuses.append(answer.status)
                bodies.append(await answer.read())
        assert statuses == [200, 502, 502]
        assert len(json.loads(bodies[0])) == 5
        async with http.get(f"{url}/_emulator/clock") as answer:
            assert (await answer.json())["scale"] == 0
        async with http.get(f"{url}/_emulator/faults") as answer:
            assert [fault["what"] for fault in (await answer.json())["faults"]] == ["status", "vanishes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--world", "nowhere"], "no preset is called nowhere; there are documented, pairs-01"),
        (["--world", "ssh=telnet"], "ssh must be one of 'ssh user@host -p port'"),
        (["--world", "telnet=yes"], "there is no switch telnet; there are token"),
        (["--time-scale", "-1"], "a clock's scale is from 0 to 1,000,000"),
        (["--time-scale", "fast"], "--time-scale"),
        (["--faults", "missing.toml"], "--faults: missing.toml: "),
    ],
)
def test_invalid_option_is_refused_with_its_reason(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(options)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[faults]]\nwhat = 'drop'\nhow = 'hard'", "unknown: how; a fault has what, call, method"),
        ("[[faults]]\ncall = 'get_auth'", "a fault needs 'what': one of drop, status"),
        ("[[faults]]\nwhat = 'sabotage'", "'what' must be one of 'drop', "),
        ("faults = 3", "the file must hold only [[faults]] tables"),
        ("faults = [3]", "a fault has what"),
        ("[[fault]]\nwhat = 'drop'", "the file must hold only [[faults]] tables"),
        ("what = ", "Invalid value"),
    ],
)
def test_invalid_fault_file_is_refused_with_its_reason(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(text)
    with pytest.raises(SystemExit):
        main(["--faults", str(path)])
    assert message in capsys.readouterr().err


def test_file_of_faults_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text('[[faults]]\nwhat = "drop"\n', encoding="utf-8-sig")
    assert [fault.what for fault in _faults(path)] == ["drop"]


def test_file_of_faults_may_name_faults_of_ssh_connections(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text("""
        [[faults]]
        what = "ssh drop"
        after_bytes = 1_000_000
        nth = 2
        [[faults]]
        what = "ssh bandwidth"
        bytes_per_second = 10_000
        path = "*/containers/7"
        [[faults]]
        what = "kill supervisor"
    """)
    assert _faults(path) == [
        Fault("ssh drop", after_bytes=1_000_000, nth=2),
        Fault("ssh bandwidth", bytes_per_second=10_000, path="*/containers/7"),
        Fault("kill supervisor", seconds=1),
    ]


async def test_machines_start_and_balance_are_set_on_the_command_line(tmp_path: Path) -> None:
    options = ["--machines", "3", "--boot-seconds", "0", "--balance", "0", "--seed", "7"]
    async with serving(options, tmp_path) as served, AsyncRentGPU(served.token, base_url=served.url) as gpu:
        machines = await gpu.machines.list()
        assert len(machines) == 3
        auth = await gpu.auths.create("a-password")
        with pytest.raises(InsufficientBalanceError):
            await gpu.containers.create(
                name="x", auth_id=auth.id, node_name=machines[0].node_name, image_template_id=1, payment_type="USD"
            )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--machines", "x"], "invalid int value"),
        (["--machines", "-1"], "machines and boot_seconds must be 0 or more"),
        (["--boot-seconds", "nan"], "machines and boot_seconds must be 0 or more"),
        (["--balance", "nan"], "a balance must be a number of US dollars"),
        (["--balance", "-1"], "a balance must be a number of US dollars"),
        (["--balance", "much"], "a balance must be a number of US dollars"),
    ],
)
def test_option_that_cannot_be_used_is_named(
    options: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_output_is_named_and_not_the_port() -> None:
    command = [sys.executable, "-W", "error", "-m", "netmind_rentgpu.emulator"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("could not write the output: ")
    assert "Traceback" not in done.stderr
