"""`Shell` in scripts, each in a process of its own: plain use, Ctrl-C at every stage, exits, forks and threads."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hostile import Hostile
from programs import Program
from scripts import Served, serving

INTERRUPT = "f'kill -INT {os.getpid()}'"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as served:
        yield served


@pytest.mark.parametrize("uvloop", ["0", "1"], ids=["asyncio", "uvloop"])
async def test_a_plain_script(served: Served, uvloop: str) -> None:
    program = await served.run(
        """
        import socket

        with RentGPU() as gpu:
            with gpu.ssh(CONTAINER) as shell:
                print(shell.run("echo $NAME; cat", environment={"NAME": "you"}, input="and me").stdout)
                try:
                    shell.run("exit 3", check=True)
                except SSHError as error:
                    print(error.stage, error.result.exit_status)
                print(*(f"{line.stream}:{line}" for line in shell.stream("echo one; sleep 0.1; echo two >&2")))

                (HERE / "folder").mkdir()
                (HERE / "folder" / "up").write_bytes(b"x" * 1_000_000)
                news = []
                shell.upload(HERE / "folder", "copied/folder", on_progress=news.append)
                shell.download("copied", HERE / "down", on_progress=news.append)
                print((HERE / "down" / "folder" / "up").stat().st_size, len(news) > 2, news[-1].files_done)

                with socket.create_server(("127.0.0.1", 0)) as server:
                    forward = shell.forward(local_port=0, remote_port=server.getsockname()[1])
                    with socket.create_connection(("127.0.0.1", forward.local_port)) as client:
                        client.sendall(b"hello")
                        with server.accept()[0] as accepted:
                            print(accepted.recv(5).decode())
                    backward = shell.reverse_forward(remote_port=0, local_port=server.getsockname()[1])
                    with socket.create_connection(("127.0.0.1", backward.remote_port)) as client:
                        with server.accept()[0] as accepted:
                            accepted.sendall(b"hello back")
                            print(client.recv(10).decode())
            print(shell)
            try:
                shell.run("true")
            except ClientStateError as error:
                print(error)
            print(gpu.containers.get(CONTAINER).id == CONTAINER)
        """,
        NETMIND_RENTGPU_UVLOOP=uvloop,
    )
    program.assert_silent(
        "you\nand me\ncommand 3\nstdout:one stderr:two\n1000000 True 1\nhello\nhello back\n"
        "<Shell: closed>\nthis shell is closed; make a new one\nTrue\n"
    )


async def test_ctrl_c_while_connecting(tmp_path: Path) -> None:
    program = Program(
        """
        container = Container(id=1, name="silent", ssh=f"ssh root@127.0.0.1 -p {os.environ['PORT']}")
        try:
            with RentGPU().ssh(container, password="a-password"):
                print("never")
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    async with Hostile(on_connect=lambda _: os.kill(program.pid, signal.SIGINT)) as server:
        program.environment = {"PORT": str(server.port), "NETMIND_RENTGPU_STATE": str(tmp_path / "state.sqlite3")}
        await program.run(server.url)
        program.assert_silent("interrupted\n")
        await server.until(lambda: not server.open)


@pytest.mark.parametrize("way", ["run", "stream"])
async def test_ctrl_c_while_a_command_runs(served: Served, way: str) -> None:
    program = await served.run(f"""
        with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
            for _ in range(3):
                alive = Alive()
                try:
                    command = alive.command({INTERRUPT})
                    if {way!r} == "run":
                        shell.run(command)
                    else:
                        for line in shell.stream(command):
                            print(line)
                except KeyboardInterrupt:
                    print("interrupted")
                alive.began(); alive.wait()
                print(shell.run("echo usable").stdout, end="")
    """)
    program.assert_silent("interrupted\nusable\n" * 3)


async def test_ctrl_c_between_two_lines(served: Served) -> None:
    program = await served.run("""
        alive = Alive()

        def main():
            with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
                for line in shell.stream(alive.command("echo line")):
                    os.kill(os.getpid(), signal.SIGINT)

        try:
            main()
        except KeyboardInterrupt:
            print("interrupted")
        alive.began(); alive.wait()
    """)
    program.assert_silent("interrupted\n")


