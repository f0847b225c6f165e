"""Shells: many containers logged into at once; and a large file copied, beside OpenSSH's `sftp` and the same server.

The emulator runs in a process of its own. The server for the copies is OpenSSH's where it and libnss-wrapper are installed,
with a password of its own, else the emulator.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import resource
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from ctypes.util import find_library
from pathlib import Path

import attrs

from benchmarks.measure import report
from netmind_rentgpu import AsyncRentGPU, Container, PaymentType
from netmind_rentgpu.emulator import Emulator

CONTAINERS = 200
DESCRIPTORS = 8192
MIB = 256
# A round copies a gigabyte.
MOST_ROUNDS = 5
SLOWER = 2.0
OURS, THEIRS = "AsyncShell", "sftp of OpenSSH"
PASSWORD = "benchmark-password"  # noqa: S105  # of servers that last as long as this
SSHD = "/usr/sbin/sshd"


# Many containers.


async def _serve_emulator() -> None:
    _allow_descriptors()
    async with Emulator(seed=1, machines=2 * CONTAINERS, boot_seconds=1, ssh=True) as emulator:
        print(emulator.url, emulator.token, flush=True)
        await asyncio.Event().wait()


@contextmanager
def _emulator() -> Iterator[tuple[str, str]]:
    command = [sys.executable, "-m", "benchmarks.ssh"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url, token = process.stdout.readline().split()
            yield url, token
        finally:
            # Not killed: it has folders to remove.
            process.send_signal(signal.SIGINT)


def _allow_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _sockets() -> int:
    """Return how many sockets this process has open."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += str(descriptor.readlink()).startswith("socket:")
    return count


async def _creates(gpu: AsyncRentGPU) -> AsyncIterator[Container]:
    auth = await gpu.auths.create(PASSWORD)
    machines = [one for one in await gpu.machines.list() for _ in range(int(one.gpu_count or 0))]
    for number, machine in enumerate(machines[:CONTAINERS]):
        yield await gpu.containers.create(
            name=f"shell-{number}",
            auth_id=auth.id,
            gpu=1,
            node_name=machine.node_name,
            image_template_id=1,
            payment_type=PaymentType.USD,
        )


async def _many(url: str, token: str, state: Path) -> None:
    peak = 0

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, _sockets())
            await asyncio.sleep(0.01)

    async with AsyncRentGPU(token, base_url=url, state=state) as gpu:
        containers = [container async for container in _creates(gpu)]
        assert len(containers) == CONTAINERS
        ready: list[float] = []

        async def use(container: Container) -> None:
            found = await gpu.containers.wait_ready(container.id, timeout=300)
            ready.append(time.perf_counter() - began)
            async with gpu.ssh(found, timeout=120) as shell:
                assert (await shell.run("hostname", check=True)).stdout

        watching = asyncio.create_task(watch())
        began = time.perf_counter()
        await asyncio.gather(*map(use, containers))
        seconds = time.perf_counter() - began
        watching.cancel()
    print(f"\n{CONTAINERS} containers, waited for, logged into, and a command run on each, all at once")
    print(f"  {seconds:.1f} s in all; the last was ready after {max(ready):.1f} s; at most {peak} sockets open")


# One large file.


@attrs.frozen
class Server:
    """An SSH server, and whom it lets in with the password."""

    name: str
    port: int
    user: str


