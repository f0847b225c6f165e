"""The exit of programs that have used the synchronous client, each in a process of its own."""

from __future__ import annotations

import pytest
from hostile import Hostile, Peer, answer
from programs import Program
from served import GET, UNSERVED, serve_list, target
from short_forms import thinned

pytestmark = pytest.mark.slow

ENDINGS = {
    "never used": "gpu = RentGPU()",
    "never closed": "gpu = RentGPU(); gpu.containers.get(1)",
    "closed twice": "gpu = RentGPU(); gpu.containers.get(1); gpu.close(); gpu.close()",
    "closed unused": "RentGPU().close(); assert portal._loop is None",
    "collected": "gpu = RentGPU(); gpu.containers.get(1); del gpu; gc.collect()",
    "collected in a cycle": "gpu = RentGPU(); gpu.containers.get(1); gpu.me = gpu; del gpu; gc.collect()",
    "sys.exit": "gpu = RentGPU(); gpu.containers.get(1); sys.exit(0)",
    "sys.exit in a with": """
        with RentGPU() as gpu:
            gpu.containers.get(1)
            sys.exit(0)
        """,
    "an iteration left halfway": "gpu = RentGPU(); items = iter(gpu.containers.list()); next(items)",
    "in a daemon thread's call": """
        gpu = RentGPU()
        threading.Thread(target=gpu.containers.get, args=(9,), daemon=True).start()
        gpu.containers.get(8)  # is answered once the thread's call is under way
        """,
    "in the calls of daemon threads": """
        gpu = RentGPU()

        def call():
            while True:
                gpu.containers.get(1)

        for _ in range(8):
            threading.Thread(target=call, daemon=True).start()
        for _ in range(20):
            gpu.containers.get(1)
        """,
    "used while the interpreter exits": """
        import atexit
        gpu = RentGPU()
        gpu.containers.get(1)
        atexit.register(gpu.containers.get, 1)
        """,
    "creating while the interpreter exits": """
        import atexit
        gpu = RentGPU(base_url=os.environ["NETMIND_BASE_URL"].replace("127.0.0.1", "localhost"))
        gpu.containers.get(1)
        atexit.register(gpu.auths.create, "long-enough")
        """,
    "creating in a thread that outlives the main thread": """
        gpu = RentGPU(base_url=os.environ["NETMIND_BASE_URL"].replace("127.0.0.1", "localhost"))
        gpu.containers.get(1)
        threading.Thread(target=lambda: (threading.main_thread().join(), gpu.auths.create("long-enough"))).start()
        """,
    "a name whose look-up hangs": """
        import socket
        looking = threading.Event()
        socket.getaddrinfo = lambda *_, **__: (looking.set(), threading.Event().wait())
        threading.Thread(target=lambda: (looking.wait(), os.kill(os.getpid(), signal.SIGINT))).start()
        try:
            RentGPU(base_url="https://a-name").containers.get(1)
        except KeyboardInterrupt:
            pass
        """,
    "a list of a client without a reference": """
        assert [item.id for item in RentGPU().containers.list()] == [1, 2, 3]
        items = iter(RentGPU().containers.list())
        gc.collect()
        assert next(items).id == 1
        assert [item.id for page in RentGPU().containers.list().pages() for item in page] == [1, 2, 3]
        """,
    "an iteration that threads share": """
        gpu = RentGPU()
        for _ in range(30):
            items = iter(gpu.containers.list())

            def iterate():
                try:
                    for _ in items: pass
                except ValueError:
                    pass

            threads = [threading.Thread(target=iterate) for _ in range(4)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
        """,
    "used by a thread that outlives the main thread": """
        gpu = RentGPU()
        gpu.containers.get(1)
        threading.Thread(target=lambda: (threading.main_thread().join(), gpu.containers.get(1))).start()
        """,
}


@pytest.mark.parametrize("ending", thinned(ENDINGS, every=2))
async def test_program_exits_successfully_and_silently(ending: str) -> None:
    waiting: list[Peer] = []

    def serve(peer: Peer) -> None:
        asked = target(peer)
        if asked in ("8", "9"):
            waiting.append(peer)
            waiting_for = {_first_target(server, waiting_peer): waiting_peer for waiting_peer in waiting}
            if waiting_for.keys() == {"8", "9"}:
                GET(waiting_for["8"])
        elif "limit" in asked:
            serve_list(peer)
        elif peer.server.seen[-1].method == "POST":
            answer({"id": 1})(peer)
        else:
            GET(peer)

    async with Hostile([serve]) as server:
        (await Program(ENDINGS[ending]).run(server.url)).assert_silent("")


def _first_target(server: Hostile, peer: Peer) -> str:
    """Return the last part of the target of the first request on a connection."""
    return next(request.target.rpartition("/")[2] for request in server.seen if request.connection == peer.number)


async def test_uncaught_error_is_the_only_output_of_a_program() -> None:
    program = Program("""
        gpu = RentGPU()
        gpu.containers.get(1)
        raise ZeroDivisionError("the user's own")
    """)
    async with Hostile([GET]) as server:
        await program.run(server.url)
    assert program.status == 1
    assert program.errors.splitlines()[0] == "Traceback (most recent call last):"
    assert program.errors.splitlines()[-1] == "ZeroDivisionError: the user's own"
    assert program.errors.count("\n") <= 4


async def test_call_after_the_exit_has_begun_is_refused() -> None:
    program = Program("""
        gpu = RentGPU()
        gpu.containers.get(1)
        portal._at_exit()
        try:
            gpu.containers.get(1)
        except ClientStateError as error:
            print(error)
    """)
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("the call was not started: the interpreter is exiting\n")


async def test_interrupt_at_any_moment_of_the_exit_leaves_no_value_open() -> None:
    program = Program(file="interrupted_exit.py", measured=False)
    (await program.run(UNSERVED)).assert_silent("7 True\n")
