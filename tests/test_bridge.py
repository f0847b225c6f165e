"""What a synchronous program meets: signals, exits, forks, threads. Each in a process of its own."""

import os
import signal
from pathlib import Path

import pytest
from hostile import Hostile, Peer, answer
from programs import BEGIN, Program


def _target(peer: Peer) -> str:
    return peer.server.seen[-1].target.rpartition("/")[2]


def _connections(server: Hostile, target: str) -> list[int]:
    return [seen.connection for seen in server.seen if seen.target.rpartition("/")[2] == target]


GET = answer()


def serve_list(peer: Peer) -> None:
    """Serve a list of three, two to a page; it ends with a page that is shorter."""
    answer([{"id": 3}] if "marker" in _target(peer) else [{"id": 1}, {"id": 2}])(peer)


async def test_ctrl_c_cancels_the_call_and_the_client_goes_on() -> None:
    program = Program("""
        with RentGPU() as gpu:
            for _ in range(10):
                try:
                    gpu.containers.get(1)  # is never answered: the server has the program interrupted instead
                except KeyboardInterrupt as error:
                    print(type(error).__name__)
                assert gpu.containers.get(2).id == 1
            assert not bridge._loop._calls
    """)

    def interrupt(peer: Peer) -> None:
        if _target(peer) == "1":
            os.kill(program.pid, signal.SIGINT)
        else:
            GET(peer)

    async with Hostile([interrupt]) as server:
        await program.run(server.url)
        program.assert_silent("KeyboardInterrupt\n" * 10)
        assert len(_connections(server, "1")) == len(_connections(server, "2")) == 10


async def test_an_interrupted_call_cleans_up_before_the_interrupt_comes_out() -> None:
    program = Program("""
        async def work():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.05)
                print("cleaned up")

        try:
            bridge.call(work)
        except KeyboardInterrupt:
            print("interrupted")
    """)
    (await program.run("http://127.0.0.1:1")).assert_silent("cleaned up\ninterrupted\n")


async def test_a_second_interrupt_cancels_the_cleanup() -> None:
    program = Program("""
        async def work():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.Event().wait()
            finally:
                os.kill(os.getpid(), signal.SIGINT)
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    print("cancelled again")
                    raise

        try:
            bridge.call(work)
        except KeyboardInterrupt:
            print("interrupted")
    """)
    (await program.run("http://127.0.0.1:1")).assert_silent("cancelled again\ninterrupted\n")


async def test_interrupts_at_random_moments_leave_nothing_behind() -> None:
    program = Program(
        measured=False,
        code="""
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        interrupted = 0
        with RentGPU() as gpu:
            gpu.containers.get(1)
            for _ in range(300):
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.random() * 0.005 + 1e-6)
                    while True:
                        gpu.containers.get(1)
                except KeyboardInterrupt:
                    interrupted += 1
                assert gpu.containers.get(1).id == 1
                assert not bridge._loop._calls
        print(interrupted)
    """,
    )
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("300\n")


INTERRUPTED = f"""{BEGIN}
async def nothing():
    pass

def trace(frame, event, argument):
    # Interrupts the steps of some files at the given moment.
    global moment
    frame.f_trace_opcodes = frame.f_code.co_filename in files
    if event == "opcode":
        moment -= 1
        if moment == 0:
            raise KeyboardInterrupt
    return trace
"""


async def test_an_interrupt_that_comes_while_something_is_collected_leaves_it_to_the_exit_at_worst() -> None:
    program = Program(
        measured=False,
        begin=INTERRUPTED,
        code="""
        import weakref
        files = (bridge.__file__, weakref.__file__)

        class Value:
            closed = False

            async def close(self):
                self.closed = True

        swallowed = []
        sys.unraisablehook = lambda what: swallowed.append(what.exc_type)
        bridge.call(nothing)
        sys._getframe().f_trace_opcodes = True  # Python 3.12 asks for it before tracing begins
        for first in range(1, 1000):
            moment, value = first, Value()
            held = bridge.Held(value)
            sys.settrace(trace)
            del held
            sys.settrace(None)
            bridge.call(nothing)
            assert value.closed or value in bridge._open.values(), first
            if moment > 0:
                break
        assert value.closed
        assert swallowed == [KeyboardInterrupt] * (first - 1)
        print(first > 20)
    """,
    )
    (await program.run("http://127.0.0.1:1")).assert_silent("True\n")


