"""`gpu.rent` in scripts, each in a process of its own: plain use, Ctrl-C at every stage, exits, forks, expiry."""

import re
from textwrap import dedent

import pytest
from renters import Service

from netmind_rentgpu.emulator import Fault


@pytest.mark.parametrize("uvloop", ["0", "1"], ids=["asyncio", "uvloop"])
async def test_a_plain_script(service: Service, uvloop: str) -> None:
    program = await service.run(
        """
        with RentGPU() as gpu:
            waiting = gpu.rent(**WANTED)
            print(waiting)
            with waiting as rental:
                assert rental is waiting
                assert "4090" in rental.run("nvidia-smi", check=True).stdout
                assert rental.container.id == gpu.containers.get(rental.container.id).id == rented()[0]
                assert rental.name == rental.container.name
                assert "4090" in rental.machine.gpu_name and rental.hourly_price and rental.expires_at
                assert 0 < rental.spent < rental.hourly_price
                assert [record.name for record in gpu.rentals.open()] == [rental.name]

                (HERE / "up").write_bytes(b"x" * 1000)
                shell = rental.shell
                shell.upload(HERE / "up", "there")
                shell.download("there", HERE / "down")
                assert rental.shell is shell
                print((HERE / "down").stat().st_size, rental.run("wc -c < there").stdout.strip())
            assert not rented()
            assert gpu.rentals.open() == []
            for use in (lambda: rental.run("true"), lambda: rental.shell, rental.detach, rental.__enter__):
                try:
                    use()
                except ClientStateError as error:
                    print(error)
            rental.close()
        """,
        NETMIND_RENTGPU_UVLOOP=uvloop,
    )
    program.assert_silent(
        "<Rental: nothing is rented yet>\n1000 1000\n" + "this rental cannot be used: it was left\n" * 4
    )
    await service.assert_nothing_left()


async def test_an_error_in_the_block_comes_out(service: Service) -> None:
    program = await service.run("""
        error = ZeroDivisionError("the user's own")
        with RentGPU() as gpu:
            try:
                with gpu.rent(**WANTED):
                    raise error
            except ZeroDivisionError as raised:
                assert raised is error and raised.__context__ is None and not hasattr(raised, "__notes__")
            assert not rented()
            with gpu.rent(**WANTED):
                sys.exit(0)
    """)
    program.assert_silent("")
    await service.assert_nothing_left()


# Ctrl-C.

IN_THE_BLOCK = {
    "a command": "rental.run(f'kill -INT {os.getpid()}; sleep 1000')",
    "a stream": "for line in rental.shell.stream(f'echo one; kill -INT {os.getpid()}; sleep 1000'): pass",
    "the block's own": "os.kill(os.getpid(), signal.SIGINT); time.sleep(1000)",
    "a call": """
threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
list(gpu.containers.watch([rental.container.id]))
""",
}


async def test_ctrl_c_in_the_block(service: Service) -> None:
    program = await service.run(f"""
        with RentGPU() as gpu:
            for what in {list(IN_THE_BLOCK.values())!r}:
                try:
                    with gpu.rent(**WANTED) as rental:
                        exec(compile(what, "what", "exec"))
                        print("never")
                except KeyboardInterrupt:
                    print("interrupted", rented())
    """)
    program.assert_silent("interrupted []\n" * len(IN_THE_BLOCK))
    await service.assert_nothing_left()


WHILE_ENTERING = {
    "the images are listed": (Fault("slow", call="list_images", seconds=0.5), "list_images", 1),
    "the password is made": (Fault("slow", call="create_auth", seconds=0.5), "create_auth", 1),
    "the machines are listed": (Fault("slow", call="list_machines", seconds=0.5), "list_machines", 1),
    "it is about to be created": (Fault("slow", call="create_container", seconds=0.5), "create_container", 1),
    "it was created": (Fault("slow", call="create_container", seconds=0.5, when="after"), "create_container", 1),
    "the answer is lost": (Fault("drop", call="create_container", when="after"), "list_containers", 1),
    "it may come late": (Fault("late commit", seconds=0.1), "list_containers", 1),
    "it starts": (Fault("never starts"), "get_container", 2),
    "it does not let us in": (Fault("never reachable"), "get_container", 2),
}


