"""`gpu.rent` of the blocking client in scripts: use, expiry, detaching, and the rental's shell."""

from __future__ import annotations

import pytest
from renters import Service

from netmind_rentgpu.emulator import Fault

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("uvloop", ["0", "1"], ids=["asyncio", "uvloop"])
async def test_rental_in_a_script_can_be_used_and_is_deleted_when_left(service: Service, uvloop: str) -> None:
    program = await service.run_file("sync_rental.py", NETMIND_RENTGPU_UVLOOP=uvloop)
    program.assert_silent(
        "<Rental: nothing is rented yet>\n1000 1000\n" + "this rental cannot be used: it was left\n" * 4
    )
    await service.assert_nothing_left()


async def test_error_in_the_block_is_raised_unchanged_after_the_deletion(service: Service) -> None:
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


async def test_expired_rental_is_deleted_while_its_block_waits_uses_it_or_fails(service: Service) -> None:
    program = await service.run_file("sync_rental_expires.py")
    program.assert_silent("expired\nexpired\nexpired\nleft True\nwhile in use\nthe block's own\n")
    await service.assert_nothing_left()


async def test_rental_that_expires_while_it_is_entered_is_deleted(service: Service) -> None:
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


async def test_detached_rental_can_be_attached_by_one_other_process(service: Service) -> None:
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
            print(gpu.rentals.list()[0].name)
    """)
    between.assert_silent(f"{name}\n")
    other = await service.run(f"""
        with RentGPU() as gpu:
            with gpu.rentals.attach({name!r}) as rental:
                print(rental.run("cat file").stdout, end="")
                try:
                    with gpu.rentals.attach({name!r}):
                        pass
                except RentalInUseError:
                    print("refused")
            assert not rented()
    """)
    other.assert_silent("here\nrefused\n")
    await service.assert_nothing_left()


async def test_rental_is_extended_from_its_own_program_and_from_another(service: Service) -> None:
    program = await service.run("""
        with RentGPU() as gpu:
            with gpu.rent(**WANTED, ttl=timedelta(minutes=10)) as rental:
                before = rental.expires_at
                assert rental.extend(ttl=timedelta(minutes=30)).expires_at == rental.expires_at > before
                try:
                    rental.extend(ttl=timedelta(minutes=1))
                except InvalidArgumentError as error:
                    print(error.argument, 0 < rental.max_cost)
                rental.detach()
    """)
    program.assert_silent("ttl True\n")
    other = await service.run("""
        with RentGPU() as gpu:
            (record,) = gpu.rentals.list()
            moved = gpu.rentals.extend(record, ttl=timedelta(minutes=50), budget=3)
            assert gpu.rentals.list() == [moved]
            print(moved.expires_at > record.expires_at, moved.budget)
            gpu.rentals.release(record)
    """)
    other.assert_silent("True 3\n")
    await service.assert_nothing_left()


async def test_kept_rental_outlives_its_process_and_every_reap(service: Service) -> None:
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
            assert gpu.rentals.list() == []
            for by_name in (False, True):
                assert gpu.rentals.reap(wait=not by_name, by_name=by_name).deleted == ()
    """)
    reaping.assert_silent("")
    assert [charge.container_id for charge in service.emulator.running] == [container_id]
    assert await service.records() == []


async def test_threads_and_signal_handlers_that_ask_for_the_shell_at_once_get_the_same(service: Service) -> None:
    program = await service.run_file("shell_of_many_threads.py")
    program.assert_silent("in\n")
    await service.assert_nothing_left()


async def test_error_of_a_signal_handler_just_after_entering_deletes_the_rental(service: Service) -> None:
    program = await service.run_file("signal_handler_after_entering.py")
    program.assert_silent("this client is closed; make a new one\n")
    await service.assert_nothing_left()


async def test_second_entering_is_refused_and_the_rental_stays_usable(service: Service) -> None:
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
    program.assert_silent("this rental was entered before; make another one\nin\n")
    await service.assert_nothing_left()


async def test_closed_shell_is_replaced_at_the_next_use(service: Service) -> None:
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