@pytest.mark.parametrize("way", ["upload", "download"])
async def test_ctrl_c_while_a_large_file_is_copied(served: Served, way: str) -> None:
    program = await served.run(f"""
        def interrupt(progress):
            if not interrupted and progress.bytes_done > 1_000_000:
                interrupted.append(1)
                os.kill(os.getpid(), signal.SIGINT)

        (HERE / "up").touch()
        os.truncate(HERE / "up", 256 * 1024 * 1024)
        with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
            shell.run("mkdir there && truncate -s 256M there/down", check=True)
            for _ in range(2):
                interrupted = []
                try:
                    if {way!r} == "upload":
                        shell.upload(HERE / "up", "there/up", on_progress=interrupt)
                    else:
                        shell.download("there/down", HERE / "down", on_progress=interrupt)
                except KeyboardInterrupt:
                    print("interrupted")
                print(*names(), shell.run("ls -A there").stdout, end="")
            (HERE / "small").write_text("small")
            shell.upload(HERE / "small", "there/up")
            shell.download("there/up", HERE / "down")
            print((HERE / "down").read_text())
    """)
    program.assert_silent("interrupted\nup down\n" * 2 + "small\n")


async def test_interrupts_at_random_moments_leave_nothing_behind(served: Served) -> None:
    program = await served.run(
        """
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        (HERE / "up").write_bytes(os.urandom(3_000_000))
        interrupted = 0

        def use(shell):
            shell.run("echo one; cat", input="x" * 200_000)
            for line in shell.stream("echo one; echo two >&2"):
                pass
            shell.upload(HERE / "up", "there/up")
            shell.download("there", HERE / "down")

        with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
            use(shell)
            for _ in range(40):
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.random() * 0.15 + 1e-6)
                    while True:
                        use(shell)
                except KeyboardInterrupt:
                    interrupted += 1
                assert not bridge._loop._calls
                assert shell.run("ls -A there").stdout == "up\\n"
                assert names() == ["down", "up"] and names(HERE / "down") == ["up"]
            use(shell)
        print(interrupted, (HERE / "down" / "up").read_bytes() == (HERE / "up").read_bytes())
        """,
        measured=False,
    )
    program.assert_silent("40 True\n")


async def test_interrupts_at_random_moments_of_opening_and_closing(served: Served) -> None:
    program = await served.run(
        """
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        interrupted = 0
        with RentGPU() as gpu:
            for _ in range(30):
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.random() * 0.15 + 1e-6)
                    while True:
                        with gpu.ssh(CONTAINER) as shell:
                            pass
                except KeyboardInterrupt:
                    interrupted += 1
                assert not bridge._loop._calls
            shell = None
            gc.collect()
            with gpu.ssh(CONTAINER) as shell:
                assert shell.run("true").ok
        print(interrupted)
        """,
        measured=False,
    )
    program.assert_silent("30\n")


async def test_a_disk_that_becomes_full_leaves_no_file(served: Served) -> None:
    program = await served.run("""
        import resource

        with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
            shell.run("truncate -s 1000000 down", check=True)
            # The last block has room but for one byte.
            resource.setrlimit(resource.RLIMIT_FSIZE, (999_999, resource.RLIM_INFINITY))
            try:
                shell.download("down", HERE / "down")
            except SSHError as error:
                print(error.stage, names())
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
            shell.download("down", HERE / "down")
            print((HERE / "down").stat().st_size)
    """)
    program.assert_silent("transfer []\n1000000\n")


LEAVING = {
    "break": """
        for line in shell.stream(command):
            break
        alive.began(); alive.wait()
        """,
    "close": """
        lines = shell.stream(command)
        next(lines)
        lines.close()
        alive.began(); alive.wait()
        """,
    "an error": """
        try:
            for line in shell.stream(command):
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        alive.began(); alive.wait()
        """,
    "the shell is closed": """
        lines = shell.stream(command)
        next(lines)
        shell.close()
        alive.began(); alive.wait()
        """,
    "break, and the shell is closed": """
        for line in shell.stream(command):
            break
        shell.close()
        alive.began(); alive.wait()
        """,
}