@pytest.mark.parametrize("moment", WHILE_ENTERING)
async def test_ctrl_c_while_entering(service: Service, moment: str) -> None:
    fault, call, times = WHILE_ENTERING[moment]
    service.emulator.faults.add(fault)
    program = service.program("""
        with RentGPU() as gpu:
            try:
                with gpu.rent(**WANTED):
                    print("never")
            except KeyboardInterrupt:
                print("interrupted", rented())
    """)
    await service.interrupted(program, lambda: service.asked(call)() >= times)
    program.assert_silent("interrupted []\n")
    service.emulator.assert_nothing_rented()
    if moment in ("the answer is lost", "it may come late"):
        # The service may do it once more until its lags are over.
        await service.assert_one_reap_clears()
    await service.assert_nothing_left()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("ending", ["pass", "raise ZeroDivisionError"])
async def test_ctrl_c_while_leaving(service: Service, when: str, ending: str) -> None:
    service.emulator.faults.add(Fault("slow", call="delete_container", seconds=0.3, when=when))
    program = service.program(f"""
        with RentGPU() as gpu:
            try:
                with gpu.rent(**WANTED):
                    {ending}
            except KeyboardInterrupt as error:
                print("interrupted", rented(), error.__context__ and type(error.__context__).__name__)
    """)
    await service.interrupted(program, service.asked("delete_container"))
    program.assert_silent(f"interrupted [] {'None' if ending == 'pass' else 'ZeroDivisionError'}\n")
    await service.assert_nothing_left()


async def test_ctrl_c_before_the_leaving_has_begun(service: Service) -> None:
    program = await service.run("""
        running_loop = bridge._running_loop

        def interrupted():
            bridge._running_loop = running_loop
            os.kill(os.getpid(), signal.SIGINT)
            return running_loop()

        with RentGPU() as gpu:
            try:
                with gpu.rent(**WANTED) as rental:
                    bridge._running_loop = interrupted
            except KeyboardInterrupt:
                print("interrupted", rented(), gpu.rentals.open(), rental)
    """)
    assert re.match(r"interrupted \[\] \[\] <Rental .*: over>\n$", program.output), program.output
    program.assert_silent()
    await service.assert_nothing_left()


async def test_a_second_ctrl_c_while_a_deletion_fails_gives_up_and_says_so(service: Service) -> None:
    service.emulator.faults.add(Fault("status", call="delete_container", status=503, times="all"))
    program = service.program("""
        import logging
        logging.basicConfig(level=logging.ERROR)
        gpu = RentGPU(retries=0)
        try:
            with gpu.rent(**WANTED) as rental:
                os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as error:
            print("interrupted", len(rented()), len(on_record()), *error.__notes__)
        os._exit(0)
    """)
    await service.interrupted(program, service.asked("delete_container"))
    assert program.status == 0
    assert re.match(r"interrupted 1 1 rental rg-\S+ \(container \d+\) could not be deleted", program.output)
    assert "could not be deleted, and costs" in program.errors
    service.emulator.faults.clear()
    await service.assert_one_reap_clears()


RANDOM_MOMENTS = """
    import math
    interrupts = random.Random(int(os.environ["SEED"]))
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted = left = 0
    gpu = RentGPU()
    with gpu.rent(**WANTED) as rental:
        pass
    once = math.inf
    for _ in range(3):  # one may take long on a busy machine
        began = time.monotonic()
        with gpu.rent(**WANTED) as rental:
            rental.run("true")
        once = min(once, time.monotonic() - began)
    for number in range(30):
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, interrupts.random() * once * 1.1 + 1e-6)
                with gpu.rent(**WANTED) as rental:
                    rental.run("true")
                left += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
        # At once, though the rental is still referred to.
        assert not rented(), number
        assert not bridge._loop._calls
        assert gpu.rentals.open() == []
    assert interrupted > 15, (interrupted, left)
"""


@pytest.mark.parametrize("seed", ["1", "2"])
async def test_ctrl_c_at_random_moments(service: Service, seed: str) -> None:
    program = await service.run(RANDOM_MOMENTS, measured=False, SEED=seed)
    program.assert_silent("")
    await service.assert_nothing_left()


