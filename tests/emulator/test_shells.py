"""The containers' SSH servers, as asyncssh's client and the programs of OpenSSH see them."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import canaries
import pytest
from openssh import program as path_of

from netmind_rentgpu import AsyncRentGPU, Container, Machine, NotFoundError, PaymentType
from netmind_rentgpu.emulator import Clock, Emulator, Fault, World
from netmind_rentgpu.emulator.__main__ import main

asyncssh = pytest.importorskip("asyncssh")

PASSWORD = canaries.PASSWORD
# What runs until it is ended, and tells its process's id first.
LASTING = "echo $$; exec sleep 10000"


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the containers' folders apart from those of other emulators on this machine."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
async def emulator(clock: Any) -> AsyncIterator[Emulator]:
    async with Emulator(seed=7, boot_seconds=0, ssh=True, token=canaries.TOKEN, clock=clock) as emulator:
        yield emulator


async def rent(gpu: AsyncRentGPU, name: str = "mine", password: str = PASSWORD, gpus: int = 1) -> Container:
    container = await gpu.containers.create(
        name=name,
        auth_id=(await gpu.auths.create(password)).id,
        node_name=(await gpu.machines.list(gpu=gpus))[0].node_name,
        gpu=gpus,
        image_template_id=1,
        payment_type=PaymentType.USD,
    )
    return await gpu.containers.get(container.id)


def port_of(container: Container) -> int:
    assert container.ssh_endpoint is not None
    return container.ssh_endpoint.port


def login(port: int, username: str = "root", password: str = PASSWORD) -> Any:
    """Log in, with nothing of this machine's own: no keys, no agent, no configuration."""
    return asyncssh.connect(
        "127.0.0.1",
        port,
        username=username,
        password=password,
        known_hosts=None,
        config=None,
        client_keys=None,
        agent_path=None,
    )


async def until(happened: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for something that follows by itself."""
    async with asyncio.timeout(30):
        while True:
            answer = happened()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.005)


def runs(pid: int) -> bool:
    """Tell whether a process is there and no zombie, which waits only for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def folders() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob("netmind-emulator-*")}


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# Who may log in.


async def test_the_auths_password_logs_in(gpu: AsyncRentGPU) -> None:
    container = await rent(gpu)
    async with login(port_of(container)) as connection:
        assert (await connection.run("echo $USER")).stdout == "root\n"


async def test_nothing_else_does(gpu: AsyncRentGPU) -> None:
    mine, other = await rent(gpu), await rent(gpu, "other", "other-password")
    async with login(port_of(other), password="other-password"):
        pass
    for username, password in (("root", "wrong-password"), ("root", "other-password"), ("me", PASSWORD), ("root", "")):
        with pytest.raises(asyncssh.PermissionDenied):
            await login(port_of(mine), username, password)


async def test_each_container_has_its_own_key(gpu: AsyncRentGPU) -> None:
    keys = set()
    for name in ("mine", "other"):
        async with login(port_of(await rent(gpu, name))) as connection:
            keys.add(connection.get_server_host_key().get_fingerprint())
    assert len(keys) == 2


async def test_what_is_no_ssh_is_no_harm(gpu: AsyncRentGPU) -> None:
    port = port_of(await rent(gpu))
    for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n\0\0\0\1"):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(greeting)
        await writer.drain()
        writer.transport.abort()
    async with login(port):
        pass


# What is run.


@pytest.fixture
async def connection(gpu: AsyncRentGPU) -> AsyncIterator[Any]:
    async with login(port_of(await rent(gpu, gpus=2))) as connection:
        yield connection


@pytest.mark.parametrize("status", [0, 1, 7, 255])
async def test_an_exit_status(connection: Any, status: int) -> None:
    done = await connection.run(f"exit {status}")
    assert (done.exit_status, done.exit_signal) == (status, None)


async def test_output_errors_and_input(connection: Any) -> None:
    done = await connection.run("cat; echo bad >&2; exit 3", input="in\n")
    assert (done.stdout, done.stderr, done.exit_status) == ("in\n", "bad\n", 3)
    done = await connection.run("no-such-program")
    assert done.exit_status == 127
    assert "no-such-program" in done.stderr
    assert (await connection.run(input="echo from a shell\n")).stdout == "from a shell\n"


async def test_much_goes_through_whole(connection: Any) -> None:
    content = os.urandom(3_000_000)
    done = await connection.run("cat", input=content, encoding=None)
    assert done.stdout == content


