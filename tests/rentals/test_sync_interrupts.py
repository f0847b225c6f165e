"""Ctrl-C in scripts that rent with the blocking client: at each stage of a rental, and at random moments."""

from __future__ import annotations

import re

import pytest
from renters import Service
from short_forms import paired, thinned

from netmind_rentgpu.emulator import Fault

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("signals")]

IN_THE_BLOCK = {
    "a command": "rental.run(f'kill -INT {os.getpid()}; sleep 1000')",
    "a stream": "for line in rental.shell.stream(f'echo one; kill -INT {os.getpid()}; sleep 1000'): pass",
    "the block's own": "os.kill(os.getpid(), signal.SIGINT); time.sleep(1000)",
    "a call": """
threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
list(gpu.containers.watch([rental.container.id]))
""",
}


async def test_ctrl_c_within_the_block_is_raised_after_the_deletion(service: Service) -> None:
    program = await service.run(f"""
        with RentGPU() as gpu:
            for code in {list(IN_THE_BLOCK.values())!r}:
                try:
                    with gpu.rent(**WANTED) as rental:
                        exec(compile(code, "code", "exec"))
                        print("never")
                except KeyboardInterrupt:
                    print("interrupted", rented())
    """)
    program.assert_silent("interrupted []\n" * len(IN_THE_BLOCK))
    await service.assert_nothing_left()


WHILE_ENTERING = {
    "the images are listed": (Fault("slow", call="list_images", seconds=2), "list_images", 1),
    "the password is made": (Fault("slow", call="create_auth", seconds=2), "create_auth", 1),
    "the machines are listed": (Fault("slow", call="list_machines", seconds=2), "list_machines", 1),
    "it is about to be created": (Fault("slow", call="create_container", seconds=2), "create_container", 1),
    "it was created": (Fault("slow", call="create_container", seconds=2, when="after"), "create_container", 1),
    "the answer is lost": (Fault("drop", call="create_container", when="after"), "list_containers", 1),
    "it may come late": (Fault("late commit", seconds=0.1), "list_containers", 1),
    "it starts": (Fault("never starts"), "get_container", 2),
    "it does not let us in": (Fault("never reachable"), "get_container", 2),
}


@pytest.mark.parametrize("moment", thinned(WHILE_ENTERING, every=3))
async def test_ctrl_c_while_entering_is_raised_after_the_deletion(service: Service, moment: str) -> None:
    fault, call, times = WHILE_ENTERING[moment]
    service.emulator.faults.add(fault)
    if moment == "it may come late":
        # Otherwise it may be ready before the next look.
        service.emulator.faults.add(Fault("never starts"))
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
        # The record stays until the lags are over, because the service may still act on the create.
        await service.assert_one_reap_clears()
    await service.assert_nothing_left()


@pytest.mark.parametrize(("ending", "when"), paired(["pass", "raise ZeroDivisionError"], ["before", "after"]))
async def test_ctrl_c_while_leaving_is_raised_after_the_deletion(service: Service, when: str, ending: str) -> None:
    service.emulator.faults.add(Fault("slow", call="delete_container", seconds=2, when=when))
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


async def test_ctrl_c_just_before_leaving_is_raised_after_the_deletion(service: Service) -> None:
    program = await service.run("""
        running_loop = portal._running_loop

        def interrupted():
            portal._running_loop = running_loop
            os.kill(os.getpid(), signal.SIGINT)
            return running_loop()

        with RentGPU() as gpu:
            try:
                with gpu.rent(**WANTED) as rental:
                    portal._running_loop = interrupted
            except KeyboardInterrupt:
                print("interrupted", rented(), gpu.rentals.list(), rental)
    """)
    assert re.match(r"interrupted \[\] \[\] <Rental .*: over>\n$", program.output), program.output
    program.assert_silent()
    await service.assert_nothing_left()


async def test_second_ctrl_c_while_a_deletion_fails_gives_up_and_reports_it(service: Service) -> None:
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


@pytest.mark.parametrize("seed", thinned(["1", "2"], every=2))
async def test_ctrl_c_at_any_moment_leaves_nothing_rented(full: bool, service: Service, seed: str) -> None:
    program = await service.run_file("interrupt_rentals.py", seed, "30" if full else "10", measured=False)
    program.assert_silent("")
    await service.assert_nothing_left()


@pytest.mark.rentgpu_may_leave_unmet_faults  # an interrupt may come before the request that would meet one
async def test_two_interrupts_at_any_moments_leave_at_most_rentals_that_one_reap_deletes(
    full: bool, service: Service
) -> None:
    # The service is slow and loses answers.
    for call in ("create_container", "delete_container"):
        for what in ("drop", "slow"):
            service.emulator.faults.add(
                Fault(what, call=call, when="after", probability=0.3, **({"seconds": 0.05} if what == "slow" else {}))
            )
    program = await service.run_file("interrupt_rentals_twice.py", "10" if full else "5", measured=False)
    assert (program.status, program.output) == (0, "True\n"), program.errors
    # A second interrupt ends the deletion; where the answer was lost, that the container is gone cannot be told so soon.
    assert all("it is on record, and rentals.reap() will delete it" in line for line in program.errors.splitlines())
    service.emulator.faults.clear()
    await service.assert_one_reap_clears()