async def test_two_interrupts_at_random_moments_leave_at_worst_what_one_reap_clears(service: Service) -> None:
    # With a service that is slow and loses answers.
    for call in ("create_container", "delete_container"):
        for what in ("drop", "slow"):
            service.emulator.faults.add(
                Fault(what, call=call, when="after", probability=0.3, **({"seconds": 0.05} if what == "slow" else {}))
            )
    program = await service.run(
        """
        import logging
        logging.disable()
        interrupts = random.Random(5)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        gpu = RentGPU()
        interrupted = 0
        for number in range(10):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, interrupts.random() * 0.4 + 1e-6, interrupts.random() * 0.03 + 1e-4)
                    with gpu.rent(**WANTED) as rental:
                        rental.run("true")
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            except RentGPUError:
                pass
        print(interrupted > 4)
        """,
        measured=False,
    )
    program.assert_silent("True\n")
    service.emulator.faults.clear()
    await service.assert_one_reap_clears()


# Rentals that are never left.

NEVER_LEFT = {
    "collected": """
        def rent():
            rental = gpu.rent(**WANTED)
            rental.__enter__()
            assert rented()

        gpu = RentGPU()
        rent()
        until(lambda: not rented())
        """,
    "collected with its client": """
        def rent():
            rental = RentGPU().rent(**WANTED)
            rental.__enter__()
            assert rented()
            rental.me = rental

        rent()
        gc.collect()
        until(lambda: not rented())
        """,
    "at the end": """
        rental = RentGPU().rent(**WANTED)
        rental.__enter__()
        assert rented()
        """,
    "at the end, with a shell in use": """
        rental = RentGPU().rent(**WANTED)
        lines = rental.__enter__().shell.stream("echo one; sleep 1000")
        next(lines)
        """,
    "while the interpreter exits": """
        import atexit
        gpu = RentGPU()
        rental = gpu.rent(**WANTED)
        rental.__enter__()
        atexit.register(rental.__exit__, None, None, None)
        """,
    "in a daemon thread": """
        def rent():
            with gpu.rent(**WANTED) as rental:
                had.set()
                rental.run("sleep 1000")

        gpu, had = RentGPU(), threading.Event()
        threading.Thread(target=rent, daemon=True).start()
        had.wait()
        """,
    "while it is entered by a daemon thread": """
        def rent():
            with gpu.rent(**WANTED):
                pass

        gpu = RentGPU()
        threading.Thread(target=rent, daemon=True).start()
        until(rented)
        """,
    "in a thread that outlives the main one": """
        def rent():
            with gpu.rent(**WANTED) as rental:
                had.set()
                threading.main_thread().join()

        gpu, had = RentGPU(), threading.Event()
        threading.Thread(target=rent).start()
        had.wait()
        """,
    "its client closed": """
        gpu = RentGPU()
        with gpu.rent(**WANTED) as rental:
            gpu.close()
            assert not rented()
            try:
                rental.run("true")
            except ClientStateError:
                pass
        """,
    "its client closed by another thread while it is entered": """
        def rent():
            try:
                with gpu.rent(**WANTED):
                    print("never")
            except ClientStateError:
                pass

        gpu = RentGPU()
        urllib.request.urlopen(
            urllib.request.Request(
                os.environ["NETMIND_BASE_URL"] + "/_emulator/faults", b'{"what": "never starts"}', method="POST"
            )
        ).close()
        thread = threading.Thread(target=rent)
        thread.start()
        until(rented)
        gpu.close()
        assert not rented()
        thread.join()
        """,
    "closed": """
        with RentGPU() as gpu, gpu.rent(**WANTED) as rental:
            rental.close()
            assert not rented()
        """,
}


# The interpreter's end is not what deletes these, so that one process can do all.
ENDED_BEFORE = [end for end in NEVER_LEFT if "collected" in end or "closed" in end]


@pytest.mark.parametrize("end", [*(end for end in NEVER_LEFT if end not in ENDED_BEFORE), "before the interpreter's"])
async def test_what_is_never_left_is_deleted(service: Service, end: str) -> None:
    if "entered" in end:
        service.emulator.faults.add(Fault("never starts"))
    codes = [dedent(NEVER_LEFT[one]) for one in ([end] if end in NEVER_LEFT else ENDED_BEFORE)]
    program = await service.run("\n".join(codes))
    program.assert_silent("")
    await service.assert_nothing_left()


async def test_an_exit_waits_for_a_deletion_that_takes_long(service: Service) -> None:
    service.emulator.faults.add(Fault("slow", call="delete_container", seconds=5.5))
    program = await service.run("""
        rental = RentGPU().rent(**WANTED)
        rental.__enter__()
    """)
    program.assert_silent("")
    await service.assert_nothing_left()


