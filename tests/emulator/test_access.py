"""The emulator refuses requests of web pages, and with SSH its controls refuse requests without the token."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import aiohttp
import canaries
import pytest
from emulator_command import serving

from netmind_rentgpu import AsyncRentGPU, PaymentType, SSHError
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.emulator.__main__ import main

PATHS = [
    ("GET", "/v1/rentgpu/machines"),
    ("POST", "/v1/rentgpu/auths/"),
    ("GET", "/v1/rentgpu/nothing"),
    ("POST", "/_emulator/reset"),
    ("GET", "/_emulator/bill"),
    ("GET", "/_emulator/nothing"),
    ("GET", "/openapi.json"),
]


async def ask(emulator: Emulator, method: str, path: str, **headers: str | None) -> int:
    """Send a request with headers as they are, None for no such header; return the status."""
    port = emulator.url.rpartition(":")[2]
    sent = {"Host": f"127.0.0.1:{port}", "Authorization": f"Bearer {emulator.token}", "Content-Length": "2", **headers}
    lines = [f"{name}: {value}" for name, value in sent.items() if value is not None]
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
    writer.write("\r\n".join([f"{method} {path} HTTP/1.1", "Connection: close", *lines, "", "{}"]).encode())
    async with asyncio.timeout(60):
        status = (await reader.readline()).split()[1]
        await reader.read()
    writer.close()
    return int(status)


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8000"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example:80"},
        {"Host": "[::2]:80"},
        {"Host": "user@127.0.0.1"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1.evil.example:80"},
        {"Origin": "null"},
        {"Origin": "file://"},
        {"Origin": ""},
    ],
    ids=str,
)
async def test_request_that_a_web_page_may_have_sent_is_refused(
    emulator: Emulator, gpu: AsyncRentGPU, method: str, path: str, headers: dict[str, Any]
) -> None:
    await gpu.auths.create(canaries.PASSWORD)
    before = len(emulator.requests)
    assert await ask(emulator, method, path, **headers) == 403
    # It has neither reset the service nor become a part of its record.
    assert len(emulator.requests) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost"},
        {"Host": "LocalHost:1"},
        {"Host": "[::1]:8000"},
        {"Host": "127.0.0.1"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://[::1]:3000"},
        {"Origin": None},
    ],
    ids=str,
)
async def test_request_by_a_name_of_the_loopback_is_answered(emulator: Emulator, headers: dict[str, Any]) -> None:
    assert await ask(emulator, "GET", "/v1/rentgpu/machines", **headers) == 200
    assert await ask(emulator, "POST", "/_emulator/reset", **headers) == 200


async def test_allowed_host_is_answered_and_no_other() -> None:
    async with Emulator(allow_hosts=["gpu.Test"]) as emulator:
        assert await ask(emulator, "GET", "/v1/rentgpu/machines", Host="GPU.test:80") == 200
        assert await ask(emulator, "GET", "/v1/rentgpu/machines", Origin="https://gpu.test") == 200
        assert await ask(emulator, "GET", "/v1/rentgpu/machines", Host="other.test") == 403


async def test_tokens_of_an_emulator_with_ssh_cannot_be_guessed() -> None:
    made = [Emulator(seed=7, ssh=True) for _ in range(3)]
    assert len({emulator.token for emulator in made}) == 3
    assert len({emulator.add_token("other") for emulator in made}) == 3
    assert Emulator(seed=7, ssh=True, token="mine").token == "mine"
    # Without SSH they follow from the seed, so that a program can be given one beforehand.
    assert Emulator(seed=7).token == Emulator(seed=7).token == "emulator-token-00000007"


@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path in PATHS if "_emulator/" in path])
async def test_controls_of_an_emulator_with_ssh_need_its_token(method: str, path: str) -> None:
    async with Emulator(ssh=True) as emulator:
        known = "nothing" not in path
        assert await ask(emulator, method, path) == (200 if known else 404)
        for wrong in (
            None,
            "",
            "Bearer",
            f"Bearer {emulator.token}x",
            f"bearer {emulator.add_token('other')}",
            "\u00e9",
        ):
            assert await ask(emulator, method, path, Authorization=wrong) == (401 if known else 404)
        assert await ask(emulator, "GET", "/openapi.json", Authorization=None) == 200


async def test_command_with_ssh_prints_a_random_token_once(tmp_path: Path) -> None:
    async with serving(["--ssh", "--allow-host", "gpu.test"], tmp_path) as served:
        assert re.fullmatch(r"emulator-token-[-\w]{32}", served.token)
        async with aiohttp.ClientSession() as session:
            for headers, status in (
                ({}, 401),
                ({"Authorization": f"Bearer {served.token}"}, 200),
                ({"Authorization": f"Bearer {served.token}", "Host": "gpu.test"}, 200),
                ({"Authorization": f"Bearer {served.token}", "Host": "other.test"}, 403),
            ):
                async with session.get(f"{served.url}/_emulator/bill", headers=headers) as answer:
                    assert answer.status == status
    assert served.token not in served.errors[0]


def test_help_names_allow_host(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--allow-host NAME" in capsys.readouterr().out


@pytest.mark.parametrize(
    "password",
    [
        "\ufb01ve ligatures",
        "no\u00a0break space",
        "with emoji \U0001f600",
        "newer emoji \U0001fae0",
        "tab\tulator",
        "\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18",
        "soft\u00adhyphen",
    ],
    ids=ascii,
)
async def test_password_that_http_accepts_is_accepted_by_ssh(tmp_path: Path, password: str) -> None:
    async with (
        Emulator(seed=7, boot_seconds=0, ssh=True) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url, state=tmp_path / "state.sqlite3") as gpu,
    ):
        auth = await gpu.auths.create(password)
        machine = next(machine for machine in await gpu.machines.list() if machine.gpu_count)
        container = await gpu.containers.create(
            name="mine", auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type=PaymentType.USD
        )
        async with gpu.ssh(container.id) as shell:
            assert (await shell.run("echo in")).stdout == "in\n"
        with pytest.raises(SSHError, match="password was refused"):
            async with gpu.ssh(container.id, password=f"{password}x"):
                pass
        await gpu.containers.delete(container.id)
