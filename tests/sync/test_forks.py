"""Forks of programs that use the synchronous client: `os.fork`, multiprocessing, prefork servers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import Hostile, Peer
from programs import Program
from served import GET, connections, serve_list, target
from short_forms import thinned

pytestmark = pytest.mark.slow

ENDS_OF_A_CHILD = [
    "os._exit",
    "sys.exit",
    "an error",
    "close",
    "collection",
    "a fork of its own",
    "nothing called",
    "multiprocessing's",
]


@pytest.mark.parametrize("end", thinned(ENDS_OF_A_CHILD, every=3))
async def test_child_forked_while_idle_calls_over_connections_of_its_own(end: str) -> None:
    program = Program(file="idle_fork.py", arguments=[end])

    def serve(peer: Peer) -> None:
        if "limit" in target(peer):
            serve_list(peer)
        else:
            GET(peer)

    async with Hostile([serve]) as server:
        (await program.run(server.url)).assert_silent("2\n")
        assert set(connections(server, "1")) == {1}
        assert 1 not in connections(server, "2")


async def test_child_forked_during_a_call_leaves_the_call_to_the_parent() -> None:
    program = Program("""
        gpu = RentGPU()
        answers = []
        thread = threading.Thread(target=lambda: answers.append(gpu.containers.get(1)))
        thread.start()
        gpu.containers.get(3)  # is answered once the thread's call is under way
        if (pid := os.fork()) == 0:
            assert gpu.containers.get(2).id == 1
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        gpu.containers.get(4)  # lets the server answer the thread's call
        thread.join()
        print(answers[0].id)
    """)
    held: dict[str, Peer] = {}

    def serve(peer: Peer) -> None:
        held[target(peer)] = peer
        if {"1", "3"} <= held.keys() and target(peer) in ("1", "3"):
            GET(held["3"])
        elif target(peer) in ("2", "4"):
            GET(peer)
            if target(peer) == "4":
                GET(held["1"])

    async with Hostile([serve]) as server:
        (await program.run(server.url)).assert_silent("1\n")
        assert len(connections(server, "1")) == 1
        assert not {*connections(server, "1"), *connections(server, "3")} & {*connections(server, "2")}


async def test_child_forked_while_another_thread_holds_the_lock_can_call() -> None:
    program = Program(file="fork_with_lock_held.py")
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("1\n")


async def test_iteration_begun_in_the_parent_fails_in_the_child_after_its_page() -> None:
    program = Program("""
        gpu = RentGPU()
        pager = gpu.containers.list(page_size=2)
        items = iter(pager)
        next(items)
        later = pager.pages()
        if (pid := os.fork()) == 0:
            next(items)  # from the page that the parent has fetched
            try:
                next(items)
            except ClientStateError as error:
                print(error)
            print(len(list(pager)), len(list(later)), flush=True)
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        print(sum(1 for _ in items))
    """)
    async with Hostile([serve_list]) as server:
        (await program.run(server.url)).assert_silent(
            "cannot continue this iteration: its event loop is gone; start it again\n3 2\n2\n"
        )


async def test_iteration_not_begun_in_the_parent_works_in_the_child() -> None:
    program = Program("""
        gpu = RentGPU()
        items, pages = iter(gpu.containers.list()), gpu.containers.list().pages()
        if (pid := os.fork()) == 0:
            print(len(list(items)), len(list(pages)), flush=True)
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        print(len(list(items)), len(list(pages)))
    """)
    async with Hostile([serve_list]) as server:
        (await program.run(server.url)).assert_silent("3 2\n3 2\n")


async def test_child_forked_during_the_first_call_can_call() -> None:
    program = Program("""
        import subprocess
        if "again" not in sys.argv:
            for delay in (0.001, 0.003, 0.005, 0.01):
                subprocess.run([*sys.orig_argv, "again", str(delay)], check=True)
            sys.exit(0)
        gpu = RentGPU()
        thread = threading.Thread(target=lambda: gpu.containers.get(1))
        thread.start()
        thread.join(float(sys.argv[-1]))
        if (pid := os.fork()) == 0:
            assert gpu.containers.get(2).id == 1
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        thread.join()
    """)
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("")


async def test_closed_client_is_closed_in_the_child_too() -> None:
    program = Program("""
        gpu = RentGPU()
        gpu.containers.get(1)
        gpu.close()
        if (pid := os.fork()) == 0:
            gpu.close()
            try:
                gpu.containers.get(1)
            except ClientStateError as error:
                print(error, flush=True)
            sys.exit(0)
        os.waitpid(pid, 0)
    """)
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("this client is closed; make a new one\n")


async def test_child_keeps_the_settings_of_the_client_of_its_parent() -> None:
    program = Program("""
        gpu = RentGPU(timeout=30, retries=1)
        os.environ.clear()
        gpu.containers.get(1)
        if (pid := os.fork()) == 0:
            assert gpu.containers.get(2).id == 1
            sys.exit(0)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """)
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("")
        assert {request.headers["authorization"] for request in server.seen} == {"Bearer token"}


async def test_finalizer_can_call_while_the_child_copies_the_client() -> None:
    program = Program(file="finalizer_in_child.py")
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("")


@pytest.mark.parametrize("method", thinned(["fork", "spawn", "forkserver"], every=2))
async def test_multiprocessing_pool_uses_no_connection_of_its_parent(method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("""\
import multiprocessing, sys
from netmind_rentgpu import RentGPU

gpu = RentGPU()

def work(number):
    return gpu.containers.get(number).id

if __name__ == "__main__":
    assert work(1) == 1
    with multiprocessing.get_context(sys.argv[1]).Pool(3) as pool:
        print(sum(pool.map(work, [2] * 12)))
        pool.close()
        pool.join()
    assert work(1) == 1
""")
    # The script is a file, because spawn and forkserver import it again in each child.
    program = Program(f"os.execv(sys.executable, [*sys.orig_argv[:5], {str(script)!r}, {method!r}])")
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("12\n")
        assert set(connections(server, "1")) == {1}
        assert 1 not in connections(server, "2")


async def test_prefork_workers_use_a_connection_each_and_none_of_their_parent() -> None:
    program = Program(file="prefork_server.py")
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("")
        assert set(connections(server, "1")) == {1}
        assert len(set(connections(server, "2"))) == 3
