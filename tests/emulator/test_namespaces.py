"""The namespaces of isolated containers: as which user, where they are forbidden, and the end of what holds them."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import isolation
import pytest
from emulator_command import COMMAND, serving
from isolation import holders, require_isolation
from programs import FOLDER
from ssh_client import rent
from until import is_running, until

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.emulator.__main__ import main
from netmind_rentgpu.emulator.namespaces import NetworkNamespace

pytestmark = pytest.mark.usefixtures("temporary_folder")
# Prefixes that run a command as root without the right to make a namespace, and as another user who may read the code.
NO_PRIVILEGE = ["setpriv", "--bounding-set=-sys_admin", "--"]
OTHER_USER = [
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--"),
]
# A command that forbids its own processes to make network namespaces.
FORBIDDING = ["unshare", "-Ur", "sh", "-c", 'echo 0 >/proc/sys/user/max_net_namespaces && exec "$@"', "sh"]


@pytest.fixture
async def namespace() -> AsyncIterator[NetworkNamespace]:
    require_isolation()
    with closing(NetworkNamespace()) as namespace:
        yield namespace


def need(command: list[str]) -> None:
    """Skip a test if the machine cannot run the command that it puts before another."""
    if (
        shutil.which(command[0]) is None
        or subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip(f"this user cannot run {' '.join(command[:2])}, as root can with Debian's util-linux")


@pytest.mark.parametrize("prefix", [[], NO_PRIVILEGE, OTHER_USER], ids=["this user", "no privilege", "other user"])
def test_containers_are_isolated_for_users_with_and_without_privileges(prefix: list[str]) -> None:
    require_isolation()
    if prefix:
        need(prefix)
    # Not in a folder of pytest, which only this user may enter.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        if prefix == OTHER_USER:
            os.chown(folder, 65534, 65534)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(Path(isolation.__file__).parent), os.environ.get("PYTHONPATH")])
            ),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": folder,
            "HOME": folder,
            "NETMIND_RENTGPU_STATE": f"{folder}/state.sqlite3",
        }
        command = [*prefix, sys.executable, "-W", "error", str(FOLDER / "isolated_containers.py")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    in_user_namespace, *rest = done.stdout.splitlines()
    # Root with all privileges needs none.
    assert in_user_namespace == "user namespace: True" or not prefix
    assert rest == [
        "same user: True",
        "listeners on port 80: 1",
        "listeners on port 80: 0",
        "holders: 1",
        "holders: 0",
    ]


async def test_killed_emulator_leaves_no_holder(tmp_path: Path) -> None:
    require_isolation()
    with subprocess.Popen(
        [*COMMAND, "--ssh", "--isolated", "--boot-seconds", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        try:
            assert process.stdout is not None
            url, token = (process.stdout.readline().strip().partition("=")[2] for _ in range(2))
            async with AsyncRentGPU(token, base_url=url) as gpu:
                container = await rent(gpu)
                async with gpu.ssh(container) as shell:
                    assert (await shell.run("wc -l </proc/net/dev")).stdout.strip() == "3"
                (holder,) = holders(process.pid)
        finally:
            process.kill()
    await until(lambda: not is_running(holder))


async def test_command_with_isolated_containers_ends_well(tmp_path: Path) -> None:
    require_isolation()
    async with (
        serving(["--ssh", "--isolated", "--boot-seconds", "0"], tmp_path) as served,
        AsyncRentGPU(served.token, base_url=served.url) as gpu,
    ):
        await gpu.containers.delete((await rent(gpu)).id)


def test_emulator_where_namespaces_are_forbidden_says_what_to_do() -> None:
    require_isolation()
    need(FORBIDDING)
    done = subprocess.run(
        [*FORBIDDING, *COMMAND, "--ssh", "--isolated"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(
        "error: containers cannot be isolated: there is no network namespace: [Errno 28] No space left on device; allow"
        " this user to make network namespaces, so that `unshare -Urn true` succeeds, or leave out isolated=True\n"
    )


def test_command_with_isolation_without_ssh_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--isolated"])
    assert "isolated=True needs ssh=True" in capsys.readouterr().err


def test_help_says_that_only_the_network_is_isolated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--isolated" in (text := " ".join(capsys.readouterr().out.split()))
    assert "files, processes and users stay this machine's" in text


async def test_cancelled_call_leaves_the_sockets_of_later_calls_right(namespace: NetworkNamespace) -> None:
    await namespace.ready()
    before = set(Path("/proc/self/fd").iterdir())
    families = [socket.AF_INET, socket.AF_INET6] * 20
    calls = [asyncio.create_task(namespace.open_socket(family)) for family in families]
    for number, call in enumerate(calls):
        if number % 3 == 0:
            # The first waits for its answer then, and the others for their turn.
            await asyncio.sleep(0)
            call.cancel()
    for family, made in zip(families, await asyncio.gather(*calls, return_exceptions=True), strict=True):
        if isinstance(made, socket.socket):
            with made:
                assert (made.family, made.type, made.get_inheritable()) == (family, socket.SOCK_STREAM, False)
        else:
            assert isinstance(made, asyncio.CancelledError)
    with await namespace.open_socket(socket.AF_INET) as made:
        assert made.family == socket.AF_INET
    assert set(Path("/proc/self/fd").iterdir()) == before


async def test_namespace_that_ends_meanwhile_is_an_error(namespace: NetworkNamespace) -> None:
    await namespace.ready()
    call = asyncio.create_task(namespace.open_socket(socket.AF_INET))
    await asyncio.sleep(0)
    namespace.close()
    with pytest.raises(OSError, match="has ended"):
        await call
    with pytest.raises(OSError, match="has ended"):
        await namespace.open_socket(socket.AF_INET)


async def test_family_that_the_system_lacks_is_an_error(namespace: NetworkNamespace) -> None:
    with pytest.raises(OSError, match="not supported"):
        await namespace.open_socket(socket.AF_X25)
    with await namespace.open_socket(socket.AF_INET) as made:
        assert made.family == socket.AF_INET


@pytest.mark.parametrize(
    ("ci", "succeeds", "outcome"),
    [(True, True, pytest.fail.Exception), (True, False, pytest.skip.Exception), (False, True, pytest.skip.Exception)],
)
def test_tests_of_isolation_fail_in_ci_where_the_system_allows_namespaces(
    ci: bool, succeeds: bool, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden() -> None:
        raise NotImplementedError("containers cannot be isolated")

    monkeypatch.setattr(isolation, "check_namespaces", forbidden)
    monkeypatch.setattr(isolation, "unshare_succeeds", lambda: succeeds)
    monkeypatch.delenv("CI", raising=False)
    if ci:
        monkeypatch.setenv("CI", "true")
    with pytest.raises(outcome, match="containers cannot be isolated"):
        require_isolation()