async def test_bytes_that_are_no_text(connection: Any) -> None:
    assert (await connection.run(r"printf '\377\0\n'", encoding=None)).stdout == b"\xff\0\n"


@pytest.mark.parametrize("terminal", [None, "dumb"])
async def test_a_home_that_is_no_more(connection: Any, terminal: str | None) -> None:
    await connection.run("rm -r ~")
    done = await connection.run("pwd", term_type=terminal)
    assert done.exit_status == 127
    assert "No such file or directory" in done.stderr


async def test_a_signal_ends_it_and_its_children(connection: Any) -> None:
    async with connection.create_process("sleep 10000 & echo $!; echo $$; wait") as process:
        pids = [int(await process.stdout.readline()) for _ in range(2)]
        assert all(map(runs, pids))
        process.send_signal("NONSENSE")
        process.send_signal("TERM")
        done = await process.wait()
    assert done.exit_signal[0] == "TERM"
    await until(lambda: not any(map(runs, pids)))


async def test_a_signal_that_it_sends_itself(connection: Any) -> None:
    assert (await connection.run("kill -KILL $$")).exit_signal[0] == "KILL"


async def test_a_connection_that_breaks_ends_what_ran_on_a_terminal(gpu: AsyncRentGPU) -> None:
    port = port_of(await rent(gpu))
    async with login(port) as connection:
        process = await connection.create_process(LASTING, term_type="dumb")
        pid = int(await process.stdout.readline())
        connection.abort()
    await until(lambda: not runs(pid))


async def test_a_terminal(connection: Any) -> None:
    command = "test -t 0 && test -t 1 && test -t 2 && stty size; read line; stty size; echo $TERM"
    async with connection.create_process(command, term_type="vt100", term_size=(100, 40)) as process:
        assert await process.stdout.readline() == "40 100\r\n"
        process.change_terminal_size(120, 50)
        process.stdin.write("\n")
        assert (await process.stdout.read()).split() == ["50", "120", "vt100"]
    assert process.exit_status == 0


async def test_a_shell_on_a_terminal(connection: Any) -> None:
    async with connection.create_process(term_type="dumb") as process:
        process.stdin.write("echo $((6 * 7)); exit 5\n")
        assert "42" in await process.stdout.read()
    assert process.exit_status == 5


async def test_ctrl_c_on_a_terminal(connection: Any) -> None:
    async with connection.create_process("echo ready; sleep 10000", term_type="dumb") as process:
        assert await process.stdout.readline() == "ready\r\n"
        process.stdin.write("\x03")
        done = await process.wait()
    assert done.exit_signal[0] == "INT" or done.exit_status == 130


async def test_variables(connection: Any) -> None:
    done = await connection.run("echo $MINE $HOME", env={"MINE": "x", "HOME": "/nowhere"})
    mine, home = done.stdout.split()
    assert mine == "x"
    assert home != "/nowhere"


@pytest.fixture
async def machine(gpu: AsyncRentGPU) -> Machine:
    """The one that the next container of two GPUs is on."""
    return (await gpu.machines.list(gpu=2))[0]


async def test_nvidia_smi(machine: Machine, connection: Any) -> None:
    name = str(machine.gpu_name).replace("_", " ")

    async def smi(arguments: str) -> list[str]:
        done = await connection.run(f"nvidia-smi {arguments}", check=True)
        return str(done.stdout).splitlines()

    table = await smi("")
    assert sum(name in line for line in table) == 2
    assert any("CUDA Version" in line for line in table)
    assert [line.partition(" (")[0] for line in await smi("-L")] == [f"GPU 0: {name}", f"GPU 1: {name}"]
    memory = (machine.gpu_memory or 0) * 1024
    query = "--query-gpu=index,name,memory.total"
    rows = [f"{number}, {name}, {memory} MiB" for number in range(2)]
    assert await smi(f"{query} --format=csv") == ["index, name, memory.total", *rows]
    assert await smi(f"--format=csv,noheader {query}") == rows
    assert await smi(f"{query} --format=csv,noheader,nounits") == [row.removesuffix(" MiB") for row in rows]
    for arguments, message in (
        ("--query-gpu=name,colour --format=csv", 'Field "colour" is not a valid field to query.'),
        ("--help", "this emulated nvidia-smi knows -L"),
    ):
        done = await connection.run(f"nvidia-smi {arguments}")
        assert done.exit_status == 1
        assert message in done.stderr


# Files.