async def test_an_exit_deletes_over_a_new_connection_to_a_name(service: Service) -> None:
    service.emulator.faults.add(Fault("drop", call="delete_container", times=2))
    program = await service.run("""
        gpu = RentGPU(base_url=os.environ["NETMIND_BASE_URL"].replace("127.0.0.1", "localhost"))
        rental = gpu.rent(**WANTED)
        rental.__enter__()
    """)
    program.assert_silent("")
    await service.assert_nothing_left()


# Forks.

CHILDS_END = {
    "the end of the block": "pass",
    "sys.exit": "sys.exit(0)",
    "os._exit": "os._exit(0)",
    "an error": "sys.excepthook = lambda *_: os._exit(0); raise ZeroDivisionError",
    "collection": "del rental, gpu; gc.collect()",
    "close": "rental.close(); gpu.close()",
    "a reap": "assert RentGPU().rentals.reap(wait=True).deleted == ()",
}


async def test_a_forked_child_deletes_nothing(service: Service) -> None:
    program = await service.run(f"""
        def main(end):
            with RentGPU() as gpu:
                with gpu.rent(**WANTED) as rental:
                    if (pid := os.fork()) == 0:
                        try:
                            rental.run("true")
                        except ClientStateError as error:
                            print(error, flush=True)
                        exec(end, globals(), {{"rental": rental, "gpu": gpu}})
                        del rental
                    else:
                        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
                        assert rented() == [rental.container.id]
                        assert [record.name for record in on_record()] == [rental.name]
                        print(rental.run("echo usable").stdout.strip(), flush=True)
                if pid:
                    assert not rented()
            if not pid:
                sys.exit(0)

        for end in {list(CHILDS_END.values())!r}:
            main(end)
    """)
    program.assert_silent("this rental cannot be used: it belongs to another process\nusable\n" * len(CHILDS_END))
    await service.assert_nothing_left()


async def test_a_forked_child_rents_for_itself(service: Service) -> None:
    program = await service.run("""
        with RentGPU() as gpu:
            with gpu.rent(**WANTED) as rental:
                if (pid := os.fork()) == 0:
                    with gpu.rent(**WANTED) as own:
                        assert sorted(rented()) == sorted([rental.container.id, own.container.id])
                        own.run("true", check=True)
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
                assert rented() == [rental.container.id]
    """)
    program.assert_silent("")
    await service.assert_nothing_left()


# Its time.


async def test_it_is_deleted_when_its_time_is_up_whatever_the_block_does(service: Service) -> None:
    program = await service.run("""
        with RentGPU() as gpu:
            try:
                with gpu.rent(**WANTED, ttl=timedelta(seconds=1)) as rental:
                    until(lambda: not rented())
                    for use in (lambda: rental.run("true"), lambda: rental.shell, rental.detach):
                        try:
                            use()
                        except RentalExpiredError as error:
                            assert error.name == rental.name and error.container_id == rental.container.id
                            print("expired")
            except RentalExpiredError as error:
                print("left", error.name == rental.name)
            try:
                with gpu.rent(**WANTED, ttl=timedelta(seconds=1)) as rental:
                    rental.run("sleep 1000")
            except RentalExpiredError:
                print("while in use")
            assert not rented() and not gpu.rentals.open()
            try:
                with gpu.rent(**WANTED, ttl=timedelta(seconds=1)) as rental:
                    until(lambda: not rented())
                    raise ZeroDivisionError
            except ZeroDivisionError:
                print("the block's own")
    """)
    program.assert_silent("expired\nexpired\nexpired\nleft True\nwhile in use\nthe block's own\n")
    await service.assert_nothing_left()


async def test_its_time_is_up_while_it_is_entered(service: Service) -> None:
    service.emulator.faults.add(Fault("never starts"))
    program = await service.run("""
        with RentGPU() as gpu:
            try:
                with gpu.rent(**WANTED, ttl=timedelta(seconds=0.5)):
                    print("never")
            except RentalExpiredError:
                print("expired", rented())
    """)
    program.assert_silent("expired []\n")
    await service.assert_nothing_left()


# What is left running.