@pytest.mark.parametrize("way", LEAVING)
async def test_a_stream_that_is_left_ends_its_command(served: Served, way: str) -> None:
    program = await served.run(f"""
        alive = Alive()
        command = alive.command("echo line")
        gpu = RentGPU()
        shell = gpu.ssh(CONTAINER).__enter__()
        {LEAVING[way].strip()}
        shell.close()
        gpu.close()
    """)
    program.assert_silent("")


ENDINGS = {
    "never opened": "shell = RentGPU().ssh(CONTAINER)",
    "never left": "shell = RentGPU().ssh(CONTAINER).__enter__(); assert shell.run('true').ok",
    "never left, its client closed": """
        with RentGPU() as gpu:
            shell = gpu.ssh(CONTAINER).__enter__()
        assert shell.run('true').ok
        """,
    "collected": "shell = RentGPU().ssh(CONTAINER).__enter__(); del shell; gc.collect()",
    "closed twice": "shell = RentGPU().ssh(CONTAINER).__enter__(); shell.close(); shell.close()",
    "sys.exit": """
        with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
            sys.exit(0)
        """,
    "a stream left half way": """
        shell = RentGPU().ssh(CONTAINER).__enter__()
        lines = shell.stream("echo line; sleep 1000")
        next(lines)
        """,
    "a forwarded port": """
        shell = RentGPU().ssh(CONTAINER).__enter__()
        shell.forward(local_port=0, remote_port=1)
        """,
    "a command in a daemon thread": """
        shell = RentGPU().ssh(CONTAINER).__enter__()
        threading.Thread(target=shell.run, args=("sleep 1000",), daemon=True).start()
        assert shell.run("true").ok
        """,
    "a download in a daemon thread": """
        shell = RentGPU().ssh(CONTAINER).__enter__()
        shell.run("truncate -s 1G large", check=True)
        began = threading.Event()
        copy = lambda: shell.download("large", HERE / "large", on_progress=lambda _: began.set())
        threading.Thread(target=copy, daemon=True).start()
        began.wait()
        """,
    "an upload in a daemon thread": """
        shell = RentGPU().ssh(CONTAINER).__enter__()
        (HERE / "large").touch()
        os.truncate(HERE / "large", 2**30)
        began = threading.Event()
        copy = lambda: shell.upload(HERE / "large", "large", on_progress=lambda _: began.set())
        threading.Thread(target=copy, daemon=True).start()
        began.wait()
        (HERE / "large").unlink()
        """,
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_every_end_is_silent(served: Served, ending: str) -> None:
    (await served.run(ENDINGS[ending])).assert_silent("")
    assert not list((served.folder / "here").iterdir())
    async with served.gpu.ssh(served.container) as shell:
        assert ".part" not in (await shell.run("ls -A")).stdout


async def test_a_shell_that_another_thread_closes(served: Served) -> None:
    program = await served.run("""
        (HERE / "large").touch()
        os.truncate(HERE / "large", 2**30)
        gpu = RentGPU()
        shell = gpu.ssh(CONTAINER).__enter__()
        began, over = threading.Barrier(3), []

        def use(call, *arguments, **keywords):
            try:
                call(*arguments, **keywords)
            except ClientStateError as error:
                over.append(str(error))

        class First:
            def __init__(self): self.came = False
            def __call__(self, _):
                if not self.came:
                    self.came = True
                    threading.Thread(target=began.wait).start()

        alive = Alive()
        threads = [
            threading.Thread(target=use, args=(shell.run, alive.command("true"))),
            threading.Thread(target=use, args=(shell.upload, HERE / "large", "large"), kwargs={"on_progress": First()}),
            threading.Thread(target=use, args=(shell.upload, HERE / "large", "huge"), kwargs={"on_progress": First()}),
        ]
        for thread in threads: thread.start()
        alive.began()
        began.wait()
        shell.close()
        for thread in threads: thread.join()
        alive.wait()
        print(*over, sep="\\n")
        with gpu.ssh(CONTAINER) as shell:
            print(shell.run("ls -A").stdout)
    """)
    program.assert_silent("this shell cannot be used: it is closed\n" * 3 + "\n")


@pytest.mark.parametrize("way", ["stream", "run"])
async def test_what_runs_at_exit_is_ended(served: Served, way: str) -> None:
    program = await served.run(f"""
        alive = Alive()
        shell = RentGPU().ssh(CONTAINER).__enter__()
        if {way!r} == "run":
            threading.Thread(target=shell.run, args=(alive.command("true"),), daemon=True).start()
        else:
            lines = shell.stream(alive.command("echo line"))
            next(lines)
        alive.began()
        # A process that goes on when this one has ended.
        if os.fork() == 0:
            alive.wait()
            print("ended", flush=True)
            os._exit(0)
    """)
    program.assert_silent("ended\n")


async def test_threads_share_a_shell(served: Served) -> None:
    program = await served.run("""
        with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
            found = []

            def use(number):
                found.append(int(shell.run(f"echo {number}").stdout))
                found.extend(int(line.text) for line in shell.stream(f"echo {number}"))

            threads = [threading.Thread(target=use, args=(number,)) for number in range(16)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
        print(sorted(found) == sorted([*range(16), *range(16)]))
    """)
    program.assert_silent("True\n")


CHILDS_END = {
    "sys.exit": "sys.exit(0)",
    "os._exit": "os._exit(0)",
    "close": "shell.close(); gpu.close(); sys.exit(0)",
    "collection": "del shell, lines; gc.collect(); sys.exit(0)",
}


@pytest.mark.parametrize("end", CHILDS_END)
async def test_a_forked_child_has_no_shell(served: Served, end: str) -> None:
    program = await served.run(f"""
        gpu = RentGPU()
        shell = gpu.ssh(CONTAINER).__enter__()
        lines = shell.stream("echo one; read wait; echo two")
        next(lines)
        for _ in range(2):
            if (pid := os.fork()) == 0:
                for call in (shell.run, shell.__enter__):
                    try:
                        call(*["true"][:call == shell.run])
                    except ClientStateError as error:
                        print(error)
                with gpu.ssh(CONTAINER) as own:
                    print(own.run("echo its own").stdout, end="", flush=True)
                {CHILDS_END[end]}
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            print(shell.run("echo the parent").stdout, end="", flush=True)
        print(*lines)
        shell.close()
    """)
    refused = "this shell cannot be used: it belongs to another process\n"
    program.assert_silent(f"{refused * 2}its own\nthe parent\n" * 2 + "two\n")


async def test_a_shell_that_was_not_open_stays_its_parents(served: Served) -> None:
    program = await served.run("""
        gpu = RentGPU()
        shell = gpu.ssh(CONTAINER)
        if (pid := os.fork()) == 0:
            try:
                shell.__enter__()
            except ClientStateError as error:
                print(error, flush=True)
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with shell:
            print(shell.run("echo the parent").stdout, end="")
    """)
    program.assert_silent("this shell cannot be used: it belongs to another process\nthe parent\n")


async def test_the_asynchronous_one_under_uvloop(served: Served) -> None:
    program = await served.run("""
        import uvloop

        async def main():
            async with AsyncRentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
                print((await shell.run("cat", input="one")).stdout)
                print(*[line.text async for line in shell.stream("echo two; sleep 0.1; echo three")])
                (HERE / "up").write_bytes(b"x" * 1_000_000)
                await shell.upload(HERE / "up", "up")
                await shell.download("up", HERE / "down")
                print((HERE / "down").stat().st_size)

                def serve(_, writer):
                    writer.write(b"four\\n")
                    writer.close()

                server = await asyncio.start_server(serve, "127.0.0.1", 0)
                forward = await shell.forward(local_port=0, remote_port=server.sockets[0].getsockname()[1])
                reader, writer = await asyncio.open_connection("127.0.0.1", forward.local_port)
                print((await reader.read()).decode(), end="")
                writer.close()
                server.close()

                alive = Alive()
                running = asyncio.create_task(shell.run(alive.command("true")))
                await asyncio.to_thread(alive.began)
                running.cancel()
                await asyncio.wait({running})
                print(running.cancelled())
                await asyncio.to_thread(alive.wait)

        uvloop.run(main())
    """)
    program.assert_silent("one\ntwo three\n1000000\nfour\nTrue\n")


async def test_it_works_inside_a_running_loop(served: Served) -> None:
    program = await served.run("""
        async def main():
            with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
                print(shell.run("echo one").stdout, *shell.stream("echo two"))

        asyncio.run(main())
    """)
    program.assert_silent("one\n two\n")
