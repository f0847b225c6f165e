"""Scripts that exit or fork with a `Shell`: silent ends, commands that end with the process, and forked children."""

import pytest
from scripts import Served
from short_forms import thinned

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize("ending", thinned(ENDINGS, every=3))
async def test_exit_with_a_shell_is_silent_and_leaves_no_file(served: Served, ending: str) -> None:
    (await served.run(ENDINGS[ending])).assert_silent("")
    assert not list((served.folder / "here").iterdir())
    async with served.gpu.ssh(served.container) as shell:
        assert ".part" not in (await shell.run("ls -A")).stdout


@pytest.mark.parametrize("way", ["stream", "run"])
async def test_exit_ends_running_commands(served: Served, way: str) -> None:
    program = await served.run(f"""
        alive = Alive()
        shell = RentGPU().ssh(CONTAINER).__enter__()
        if {way!r} == "run":
            threading.Thread(target=shell.run, args=(alive.command("true"),), daemon=True).start()
        else:
            lines = shell.stream(alive.command("echo line"))
            next(lines)
        alive.began()
        # A child that outlives this process, to see the command end.
        if os.fork() == 0:
            alive.wait()
            print("ended", flush=True)
            os._exit(0)
    """)
    program.assert_silent("ended\n")


@pytest.mark.parametrize("end", thinned(["sys.exit", "os._exit", "close", "collection"], every=2))
async def test_forked_child_cannot_use_its_parents_shell(served: Served, end: str) -> None:
    program = await served.run_file("fork_with_open_shell.py", end)
    refused = "this shell cannot be used: it belongs to another process\n"
    program.assert_silent(f"{refused * 2}its own\nthe parent\n" * 2 + "two\n")


async def test_forked_child_cannot_open_its_parents_shell(served: Served) -> None:
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
