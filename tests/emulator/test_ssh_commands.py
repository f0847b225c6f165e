"""The SSH servers of containers, seen by asyncssh's client: logins, commands, terminals, files and forwarded ports."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import canaries
import pytest
from isolation import NETWORKS, is_isolated
from ssh_client import LASTING, PASSWORD, login, port_of, rent, shout
from until import is_running, until

from netmind_rentgpu import AsyncRentGPU, Machine
from netmind_rentgpu.emulator import Emulator, Fault

asyncssh = pytest.importorskip("asyncssh")

pytestmark = pytest.mark.usefixtures("temporary_folder")


@pytest.fixture(params=NETWORKS)
async def emulator(request: pytest.FixtureRequest, clock: Any) -> AsyncIterator[Emulator]:
    isolated = is_isolated(request)
    async with Emulator(
        seed=7, boot_seconds=0, ssh=True, isolated=isolated, token=canaries.TOKEN, clock=clock
    ) as emulator:
        yield emulator


@pytest.fixture
async def connection(gpu: AsyncRentGPU) -> AsyncIterator[Any]:
    async with login(port_of(await rent(gpu, gpus=2))) as connection:
        yield connection


@pytest.fixture
async def machine(gpu: AsyncRentGPU) -> Machine:
    """The machine that the next container of two GPUs is created on."""
    return (await gpu.machines.list(gpu=2))[0]


async def test_password_of_the_auth_logs_in(gpu: AsyncRentGPU) -> None:
    container = await rent(gpu)
    async with login(port_of(container)) as connection:
        assert (await connection.run("echo $USER")).stdout == "root\n"


async def test_wrong_user_or_password_is_refused(gpu: AsyncRentGPU) -> None:
    mine, other = await rent(gpu), await rent(gpu, "other", "other-password")
    async with login(port_of(other), password="other-password"):
        pass
    for username, password in (("root", "wrong-password"), ("root", "other-password"), ("me", PASSWORD), ("root", "")):
        with pytest.raises(asyncssh.PermissionDenied):
            await login(port_of(mine), username, password)


async def test_each_container_has_its_own_host_key(gpu: AsyncRentGPU) -> None:
    keys = set()
    for name in ("mine", "other"):
        async with login(port_of(await rent(gpu, name))) as connection:
            keys.add(connection.get_server_host_key().get_fingerprint())
    assert len(keys) == 2


async def test_caller_without_ssh_does_no_harm(gpu: AsyncRentGPU) -> None:
    port = port_of(await rent(gpu))
    for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n\0\0\0\1"):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(greeting)
        await writer.drain()
        writer.transport.abort()
    async with login(port):
        pass


@pytest.mark.parametrize("status", [0, 1, 7, 255])
async def test_exit_status_of_a_command_is_returned(connection: Any, status: int) -> None:
    done = await connection.run(f"exit {status}")
    assert (done.exit_status, done.exit_signal) == (status, None)


async def test_command_receives_input_and_returns_output_and_errors(connection: Any) -> None:
    done = await connection.run("cat; echo bad >&2; exit 3", input="in\n")
    assert (done.stdout, done.stderr, done.exit_status) == ("in\n", "bad\n", 3)
    done = await connection.run("no-such-program")
    assert done.exit_status == 127
    assert "no-such-program" in done.stderr
    assert (await connection.run(input="echo from a shell\n")).stdout == "from a shell\n"


async def test_large_input_and_output_arrive_whole(connection: Any) -> None:
    content = os.urandom(3_000_000)
    done = await connection.run("cat", input=content, encoding=None)
    assert done.stdout == content


async def test_output_may_be_any_bytes(connection: Any) -> None:
    assert (await connection.run(r"printf '\377\0\n'", encoding=None)).stdout == b"\xff\0\n"


@pytest.mark.parametrize("terminal", [None, "dumb"])
async def test_command_fails_if_the_home_folder_was_deleted(connection: Any, terminal: str | None) -> None:
    await connection.run("rm -r ~")
    done = await connection.run("pwd", term_type=terminal)
    assert done.exit_status == 127
    assert "No such file or directory" in done.stderr


async def test_signal_ends_a_command_and_its_children(connection: Any) -> None:
    async with connection.create_process("sleep 10000 & echo $!; echo $$; wait") as process:
        pids = [int(await process.stdout.readline()) for _ in range(2)]
        assert all(map(is_running, pids))
        process.send_signal("NONSENSE")
        process.send_signal("TERM")
        done = await process.wait()
    assert done.exit_signal[0] == "TERM"
    await until(lambda: not any(map(is_running, pids)))


async def test_signal_that_a_command_sends_itself_is_returned(connection: Any) -> None:
    assert (await connection.run("kill -KILL $$")).exit_signal[0] == "KILL"


async def test_broken_connection_ends_the_command_on_a_terminal(gpu: AsyncRentGPU) -> None:
    port = port_of(await rent(gpu))
    async with login(port) as connection:
        process = await connection.create_process(LASTING, term_type="dumb")
        pid = int(await process.stdout.readline())
        connection.abort()
    await until(lambda: not is_running(pid))


async def test_command_of_a_client_that_is_gone_stays_with_the_container(gpu: AsyncRentGPU) -> None:
    connection = await login(port_of(await rent(gpu)))
    process = await connection.create_process("trap '' PIPE; echo $$; cat; echo more; exec sleep 10000")
    pid = int(await process.stdout.readline())
    connection.abort()
    del process, connection
    # Its input ends, and what it writes then cannot be sent.
    await until(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes())
    for _ in range(20):
        gc.collect()
        await asyncio.sleep(0.01)
    assert is_running(pid)


async def test_terminal_has_the_size_and_type_of_the_caller(connection: Any) -> None:
    command = "test -t 0 && test -t 1 && test -t 2 && stty size; read line; stty size; echo $TERM"
    async with connection.create_process(command, term_type="vt100", term_size=(100, 40)) as process:
        assert await process.stdout.readline() == "40 100\r\n"
        process.change_terminal_size(120, 50)
        process.stdin.write("\n")
        assert (await process.stdout.read()).split() == ["50", "120", "vt100"]
    assert process.exit_status == 0


async def test_terminal_without_a_command_runs_a_shell(connection: Any) -> None:
    async with connection.create_process(term_type="dumb") as process:
        process.stdin.write("echo $((6 * 7)); exit 5\n")
        assert "42" in await process.stdout.read()
    assert process.exit_status == 5


async def test_ctrl_c_on_a_terminal_interrupts_the_command(connection: Any) -> None:
    async with connection.create_process("echo ready; sleep 10000", term_type="dumb") as process:
        assert await process.stdout.readline() == "ready\r\n"
        process.stdin.write("\x03")
        done = await process.wait()
    assert done.exit_signal[0] == "INT" or done.exit_status == 130


async def test_environment_of_the_caller_is_set_but_for_home(connection: Any) -> None:
    done = await connection.run("echo $MINE $HOME", env={"MINE": "x", "HOME": "/nowhere"})
    mine, home = done.stdout.split()
    assert mine == "x"
    assert home != "/nowhere"


async def test_command_knows_the_addresses_and_ports_of_its_connection(connection: Any) -> None:
    client, server = (connection.get_extra_info(name) for name in ("sockname", "peername"))
    done = await connection.run("echo $SSH_CLIENT; echo $SSH_CONNECTION", env={"SSH_CONNECTION": "mine"})
    assert done.stdout.splitlines() == [
        f"127.0.0.1 {client[1]} {server[1]}",
        f"127.0.0.1 {client[1]} 127.0.0.1 {server[1]}",
    ]


async def test_command_on_a_slow_connection_knows_the_address_of_the_client(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    emulator.faults.add(Fault("ssh latency", seconds=0.001))
    async with login(port_of(await rent(gpu))) as connection:
        done = await connection.run("echo $SSH_CONNECTION")
        assert done.stdout.split()[1] == str(connection.get_extra_info("sockname")[1])


async def test_nvidia_smi_shows_the_gpus_of_the_machine(machine: Machine, connection: Any) -> None:
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
        ("--help", "this emulated nvidia-smi has only -L"),
    ):
        done = await connection.run(f"nvidia-smi {arguments}")
        assert done.exit_status == 1
        assert message in done.stderr


async def test_each_container_has_its_own_home_folder(gpu: AsyncRentGPU) -> None:
    homes = []
    for name in ("mine", "other"):
        async with login(port_of(await rent(gpu, name))) as connection:
            where = (await connection.run("pwd; echo ~; touch left; ls -A")).stdout.split()
            assert where == [where[0], where[0], "left"]
            homes.append(where[0])
    assert len(set(homes)) == 2


async def test_sftp_copies_both_ways_and_stays_in_the_home_folder(connection: Any, tmp_path: Path) -> None:
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


async def test_unknown_subsystem_is_refused(connection: Any) -> None:
    async with connection.create_process(subsystem="netconf") as process:
        done = await process.wait()
    assert done.exit_status == 1


@pytest.mark.parametrize("emulator", ["shared network"], indirect=True)
async def test_ports_are_forwarded_both_ways_on_loopback(connection: Any, echo: int) -> None:
    async with connection.forward_local_port("127.0.0.1", 0, "localhost", echo) as listener:
        assert await shout(*await asyncio.open_connection("127.0.0.1", listener.get_port())) == b"HELLO\n"
    async with connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", echo) as listener:
        assert await shout(*await asyncio.open_connection("127.0.0.1", listener.get_port())) == b"HELLO\n"


async def test_forwarding_beyond_loopback_is_refused(connection: Any, echo: int) -> None:
    for host in ("192.0.2.1", "example.com", "0.0.0.0"):
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_connection(host, echo)
    for host in ("", "0.0.0.0"):
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port(host, 0, "127.0.0.1", echo)
    assert (await connection.run("echo still there")).stdout == "still there\n"