async def test_a_home_of_its_own(gpu: AsyncRentGPU) -> None:
    homes = []
    for name in ("mine", "other"):
        async with login(port_of(await rent(gpu, name))) as connection:
            where = (await connection.run("pwd; echo ~; touch left; ls -A")).stdout.split()
            assert where == [where[0], where[0], "left"]
            homes.append(where[0])
    assert len(set(homes)) == 2


async def test_sftp(connection: Any, tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "file").write_bytes(b"x" * 100_000)
    async with connection.start_sftp_client() as sftp:
        await sftp.put(tmp_path / "tree", "tree", recurse=True)
        assert (await connection.run("wc -c <tree/deep/file")).stdout.split() == ["100000"]
        await connection.run("echo made there >made")
        await sftp.get("made", tmp_path / "made")
        assert (tmp_path / "made").read_text() == "made there\n"
        assert sorted(await sftp.listdir("/")) == [".", "..", "made", "tree"]
        assert await sftp.realpath("../../..") == "/"
        for path in ("../../../../etc/passwd", "/etc/passwd", "tree/../../../etc/passwd"):
            with pytest.raises(asyncssh.SFTPNoSuchFile):
                await sftp.stat(path)


async def test_a_subsystem_that_is_not_there(connection: Any) -> None:
    async with connection.create_process(subsystem="netconf") as process:
        done = await process.wait()
    assert done.exit_status == 1


# Forwarding.


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def shout(reader: Any, writer: Any) -> bytes:
    writer.write(b"hello\n")
    async with asyncio.timeout(30):
        answer: bytes = await reader.read()
    writer.close()
    return answer


async def test_forwarding_to_loopback(connection: Any, echo: int) -> None:
    async with connection.forward_local_port("127.0.0.1", 0, "localhost", echo) as listener:
        assert await shout(*await asyncio.open_connection("127.0.0.1", listener.get_port())) == b"HELLO\n"
    async with connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", echo) as listener:
        assert await shout(*await asyncio.open_connection("127.0.0.1", listener.get_port())) == b"HELLO\n"


async def test_forwarding_to_nowhere_else(connection: Any, echo: int) -> None:
    for host in ("192.0.2.1", "example.com", "0.0.0.0"):
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_connection(host, echo)
    for host in ("", "0.0.0.0"):
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port(host, 0, "127.0.0.1", echo)
    assert (await connection.run("echo still there")).stdout == "still there\n"


# A container's life.


@pytest.mark.parametrize("key", ["kept", "changed"])
@pytest.mark.parametrize("port", ["kept", "changed"])
async def test_stop_and_restart(port: Any, key: Any, clock: Any) -> None:
    world = World(restart_port=port, restart_host_key=key)
    async with (
        Emulator(boot_seconds=0, ssh=True, clock=clock, world=world) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu,
    ):
        container = await rent(gpu)
        before = port_of(container)
        async with login(before) as connection:
            first = connection.get_server_host_key().get_fingerprint()
            process = await connection.create_process(LASTING)
            pid = int(await process.stdout.readline())
            await connection.run("touch left")
            await gpu.containers.stop(container.id)
            await connection.wait_closed()
        assert not await answers(before)
        await until(lambda: not runs(pid))
        await gpu.containers.restart(container.id)
        after = port_of(await gpu.containers.get(container.id))
        assert (after == before) is (port == "kept")
        async with login(after) as connection:
            assert (connection.get_server_host_key().get_fingerprint() == first) is (key == "kept")
            assert (await connection.run("ls")).stdout == "left\n"
        assert await answers(before) is (port == "kept")


@pytest.mark.parametrize("how", ["delete", "reset", "the end"])
async def test_nothing_is_left(how: str, clock: Any) -> None:
    """Not even what took itself out of its session."""
    tasks, files = asyncio.all_tasks(), descriptors()
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(Emulator(boot_seconds=0, ssh=True, clock=clock))
        gpu = await stack.enter_async_context(AsyncRentGPU(emulator.token, base_url=emulator.url))
        container = await rent(gpu)
        (folder,) = folders()
        async with login(port_of(container)) as connection:
            process = await connection.create_process(LASTING)
            pids = [int(await process.stdout.readline())]
            await connection.run(f"setsid sh -c '{LASTING}' >pid </dev/null 2>&1 & while ! test -s pid; do :; done")
            pids.append(int((await connection.run("cat pid")).stdout))
            process = await connection.create_process(LASTING, term_type="dumb")
            pids.append(int(await process.stdout.readline()))
            assert all(map(runs, pids))
            if how == "delete":
                await gpu.containers.delete(container.id)
            elif how == "reset":
                emulator.reset()
            else:
                await stack.aclose()
            await connection.wait_closed()
        assert not await answers(port_of(container))
        assert folder not in folders()
        await until(lambda: not any(map(runs, pids)))
    await until(lambda: asyncio.all_tasks() <= tasks)
    assert folders() == set()
    await until(lambda: descriptors() <= files)