@contextmanager
def _openssh(folder: Path) -> Iterator[Server]:
    """Run OpenSSH's server, as whoever runs this, with accounts of its own."""
    me = pwd.getpwuid(os.getuid())
    home = folder / "home"
    home.mkdir()
    hashed = subprocess.check_output([_path("openssl"), "passwd", "-6", PASSWORD], text=True).strip()
    files = {
        "passwd": f"{me.pw_name}:x:{me.pw_uid}:{me.pw_gid}::{home}:/bin/sh\nsshd:x:65534:65534::/run/sshd:/bin/false\n",
        "group": f"{me.pw_name}:x:{me.pw_gid}:\nnogroup:x:65534:\n",
        "shadow": f"{me.pw_name}:{hashed}:19000:0:99999:7:::\n",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subprocess.run([_path("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    files["config"] = f"""
        Port {port}
        ListenAddress 127.0.0.1
        HostKey {folder / "key"}
        PidFile none
        UsePAM no
        PermitRootLogin yes
        PasswordAuthentication yes
        PubkeyAuthentication no
        StrictModes no
        Subsystem sftp internal-sftp
        MaxStartups 500
    """
    for name, content in files.items():
        (folder / name).write_text(content)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    wrapped = {f"NSS_WRAPPER_{name.upper()}": str(folder / name) for name in ("passwd", "group", "shadow")}
    with subprocess.Popen(
        [SSHD, "-D", "-e", "-f", folder / "config"],
        env={**os.environ, "LD_PRELOAD": "libnss_wrapper.so", **wrapped},
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            _wait_for(port)
            yield Server("OpenSSH's server", port, me.pw_name)
        finally:
            process.terminate()


def _path(program: str) -> str:
    return shutil.which(program) or program


def _wait_for(port: int) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


@contextmanager
def _emulated(state: Path) -> Iterator[Server]:
    async def create(url: str, token: str) -> int:
        async with AsyncRentGPU(token, base_url=url, state=state) as gpu:
            async for container in _creates(gpu):
                found = await gpu.containers.wait_ready(container.id)
                assert found.ssh_endpoint is not None
                return found.ssh_endpoint.port
        raise AssertionError("the emulator has no machines")

    with _emulator() as (url, token):
        yield Server("the emulator", asyncio.run(create(url, token)), "root")


@contextmanager
def _server(folder: Path) -> Iterator[Server]:
    installed = Path(SSHD).exists() and find_library("nss_wrapper") is not None
    with _openssh(folder) if installed else _emulated(folder / "state") as server:
        yield server


async def _ours(server: Server, folder: Path) -> dict[str, float]:
    """Return the seconds that each direction takes, the login included."""
    found: dict[str, float] = {}
    container = Container(id=1, name="bench", ssh=f"ssh {server.user}@127.0.0.1 -p {server.port}")
    async with AsyncRentGPU("token", base_url="http://127.0.0.1:1", state=folder / "ours.sqlite3") as gpu:
        for way in ("up", "down"):
            began = time.perf_counter()
            async with gpu.ssh(container, password=PASSWORD) as shell:
                if way == "up":
                    await shell.upload(folder / "data", "ours")
                else:
                    await shell.download("ours", folder / "ours")
            found[way] = time.perf_counter() - began
    return found


def _theirs(server: Server, folder: Path) -> dict[str, float]:
    """Return the seconds that each direction takes, the login included."""
    ask = folder / "ask"
    ask.write_text(f"#!/bin/sh\necho {shlex.quote(PASSWORD)}\n")
    ask.chmod(0o700)
    options = {
        "BatchMode": "no",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "PubkeyAuthentication": "no",
        "LogLevel": "ERROR",
    }
    found: dict[str, float] = {}
    for way, batch in (("up", f"put {folder / 'data'} theirs\n"), ("down", f"get theirs {folder / 'theirs'}\n")):
        began = time.perf_counter()
        subprocess.run(
            [
                *(_path("sftp"), "-q", "-F", "none", "-P", str(server.port)),
                *(f"-o{name}={value}" for name, value in options.items()),
                *("-b", "-", f"{server.user}@127.0.0.1"),
            ],
            input=batch,
            text=True,
            env={**os.environ, "SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        found[way] = time.perf_counter() - began
    return found


def _copies(rounds: int) -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "data").open("wb") as data:
            for _ in range(MIB):
                data.write(secrets.token_bytes(2**20))
        with _server(folder) as server:
            seconds = [
                {THEIRS: _theirs(server, folder), OURS: asyncio.run(_ours(server, folder))} for _ in range(rounds)
            ]
        kept = True
        for way in ("up", "down"):
            found = [{who: taken[way] for who, taken in one.items()} for one in seconds]
            title = f"{MIB} MiB {way}, {server.name}, the login included"
            kept &= report(title, found, THEIRS, "s", {OURS: SLOWER})
            for who in (THEIRS, OURS):
                print(f"  {who}: {MIB / min(one[who] for one in found):.0f} MiB/s at best")
        same = (folder / "data").read_bytes()
        assert same == (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
    return kept


def run(rounds: int) -> bool:
    """Measure against servers in processes of their own."""
    _allow_descriptors()
    with tempfile.TemporaryDirectory() as folder, _emulator() as (url, token):
        asyncio.run(_many(url, token, Path(folder) / "state.sqlite3"))
    if shutil.which("sftp") is None:
        print("sftp is not installed and not shown")
        return True
    return _copies(min(rounds, MOST_ROUNDS))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve_emulator())