async def test_an_interrupt_at_any_moment_of_the_exit_is_borne() -> None:
    # Each child exits with a bridge of its own, and is interrupted one step later than the one before.
    program = Program(
        measured=False,
        begin=INTERRUPTED,
        code="""
        import atexit
        from netmind_rentgpu import exiting
        files = (bridge.__file__, exiting.__file__)

        class Value:
            closed = False

            async def close(self):
                await asyncio.sleep(0.01)
                self.closed = True

        def exit_interrupted():
            value = Value()
            held = bridge.Held(value)
            bridge.call(nothing)
            # Where it has not begun, Python tells of the interrupt.
            sys.unraisablehook = lambda what: None
            sys._getframe().f_trace_opcodes = True
            sys.settrace(trace)
            try:
                atexit._run_exitfuncs()
            except KeyboardInterrupt:
                pass
            sys.settrace(None)
            return (7 if moment > 0 else 8) if value.closed else 9

        bridge.call(nothing)
        for moment in range(1, 1000):
            if (pid := os.fork()) == 0:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                os._exit(exit_interrupted())
            if (status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) != 8:
                break
        print(status, moment > 40)
    """,
    )
    (await program.run("http://127.0.0.1:1")).assert_silent("7 True\n")


async def test_interrupts_while_the_thread_starts() -> None:
    # Each child starts a bridge of its own.
    program = Program(
        measured=False,
        code="""
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        gpu = RentGPU()
        gpu.containers.get(1)
        for _ in range(60):
            if (pid := os.fork()) == 0:
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.random() * 0.003 + 1e-6)
                    while True:
                        gpu.containers.get(1)
                except KeyboardInterrupt:
                    pass
                assert gpu.containers.get(1).id == 1
                sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        print("done")
    """,
    )
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("done\n")


async def test_a_signal_handler_may_call() -> None:
    program = Program(
        measured=False,
        code="""
        def on_signal(*_):
            found.append(gpu.containers.get(1).id)

        signal.signal(signal.SIGALRM, on_signal)
        gpu = RentGPU()
        for _ in range(40):
            if (pid := os.fork()) == 0:
                found = []
                signal.setitimer(signal.ITIMER_REAL, random.random() * 0.003 + 1e-6)
                while not found:
                    assert gpu.containers.get(1).id == 1
                assert found == [1]
                sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    """,
    )
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("")


async def test_a_finalizer_may_call_while_a_child_makes_its_client() -> None:
    program = Program("""
        class Late:
            def __del__(self):
                try:
                    gpu.containers.get(1)
                except ClientStateError:
                    pass  # collected in the loop's thread

        gpu = RentGPU()
        gpu.containers.get(1)
        gc.set_threshold(10)
        for _ in range(10):
            if (pid := os.fork()) == 0:
                for _ in range(3):
                    late = Late()
                    late.me = late
                    del late
                    gpu.containers.get(1)
                sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    """)
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("")


async def test_two_signals_together_cancel_the_call() -> None:
    program = Program(
        measured=False,
        code="""
        class Stop(BaseException): pass
        def stop(*_): raise Stop

        signal.signal(signal.SIGUSR1, stop)
        signal.signal(signal.SIGUSR2, stop)
        main = threading.main_thread().ident

        async def work():
            try:
                began.set()
                await asyncio.Event().wait()
            finally:
                ended.append(1)

        def both():
            began.wait()
            signal.pthread_kill(main, signal.SIGUSR1)
            signal.pthread_kill(main, signal.SIGUSR2)

        for number in range(30):
            began, ended = threading.Event(), []
            thread = threading.Thread(target=both)
            thread.start()
            try:
                bridge.call(work)
            except Stop:
                pass
            thread.join()
            assert ended
            assert not bridge._loop._calls
    """,
    )
    (await program.run("http://127.0.0.1:1")).assert_silent("")