async def test_who_has_not_logged_in_is_let_go(clock: Any) -> None:
    tasks = asyncio.all_tasks()
    async with (
        Emulator(boot_seconds=0, ssh=True, clock=clock) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu,
    ):
        port = port_of(await rent(gpu))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await reader.readline()).startswith(b"SSH-2.0-")
        # This one connects as the emulator stops.
        _, other = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(30):
        await reader.read()
    writer.close()
    other.transport.abort()
    await until(lambda: asyncio.all_tasks() <= tasks)


async def test_the_clock_opens_a_port_and_closes_it(clock: Any) -> None:
    async with (
        Emulator(boot_seconds=10, ssh=True, clock=clock) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu,
    ):
        container = await rent(gpu)
        assert container.ssh_endpoint is None
        clock.advance(13)
        port = port_of(await gpu.containers.get(container.id))
        emulator.faults.add(Fault("vanishes", seconds=60, call="restart_container"))
        await gpu.containers.restart(container.id)
        assert not await answers(port)
        # Nobody asks the service meanwhile.
        clock.advance(13)
        await until(lambda: answers(port))
        async with login(port) as connection:
            clock.advance(60)
            await connection.wait_closed()
        assert not await answers(port)
        with pytest.raises(NotFoundError):
            await gpu.containers.get(container.id)