async def test_another_process_attaches_to_what_was_detached(service: Service) -> None:
    program = await service.run("""
        with RentGPU() as gpu:
            with gpu.rent(**WANTED) as rental:
                rental.run("echo here > file")
                record = rental.detach()
                assert record.stage == "detached" and record.name == rental.name
            assert rented() == [record.container_id]
        print(record.name)
    """)
    program.assert_silent(program.output)
    name = program.output.strip()
    between = await service.run("""
        with RentGPU() as gpu:
            assert gpu.rentals.reap(wait=True).deleted == ()
            print(gpu.rentals.open()[0].name)
    """)
    between.assert_silent(f"{name}\n")
    other = await service.run(f"""
        with RentGPU() as gpu:
            with gpu.rentals.attach({name!r}) as rental:
                print(rental.run("cat file").stdout, end="")
                try:
                    with gpu.rentals.attach({name!r}):
                        pass
                except InvalidArgumentError as error:
                    print("another's")
            assert not rented()
    """)
    other.assert_silent("here\nanother's\n")
    await service.assert_nothing_left()


async def test_what_is_kept_outlives_its_process_and_every_reap(service: Service) -> None:
    program = await service.run("""
        with RentGPU() as gpu:
            with gpu.rent(**WANTED, keep=True) as rental:
                assert rental.run("true").exit_status == 0
                assert rental.expires_at is None
            print(rental.container.id)
    """)
    program.assert_silent(program.output)
    container_id = int(program.output)
    reaping = await service.run("""
        with RentGPU() as gpu:
            assert gpu.rentals.open() == []
            for by_name in (False, True):
                assert gpu.rentals.reap(wait=not by_name, by_name=by_name).deleted == ()
    """)
    reaping.assert_silent("")
    assert [charge.container_id for charge in service.emulator.running] == [container_id]
    assert await service.records() == []


# Threads.


async def test_threads_and_handlers_that_ask_for_the_shell_at_once_get_the_same(service: Service) -> None:
    program = await service.run(
        """
        import gc
        sys.setswitchinterval(1e-6)
        kept = []

        with RentGPU() as gpu, gpu.rent(**WANTED) as rental:
            signal.signal(signal.SIGALRM, lambda *_: shells.append(rental.shell))
            for turn in range(20):
                shells, together = [], threading.Barrier(8)
                rental._shells.clear()

                def ask():
                    together.wait()
                    shells.append(rental.shell)

                threads = [threading.Thread(target=ask) for _ in range(7)]
                for thread in threads:
                    thread.start()
                together.wait()
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (turn + 1))
                shells.append(rental.shell)
                for thread in threads:
                    thread.join()
                signal.setitimer(signal.ITIMER_REAL, 0)
                assert len(shells) >= 8
                assert len({id(shell) for shell in shells}) == 1
                # Those before are closed when they are collected, and all have the same behind them.
                kept += rental._shells
            gc.collect()
            print(rental.run("echo in").stdout, end="")
        """
    )
    program.assert_silent("in\n")
    await service.assert_nothing_left()


async def test_whatever_a_handler_raises_once_it_was_entered_ends_it(service: Service) -> None:
    program = await service.run(
        """
        from netmind_rentgpu import AsyncRental

        enter, main = AsyncRental.__aenter__, threading.main_thread().ident

        async def entered(self):
            await enter(self)
            signal.pthread_kill(main, signal.SIGUSR1)
            return self

        AsyncRental.__aenter__ = entered
        closed = RentGPU()
        closed.close()
        signal.signal(signal.SIGUSR1, lambda *_: closed.machines.list())
        with RentGPU() as gpu:
            rental = gpu.rent(**WANTED)
            try:
                with rental:
                    print("in")
            except ClientStateError as error:
                print(error)
            until(lambda: not rented())
        """
    )
    program.assert_silent("this client is closed; make a new one\n")
    await service.assert_nothing_left()


async def test_entering_twice_does_not_end_what_is_in_use(service: Service) -> None:
    program = await service.run(
        """
        with RentGPU() as gpu, gpu.rent(**WANTED) as rental:
            try:
                rental.__enter__()
            except ClientStateError as error:
                print(error)
            print(rental.run("echo in").stdout, end="")
        """
    )
    program.assert_silent("a rental is entered once; make another\nin\n")
    await service.assert_nothing_left()


async def test_a_shell_that_was_closed_is_not_used_again(service: Service) -> None:
    program = await service.run(
        """
        with RentGPU() as gpu, gpu.rent(**WANTED) as rental:
            shell = rental.shell
            shell.close()
            print(shell.closed, rental.run("echo in").stdout, rental.shell.closed, end="")
        """
    )
    program.assert_silent("True in\n False")
    await service.assert_nothing_left()
