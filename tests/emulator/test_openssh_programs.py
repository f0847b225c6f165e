"""The SSH servers of containers, used by the programs of OpenSSH: ssh, scp and sftp."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import canaries
import pytest
from isolation import NETWORKS, is_isolated
from openssh_programs import OpenSSHPrograms
from ssh_client import PASSWORD, port_of, rent, shout

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.emulator import Emulator

HERE = "root@127.0.0.1"

pytestmark = pytest.mark.usefixtures("temporary_folder")


@pytest.fixture(params=NETWORKS)
async def emulator(request: pytest.FixtureRequest, clock: Any) -> AsyncIterator[Emulator]:
    isolated = is_isolated(request)
    async with Emulator(
        seed=7, boot_seconds=0, ssh=True, isolated=isolated, token=canaries.TOKEN, clock=clock
    ) as emulator:
        yield emulator


@pytest.fixture
async def openssh(gpu: AsyncRentGPU, tmp_path: Path) -> OpenSSHPrograms:
    return OpenSSHPrograms(tmp_path / "openssh", port_of(await rent(gpu)), PASSWORD)


async def test_openssh_logs_in_and_runs_commands(openssh: OpenSSHPrograms) -> None:
    status, out, err = await openssh.run("ssh", HERE, "cat; nvidia-smi -L; echo bad >&2; exit 7", entered="in\n")
    assert (status, out.splitlines()[0]) == (7, "in")
    assert out.splitlines()[1].startswith("GPU 0: ")
    assert "bad\n" in err
    assert "Permanently added" in err
    status, out, err = await openssh.run("ssh", HERE, "echo again")
    assert (status, out, err) == (0, "again\n", "")
    status, out, _ = await openssh.run("ssh", "-tt", HERE, "stty size; exit 4")
    assert status == 4
    assert re.fullmatch(r"\d+ \d+\r\n", out)


async def test_openssh_is_refused_with_a_wrong_password(openssh: OpenSSHPrograms) -> None:
    (openssh.folder / "password").write_text("#!/bin/sh\necho wrong-password\n")
    status, out, err = await openssh.run("ssh", HERE, "echo in")
    assert (status, out) == (255, "")
    assert "Permission denied" in err


@pytest.mark.parametrize("protocol", [(), ("-O",)], ids=["sftp", "scp"])
async def test_scp_copies_both_ways(openssh: OpenSSHPrograms, protocol: tuple[str, ...]) -> None:
    content = os.urandom(300_000)
    (openssh.folder / "tree").mkdir()
    (openssh.folder / "tree" / "file").write_bytes(content)
    done = await openssh.run("scp", *protocol, "-r", "tree", f"{HERE}:copied")
    assert done[0] == 0, done
    assert (await openssh.run("ssh", HERE, "wc -c <copied/file"))[1].split() == ["300000"]
    done = await openssh.run("scp", *protocol, "-r", f"{HERE}:copied", "back")
    assert done[0] == 0, done
    assert (openssh.folder / "back" / "file").read_bytes() == content


async def test_sftp_copies_both_ways(openssh: OpenSSHPrograms) -> None:
    (openssh.folder / "up").write_text("up")
    entered = "put up there\nmkdir folder\nrename there folder/moved\nls folder\nget folder/moved down\npwd\n"
    status, out, err = await openssh.run("sftp", HERE, entered=entered)
    assert status == 0, err
    assert "folder/moved" in out
    assert "Remote working directory: /" in out
    assert (openssh.folder / "down").read_text() == "up"


@pytest.mark.parametrize("emulator", ["shared network"], indirect=True)
async def test_openssh_forwards_both_ways(openssh: OpenSSHPrograms, echo: int) -> None:
    # A socket in the file system, because a free port may be in use by the time that OpenSSH binds it.
    here = openssh.folder / "socket"
    process = await openssh.start(
        "ssh", "-L", f"{here}:127.0.0.1:{echo}", "-R", f"127.0.0.1:0:127.0.0.1:{echo}", HERE, "echo ready; cat"
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"ready\n"
        port = None
        while port is None:
            port = re.match(rb"Allocated port (\d+) for remote forward", await process.stderr.readline())
        assert await shout(*await asyncio.open_unix_connection(here)) == b"HELLO\n"
        assert await shout(*await asyncio.open_connection("127.0.0.1", int(port[1]))) == b"HELLO\n"
        process.stdin.close()
        assert await process.wait() == 0


@pytest.mark.parametrize("emulator", ["isolated"], indirect=True)
async def test_openssh_forwards_both_ways_through_a_port_of_an_isolated_container(
    openssh: OpenSSHPrograms, echo: int
) -> None:
    here = openssh.folder / "socket"
    process = await openssh.start(
        "ssh", "-L", f"{here}:localhost:8000", "-R", f"localhost:8000:127.0.0.1:{echo}", HERE, "echo ready; cat"
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"ready\n"
        # From this machine to the container's port, and from there to the server on this machine.
        assert await shout(*await asyncio.open_unix_connection(here)) == b"HELLO\n"
        process.stdin.close()
        assert await process.wait() == 0
