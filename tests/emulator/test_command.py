"""`python -m netmind_rentgpu.emulator`, as a process of its own."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from netmind_rentgpu import AsyncRentGPU, PaymentType
from netmind_rentgpu.emulator.__main__ import main

COMMAND = [sys.executable, "-W", "error", "-m", "netmind_rentgpu.emulator"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_it_serves_until_it_is_interrupted(how: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--seed", "7"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    with process:
        try:
            assert process.stdout is not None
            url = re.fullmatch(r"export NETMIND_BASE_URL=(http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
            token = re.fullmatch(r"export NETMIND_API_KEY=(\S+)\n", process.stdout.readline())
            assert url
            assert token
            async with AsyncRentGPU(token[1], base_url=url[1]) as gpu:
                machine = (await gpu.machines.list())[0]
                auth = await gpu.auths.create("a-password")
                await gpu.containers.create(
                    name="left-behind",
                    auth_id=auth.id,
                    node_name=machine.node_name,
                    image_template_id=1,
                    payment_type=PaymentType.USD,
                )
            process.send_signal(how)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "")
    assert re.fullmatch(r"serving until interrupted\nstill rented: left-behind \(1001\), \d\.\d+ USD an hour\n", err)


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert f"cannot serve on port {port}" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["65536", "-1", "many"])
def test_what_is_no_port(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--port", port])
    assert caught.value.code == 2
    assert "--port" in capsys.readouterr().err
