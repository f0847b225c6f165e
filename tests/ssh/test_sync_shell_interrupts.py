"""Ctrl-C in scripts that use a `Shell`: while they connect, run commands and copy files, and at random moments."""

import os
import signal
from pathlib import Path

import pytest
from hostile import Hostile
from programs import Program
from scripts import Served

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("signals")]

INTERRUPT = "f'kill -INT {os.getpid()}'"


async def test_ctrl_c_while_connecting_closes_the_connection(tmp_path: Path) -> None:
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
async def test_ctrl_c_during_a_command_ends_it_and_leaves_the_shell_usable(served: Served, way: str) -> None:
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


async def test_ctrl_c_between_two_lines_ends_the_command(served: Served) -> None:
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
async def test_ctrl_c_during_a_large_copy_leaves_no_partial_file(served: Served, way: str) -> None:
    program = await served.run_file("interrupt_copies.py", way)
    program.assert_silent("interrupted\nup down\n" * 2 + "small\n")


async def test_interrupts_at_random_moments_of_use_leave_nothing_behind(full: bool, served: Served) -> None:
    times = 40 if full else 10
    program = await served.run_file("interrupt_shell_use.py", str(times), measured=False)
    program.assert_silent(f"{times} True\n")


async def test_interrupts_at_random_moments_of_opening_and_closing_leave_shells_usable(
    full: bool, served: Served
) -> None:
    times = 30 if full else 10
    program = await served.run_file("interrupt_shell_opening.py", str(times), measured=False)
    program.assert_silent(f"{times}\n")