async def test_a_ctrl_c_that_comes_with_another_signal_is_noticed_at_once() -> None:
    program = Program(
        measured=False,
        code="""
        signal.signal(signal.SIGTERM, lambda *_: None)
        gpu = RentGPU()
        for _ in range(20):
            try:
                gpu.containers.get(1)  # is never answered
            except KeyboardInterrupt:
                pass
        # The last one may come when the handlers are gone.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    """,
    )

    def both(_: Peer) -> None:
        os.kill(program.pid, signal.SIGINT)
        os.kill(program.pid, signal.SIGTERM)

    async with Hostile([both]) as server:
        (await program.run(server.url)).assert_silent("")
        assert len(server.seen) == 20


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("ValueError", "KeyboardInterrupt", "KeyboardInterrupt ValueError"),
        ("KeyboardInterrupt", "ValueError", "KeyboardInterrupt None"),
        ("ValueError", "KeyError", "KeyError ValueError"),
        ("SystemExit", "KeyboardInterrupt", "KeyboardInterrupt SystemExit"),
    ],
)
async def test_an_interrupt_during_the_cleanup_is_not_lost(first: str, second: str, expected: str) -> None:
    program = Program(f"""
        def on_first(*_): raise {first}
        def on_second(*_): raise {second}

        signal.signal(signal.SIGUSR1, on_first)
        signal.signal(signal.SIGUSR2, on_second)

        async def work():
            try:
                os.kill(os.getpid(), signal.SIGUSR1)
                await asyncio.Event().wait()
            finally:
                os.kill(os.getpid(), signal.SIGUSR2)
                await asyncio.Event().wait()

        try:
            bridge.call(work)
        except BaseException as error:
            print(type(error).__name__, error.__context__ and type(error.__context__).__name__)
    """)
    (await program.run("http://127.0.0.1:1")).assert_silent(f"{expected}\n")


async def test_whatever_a_signal_handler_raises_comes_out() -> None:
    program = Program("""
        def on_signal(*_):
            sys.exit(0)

        signal.signal(signal.SIGTERM, on_signal)
        RentGPU().containers.get(1)
    """)

    def terminate(_: Peer) -> None:
        os.kill(program.pid, signal.SIGTERM)

    async with Hostile([terminate]) as server:
        (await program.run(server.url)).assert_silent("")