async def test_one_that_is_never_reachable(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    emulator.faults.add(Fault("never reachable"))
    container = await rent(gpu)
    assert port_of(container) == 1
    with pytest.raises(ConnectionRefusedError):
        await login(1)
    await gpu.containers.restart(container.id)
    async with login(port_of(await gpu.containers.get(container.id))):
        pass


async def test_one_that_dies(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    container = await rent(gpu)
    emulator.faults.add(Fault("dies", call="restart_container"))
    async with login(port_of(container)) as connection:
        await gpu.containers.restart(container.id)
        await connection.wait_closed()
    assert not await answers(port_of(container))
    assert (await gpu.containers.get(container.id)).ssh_endpoint is None


async def test_one_that_moves(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    container = await rent(gpu)
    emulator.faults.add(Fault("moves"))
    await gpu.containers.restart(container.id)
    moved = port_of(await gpu.containers.get(container.id))
    assert moved != port_of(container)
    assert not await answers(port_of(container))
    async with login(moved):
        pass


async def test_after_a_reset_it_goes_on(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    await rent(gpu)
    emulator.reset()
    async with login(port_of(await rent(gpu))) as connection:
        assert (await connection.run("ls")).stdout == ""


async def test_what_a_reset_ended_does_not_meddle(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    container = await rent(gpu)
    emulator.faults.add(Fault("slow", call="restart_container", seconds=0.3))
    emulator.faults.add(Fault("slow", call="create_container", seconds=0.3))
    late = [asyncio.create_task(gpu.containers.restart(container.id)), asyncio.create_task(rent(gpu, "late"))]
    await until(lambda: [one.fault for one in emulator.requests].count("slow") == 2)
    emulator.reset()
    port = port_of(await rent(gpu))
    async with login(port) as connection:
        await asyncio.gather(*late, return_exceptions=True)
        assert (await connection.run("echo still there")).stdout == "still there\n"
    assert await answers(port)
    assert [charge.name for charge in emulator.running] == ["mine"]


async def test_the_bill_after_the_end(clock: Any) -> None:
    async with (
        Emulator(boot_seconds=10, ssh=True, clock=clock) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu,
    ):
        emulator.faults.add(Fault("vanishes", seconds=60))
        await rent(gpu)
        await rent(gpu, "other")
    clock.advance(3600)
    assert [charge.running for charge in emulator.charges] == [False, True]
    assert folders() == set()


def test_from_a_thread() -> None:
    with Emulator(boot_seconds=0, ssh=True, clock=Clock(scale=0)) as emulator:

        async def work() -> None:
            async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
                container = await rent(gpu)
                async with login(port_of(container)) as connection:
                    assert (await connection.run("echo hello")).stdout == "hello\n"
                    process = await connection.create_process(LASTING)
                    pid = int(await process.stdout.readline())
                    emulator.reset()
                    await connection.wait_closed()
                await until(lambda: not runs(pid))
                async with login(port_of(await rent(gpu))):
                    pass

        asyncio.run(work())
    assert folders() == set()


def test_without_asyncssh(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    monkeypatch.delitem(sys.modules, "netmind_rentgpu.emulator.shells", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"needs asyncssh: pip install 'netmind-rentgpu\[ssh\]'"):
        Emulator(ssh=True)
    with pytest.raises(SystemExit):
        main(["--ssh"])
    assert "needs asyncssh" in capsys.readouterr().err
    Emulator()


# OpenSSH.


class OpenSSH:
    """The programs of OpenSSH, with nothing of this machine's own, and a password that a script tells them."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        folder.mkdir()
        script = folder / "password"
        script.write_text(f"#!/bin/sh\necho '{PASSWORD}'\n")
        script.chmod(0o700)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "SSH_ASKPASS": str(script),
            "SSH_ASKPASS_REQUIRE": "force",
            "DISPLAY": ":0",
        }

    async def start(self, program: str, *arguments: str) -> asyncio.subprocess.Process:
        path = path_of(program)
        options = {
            "UserKnownHostsFile": self.folder / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "accept-new",
            "PubkeyAuthentication": "no",
            "NumberOfPasswordPrompts": "1",
            "LogLevel": "INFO",
            "Port": self.port,
            "ExitOnForwardFailure": "yes",
        }
        return await asyncio.create_subprocess_exec(
            path,
            *("-F", "/dev/null"),
            *(f"-o{name}={value}" for name, value in options.items()),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
            cwd=self.folder,
        )

    async def run(self, program: str, *arguments: str, told: str = "") -> tuple[int | None, str, str]:
        process = await self.start(program, *arguments)
        async with asyncio.timeout(60):
            out, err = await process.communicate(told.encode())
        return process.returncode, out.decode(), err.decode()


@pytest.fixture
async def openssh(gpu: AsyncRentGPU, tmp_path: Path) -> OpenSSH:
    return OpenSSH(tmp_path / "openssh", port_of(await rent(gpu)))


HERE = "root@127.0.0.1"


async def test_openssh_logs_in_and_runs(openssh: OpenSSH) -> None:
    status, out, err = await openssh.run("ssh", HERE, "cat; nvidia-smi -L; echo bad >&2; exit 7", told="in\n")
    assert (status, out.splitlines()[0]) == (7, "in")
    assert out.splitlines()[1].startswith("GPU 0: ")
    assert "bad\n" in err
    assert "Permanently added" in err
    status, out, err = await openssh.run("ssh", HERE, "echo again")
    assert (status, out, err) == (0, "again\n", "")
    status, out, _ = await openssh.run("ssh", "-tt", HERE, "stty size; exit 4")
    assert status == 4
    assert re.fullmatch(r"\d+ \d+\r\n", out)


async def test_openssh_is_refused_with_a_wrong_password(openssh: OpenSSH) -> None:
    (openssh.folder / "password").write_text("#!/bin/sh\necho wrong-password\n")
    status, out, err = await openssh.run("ssh", HERE, "echo in")
    assert (status, out) == (255, "")
    assert "Permission denied" in err


@pytest.mark.parametrize("protocol", [(), ("-O",)], ids=["sftp", "scp"])
async def test_scp_copies_both_ways(openssh: OpenSSH, protocol: tuple[str, ...]) -> None:
    content = os.urandom(300_000)
    (openssh.folder / "tree").mkdir()
    (openssh.folder / "tree" / "file").write_bytes(content)
    done = await openssh.run("scp", *protocol, "-r", "tree", f"{HERE}:copied")
    assert done[0] == 0, done
    assert (await openssh.run("ssh", HERE, "wc -c <copied/file"))[1].split() == ["300000"]
    done = await openssh.run("scp", *protocol, "-r", f"{HERE}:copied", "back")
    assert done[0] == 0, done
    assert (openssh.folder / "back" / "file").read_bytes() == content


async def test_sftp_copies_both_ways(openssh: OpenSSH) -> None:
    (openssh.folder / "up").write_text("up")
    told = "put up there\nmkdir folder\nrename there folder/moved\nls folder\nget folder/moved down\npwd\n"
    status, out, err = await openssh.run("sftp", HERE, told=told)
    assert status == 0, err
    assert "folder/moved" in out
    assert "Remote working directory: /" in out
    assert (openssh.folder / "down").read_text() == "up"


async def test_openssh_forwards_both_ways(openssh: OpenSSH, echo: int) -> None:
    # A socket in the file system, since a port that is free now may not be when it is taken.
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
