"""`Shell` in scripts, each in a process of its own: plain use, event loops and threads."""

import pytest
from scripts import Served

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("uvloop", ["0", "1"], ids=["asyncio", "uvloop"])
async def test_script_uses_every_method_of_a_shell(served: Served, uvloop: str) -> None:
    program = await served.run_file("use_shell.py", NETMIND_RENTGPU_UVLOOP=uvloop)
    program.assert_silent(
        "you\nand me\ncommand 3\nstdout:one stderr:two\n1000000 True 1\nhello\nhello back\n"
        "<Shell: closed>\nthis shell is closed; make a new one\nTrue\n"
    )


async def test_sync_shell_works_inside_a_running_event_loop(served: Served) -> None:
    program = await served.run("""
        async def main():
            with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
                print(shell.run("echo one").stdout, *shell.stream("echo two"))

        asyncio.run(main())
    """)
    program.assert_silent("one\n two\n")


async def test_async_shell_works_under_uvloop(served: Served) -> None:
    program = await served.run_file("use_async_shell_on_uvloop.py")
    program.assert_silent("one\ntwo three\n1000000\nfour\nTrue\n")


async def test_download_to_a_full_disk_leaves_no_file(served: Served) -> None:
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


async def test_leaving_a_stream_ends_its_command(served: Served) -> None:
    program = await served.run(
        "".join(
            f"""
        alive = Alive()
        command = alive.command("echo line")
        gpu = RentGPU()
        shell = gpu.ssh(CONTAINER).__enter__()
        {code.strip()}
        shell.close()
        gpu.close()
        print({way!r})
    """
            for way, code in LEAVING.items()
        )
    )
    program.assert_silent("".join(f"{way}\n" for way in LEAVING))


async def test_threads_can_share_a_shell(served: Served) -> None:
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


@pytest.mark.parametrize("uvloop", ["0", "1"], ids=["asyncio", "uvloop"])
async def test_threads_pipe_files_and_close_forwards_through_one_shell(served: Served, uvloop: str) -> None:
    program = await served.run_file("pipe_in_threads.py", NETMIND_RENTGPU_UVLOOP=uvloop)
    stream = "is a stream of an event loop, which only an AsyncShell can use"
    program.assert_silent(
        f"36\nstdin: {stream}\nstdin: {stream}\nstdout: {stream}\nstdin: must have bytes, not text\nover\n"
        "True here False <Forward from 127\nTrue\n[None] True\n"
    )


async def test_forked_child_cannot_close_its_parents_forward(served: Served) -> None:
    program = await served.run("""
        import socket
        with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell, socket.create_server(("127.0.0.1", 0)) as server:
            forward = shell.forward(local_port=0, remote_port=server.getsockname()[1])
            if not (child := os.fork()):
                try:
                    forward.close()
                except ClientStateError as error:
                    print(error, flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            with socket.create_connection(("127.0.0.1", forward.port)), server.accept()[0]:
                print(forward.closed)
    """)
    program.assert_silent("this forward was opened in another event loop; close it there\nFalse\n")


async def test_interrupted_pipe_ends_its_command_and_leaves_no_thread(served: Served) -> None:
    program = await served.run("""
        with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
            alive = Alive()
            reading, writing = os.pipe()

            def interrupt():
                alive.began()
                os.kill(os.getpid(), signal.SIGINT)

            thread = threading.Thread(target=interrupt)
            thread.start()
            try:
                shell.pipe(alive.command("true"), stdin=reading)
            except KeyboardInterrupt:
                print("interrupted")
            thread.join()
            alive.wait()
            os.write(writing, b"left")
            print(os.read(reading, 9).decode(), shell.run("echo usable").stdout, end="")
    """)
    program.assert_silent("interrupted\nleft usable\n")


async def test_closing_a_shell_ends_calls_of_other_threads_with_an_error(served: Served) -> None:
    program = await served.run_file("close_shell_in_use.py")
    program.assert_silent("this shell cannot be used: it is closed\n" * 3 + "\n")


async def test_asyncssh_is_imported_outside_the_event_loops_thread(served: Served) -> None:
    code = """
    threads = []

    class Watch:
        def find_spec(self, name, path=None, target=None):
            if name == "asyncssh.connection":
                threads.append(threading.get_ident())

    async def this_thread():
        return threading.get_ident()

    sys.meta_path.insert(0, Watch())
    with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
        assert shell.run("true").ok
        print(len(threads), portal.call(this_thread) in threads)
    """
    (await served.run(code)).assert_silent("1 False\n")