ENDINGS = {
    "never used": "gpu = RentGPU()",
    "never closed": "gpu = RentGPU(); gpu.containers.get(1)",
    "closed twice": "gpu = RentGPU(); gpu.containers.get(1); gpu.close(); gpu.close()",
    "closed unused": "RentGPU().close(); assert bridge._loop is None",
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
    "creating in a thread that outlives the main one": """
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
    "a list of a client that nobody keeps": """
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

            def take():
                try:
                    for _ in items: pass
                except ValueError:
                    pass

            threads = [threading.Thread(target=take) for _ in range(4)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
        """,
    "used by a thread that outlives the main one": """
        gpu = RentGPU()
        gpu.containers.get(1)
        threading.Thread(target=lambda: (threading.main_thread().join(), gpu.containers.get(1))).start()
        """,
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_every_end_is_silent(ending: str) -> None:
    waiting: list[Peer] = []

    def serve(peer: Peer) -> None:
        target = _target(peer)
        if target in ("8", "9"):
            waiting.append(peer)
            if {_target_of(server, other) for other in waiting} == {"8", "9"}:
                GET(next(other for other in waiting if _target_of(server, other) == "8"))
        elif "limit" in target:
            serve_list(peer)
        elif peer.server.seen[-1].method == "POST":
            answer({"id": 1})(peer)
        else:
            GET(peer)

    async with Hostile([serve]) as server:
        (await Program(ENDINGS[ending]).run(server.url)).assert_silent("")


def _target_of(server: Hostile, peer: Peer) -> str:
    return next(seen.target.rpartition("/")[2] for seen in server.seen if seen.connection == peer.number)


async def test_an_uncaught_error_is_all_that_is_told() -> None:
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


async def test_a_call_after_the_end_is_refused() -> None:
    program = Program("""
        gpu = RentGPU()
        gpu.containers.get(1)
        bridge._at_exit()
        try:
            gpu.containers.get(1)
        except ClientStateError as error:
            print(error)
    """)
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("the interpreter is exiting; nothing more can be called\n")


async def test_a_call_that_cancels_itself_says_so() -> None:
    program = Program("""
        async def work():
            raise asyncio.CancelledError

        try:
            bridge.call(work)
        except ClientStateError as error:
            print(error)
    """)
    (await program.run("http://127.0.0.1:1")).assert_silent("the call was cancelled from within\n")


async def test_a_thread_that_cannot_be_started_is_told() -> None:
    program = Program("""
        import _thread
        start = _thread.start_new_thread

        def none(*_, **__):
            raise RuntimeError("can't start new thread")

        def one_only(*arguments):
            _thread.start_new_thread = threading._start_new_thread = threading._start_joinable_thread = none
            return start(*arguments)

        gpu = RentGPU()
        for starting in (none, one_only):
            _thread.start_new_thread = starting
            try:
                gpu.containers.get(1)
            except RentGPUError as error:
                print(type(error).__name__, error)
    """)
    (await program.run("http://127.0.0.1:1")).assert_silent(
        "ClientStateError the event loop's thread cannot be started: can't start new thread\n"
        "ConfigurationError no event loop can be had: can't start new thread\n"
    )


async def test_a_loop_that_breaks_down_fails_its_calls_and_is_replaced() -> None:
    program = Program("""
        async def breaks():
            asyncio.get_running_loop().call_soon(sys.exit, 3)
            await asyncio.Event().wait()

        gpu = RentGPU()
        gpu.containers.get(1)
        try:
            bridge.call(breaks)
        except ClientStateError as error:
            print(error)
        print(gpu.containers.get(1).id)
    """)
    async with Hostile([GET]) as server:
        await program.run(server.url)
    program.assert_silent("the event loop that the call was to run in has ended\n1\n")


CHILDS_END = {
    "os._exit": "os._exit(0)",
    "sys.exit": "sys.exit(0)",
    "an error": "sys.excepthook = lambda *_: os._exit(0); raise ZeroDivisionError",
    "close": "gpu.close(); sys.exit(0)",
    "collection": "del gpu, items; gc.collect(); sys.exit(0)",
    "a fork of its own": """
    pid = os.fork()
    assert gpu.containers.get(2).id == 1
    if pid: os.waitpid(pid, 0)
    sys.exit(0)
    """,
    "nothing called": "sys.exit(0)",
    "multiprocessing's": """
    import multiprocessing
    process = multiprocessing.get_context("fork").Process(target=gpu.containers.get, args=(2,))
    process.start(); process.join()
    sys.exit(process.exitcode)
    """,
}


@pytest.mark.parametrize("end", CHILDS_END)
async def test_a_fork_while_idle(end: str) -> None:
    call = "" if end == "nothing called" else "assert gpu.containers.get(2).id == 1"
    ending = CHILDS_END[end].strip().replace("\n", "\n        ").replace("            ", "        ")
    program = Program(f"""
    gpu = RentGPU()
    gpu.containers.get(1)
    items = iter(gpu.containers.list(page_size=2))
    next(items)
    for _ in range(3):
        if (pid := os.fork()) == 0:
            {call}
            {ending.replace(chr(10), chr(10) + "    ")}
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert gpu.containers.get(1).id == 1
    print(sum(1 for _ in items))
    """)

    def serve(peer: Peer) -> None:
        if "limit" in _target(peer):
            serve_list(peer)
        else:
            GET(peer)

    async with Hostile([serve]) as server:
        (await program.run(server.url)).assert_silent("2\n")
        assert set(_connections(server, "1")) == {1}
        assert 1 not in _connections(server, "2")


async def test_a_fork_while_a_call_is_in_flight() -> None:
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
        gpu.containers.get(4)  # has the thread's call answered
        thread.join()
        print(answers[0].id)
    """)
    held: dict[str, Peer] = {}

    def serve(peer: Peer) -> None:
        held[_target(peer)] = peer
        if {"1", "3"} <= held.keys() and _target(peer) in ("1", "3"):
            GET(held["3"])
        elif _target(peer) in ("2", "4"):
            GET(peer)
            if _target(peer) == "4":
                GET(held["1"])

    async with Hostile([serve]) as server:
        (await program.run(server.url)).assert_silent("1\n")
        assert len(_connections(server, "1")) == 1
        assert not {*_connections(server, "1"), *_connections(server, "3")} & {*_connections(server, "2")}


async def test_a_fork_while_the_bridges_lock_is_held() -> None:
    program = Program("""
        gpu = RentGPU()
        taken, over = threading.Event(), threading.Event()

        def hold():
            with bridge._lock:
                taken.set()
                over.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        taken.wait()
        if (pid := os.fork()) == 0:
            assert gpu.containers.get(2).id == 1
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        over.set()
        thread.join()
        print(gpu.containers.get(1).id)
    """)
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("1\n")


async def test_an_iteration_does_not_go_on_in_a_child() -> None:
    program = Program("""
        gpu = RentGPU()
        pager = gpu.containers.list(page_size=2)
        items = iter(pager)
        next(items)
        later = pager.pages()
        if (pid := os.fork()) == 0:
            next(items)  # of the page that is there
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
            "the event loop that this iteration was begun in is gone; begin it again\n3 2\n2\n"
        )


async def test_an_iteration_that_was_not_begun_goes_on_in_a_child() -> None:
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


async def test_a_fork_while_the_first_call_is_made() -> None:
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


async def test_a_failed_call_keeps_nothing_of_its_caller() -> None:
    program = Program("""
        class Big:
            count = 0
            def __init__(self): Big.count += 1
            def __del__(self): Big.count -= 1

        async def fails():
            raise ValueError

        async def cancels():
            raise asyncio.CancelledError

        def once(call):
            big = Big()
            try:
                call()
            except (ValueError, RentGPUError):
                pass

        gpu = RentGPU()
        gc.disable()
        for call in (lambda: bridge.call(fails), lambda: gpu.containers.get(1), lambda: gpu.auths.create("short")):
            for _ in range(10):
                once(call)
            bridge.call(asyncio.sleep, 0)
            print(Big.count)
    """)
    async with Hostile([answer({"detail": "no"}, status=404)]) as server:
        (await program.run(server.url)).assert_silent("0\n0\n0\n")


async def test_a_closed_client_is_closed_in_a_child_too() -> None:
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


async def test_a_child_keeps_the_settings_that_its_parent_was_made_with() -> None:
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
        assert {seen.headers["authorization"] for seen in server.seen} == {"Bearer token"}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
async def test_multiprocessing(method: str, tmp_path: Path) -> None:
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
    # A script of one's own, since the methods but fork read it again in each child.
    program = Program(f"os.execv(sys.executable, [*sys.orig_argv[:5], {str(script)!r}, {method!r}])")
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("12\n")
        assert set(_connections(server, "1")) == {1}
        assert 1 not in _connections(server, "2")


async def test_a_prefork_server() -> None:
    program = Program("""
        gpu = RentGPU()
        gpu.containers.get(1)
        reading, writing = os.pipe()

        def worker():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            gpu.containers.get(2)
            os.write(writing, b"x")
            while True:
                gpu.containers.get(2)

        workers = []
        for _ in range(3):
            if (pid := os.fork()) == 0:
                worker()
            workers.append(pid)
        for pid in workers:
            os.read(reading, 1)
            gpu.containers.get(1)
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        for pid in workers:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        gpu.containers.get(1)
    """)
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("")
        assert set(_connections(server, "1")) == {1}
        assert len(set(_connections(server, "2"))) == 3


async def test_many_threads_share_a_client_and_a_loop() -> None:
    program = Program("""
        gpu = RentGPU()
        found = []

        def work():
            for _ in range(20):
                found.append(gpu.containers.get(1).id)

        threads = [threading.Thread(target=work) for _ in range(64)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert found == [1] * 64 * 20
        print([thread.name for thread in threading.enumerate()])
    """)
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("['MainThread', 'netmind_rentgpu']\n")
        assert server.connections <= 64


@pytest.mark.parametrize("end", ["gpu.close()", "del gpu"])
async def test_a_thousand_clients_leave_nothing_behind(end: str) -> None:
    program = Program(f"""
        import tracemalloc

        def use(number):
            for _ in range(number):
                gpu = RentGPU()
                gpu.containers.get(1)
                {end}
            bridge.call(asyncio.sleep, 0)  # what was scheduled is done by now
            while len(asyncio.all_tasks(bridge.call(loop))) > 1:
                bridge.call(asyncio.sleep, 0)
            gc.collect()
            return tracemalloc.get_traced_memory()[0], len(os.listdir("/proc/self/fd")), threading.active_count()

        async def loop():
            return asyncio.get_running_loop()

        tracemalloc.start()
        before = use(300)
        after = use(1000)
        print((after[0] - before[0]) / 1000 < 1024, after[1] - before[1], after[2] - before[2])
        if (after[0] - before[0]) / 1000 >= 1024: print(before, after)
    """)
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("True 0 0\n")
        assert server.connections == 1300


async def test_uvloop_runs_it_where_it_is_asked_for() -> None:
    pytest.importorskip("uvloop")
    code = """
        async def loop():
            return type(asyncio.get_running_loop()).__module__

        gpu = RentGPU()
        gpu.containers.get(1)
        if (pid := os.fork()) == 0:
            gpu.containers.get(2)
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        gpu.containers.get(1)
        print(bridge.call(loop))
    """
    async with Hostile([GET]) as server:
        asked = await Program(code, {"NETMIND_RENTGPU_UVLOOP": "1"}).run(server.url)
        asked.assert_silent("uvloop\n")
        assert set(_connections(server, "1")) == {1}
        # A policy of the program's own is for the program's own loops.
        policy = "import uvloop, warnings; warnings.simplefilter('ignore'); uvloop.install()"
        not_asked = await Program(policy + "\n" + "\n".join(line[8:] for line in code.splitlines())).run(server.url)
        not_asked.assert_silent("netmind_rentgpu.loops\n")


async def test_uvloop_that_is_missing_is_told() -> None:
    program = Program(
        """
        sys.modules["uvloop"] = None
        for _ in range(2):
            try:
                RentGPU().containers.get(1)
            except ConfigurationError as error:
                print(type(error.__cause__).__name__)
        """,
        {"NETMIND_RENTGPU_UVLOOP": "1"},
    )
    (await program.run("http://127.0.0.1:1")).assert_silent("ModuleNotFoundError\n" * 2)


async def test_the_asynchronous_half_needs_none_of_this() -> None:
    program = Program(
        begin="import asyncio, sys\nfrom netmind_rentgpu import AsyncRentGPU\n",
        code="""
        async def main():
            async with AsyncRentGPU() as gpu:
                assert (await gpu.containers.get(1)).id == 1

        asyncio.run(main())
        print(sorted({"netmind_rentgpu.bridge", "netmind_rentgpu.sync", "anyio.from_thread"} & {*sys.modules}))
        """,
    )
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("[]\n")
