"""Tokens and accounts: what was rented with another token is reaped if it is proven to be the same account's."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from lifecycle import put_as_it_is, set_limits
from rented import IMAGE, PROFILE, client
from state_files import state_at
from until import until

from netmind_rentgpu import (
    AsyncRentGPU,
    AuthenticationError,
    ReleaseError,
    RentalNotFoundError,
    RentalRecord,
    RentGPUError,
    ServerError,
    StateFileError,
)
from netmind_rentgpu.emulator import Emulator, Fault, World
from netmind_rentgpu.fingerprint import Fingerprint
from netmind_rentgpu.rentals.ledger.process_identity import this_process
from netmind_rentgpu.rentals.ledger.store import Ledger

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
RECORD = RentalRecord(
    name="rg-1",
    stage="ready",
    container_id=7,
    node_name="a-node",
    gpus=1,
    hourly_price=None,
    intended_at=MOMENT,
    expires_at=None,
    certain_at=MOMENT,
)


async def rent_and_lose(gpu: AsyncRentGPU, **options: Any) -> RentalRecord:
    """Rent a machine as a process that was killed then; return its record."""
    rental = await gpu.rent(image=IMAGE, **options).__aenter__()
    record = await rental.detach()
    killed = attrs.evolve(this_process(), process_id=2**22 + 1)
    lost = attrs.evolve(record, stage="ready", owner=killed)
    await put_as_it_is(gpu, lost)
    return lost


def unhurried_client(emulator: Emulator, state: Path, token: str) -> AsyncRentGPU:
    """Return a client that sends nothing twice, however busy this machine is."""
    return AsyncRentGPU(token, base_url=emulator.url, state=state, profile=PROFILE)


def rotate(emulator: Emulator) -> str:
    """Exchange the token of the first account for another."""
    token = emulator.add_token()
    emulator.revoke_token(emulator.token)
    return token


async def test_rental_of_a_killed_process_is_reaped_with_a_new_token(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    record = await rent_and_lose(gpu)
    async with client(emulator, state, token=rotate(emulator)) as other:
        report = await other.rentals.reap()
        assert report.deleted == (record.name,)
        assert report.elsewhere == ()
        assert await other.rentals.list() == []
    emulator.assert_nothing_rented()


async def test_rental_whose_token_is_revoked_meanwhile_is_reaped_with_the_next(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    with pytest.raises(ReleaseError, match="with a token of its account will delete it"):
        async with gpu.rent(image=IMAGE) as rental:
            token = rotate(emulator)
    async with client(emulator, state, token=token) as other:
        assert (await other.rentals.reap()).deleted == (rental.name,)
    emulator.assert_nothing_rented()


@pytest.mark.rentgpu_may_leave_unmet_faults
async def test_create_in_doubt_is_settled_with_a_new_token(gpu: AsyncRentGPU, emulator: Emulator, state: Path) -> None:
    emulator.faults.add(Fault("hang", call="create_container", when="after"))
    # Otherwise the search may be over before the next look.
    emulator.faults.add(Fault("status", call="list_containers", status=500, times="all"))
    set_limits(gpu, failed_search=3)

    async def rent() -> None:
        async with gpu.rent(image=IMAGE):
            pytest.fail("it was handed over")

    renting = asyncio.create_task(rent())
    await until(lambda: emulator.running)
    token = rotate(emulator)
    emulator.faults.clear()
    with pytest.raises(RentGPUError):
        await renting
    assert len(emulator.running) == 1
    (record,) = await gpu.rentals.list()
    assert record.container_id is None
    async with client(emulator, state, token=token) as other:
        report = await other.rentals.reap(wait=True)
        assert report.deleted == (record.name,)
        assert report.clean
    emulator.assert_nothing_rented()


async def test_detached_rental_is_listed_and_attached_with_a_new_token(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    async with client(emulator, state, token=rotate(emulator)) as other:
        # Nothing proves yet whose it is, and no request is made for a list.
        assert await other.rentals.list() == []
        assert (await other.rentals.reap()).deleted == ()
        assert await other.rentals.list() == [record]
        async with other.rentals.attach(record) as attached:
            assert (await attached.run("true")).ok
    emulator.assert_nothing_rented()


async def test_attaching_alone_proves_the_account(gpu: AsyncRentGPU, emulator: Emulator, state: Path) -> None:
    async with gpu.rent(image=IMAGE, auth="a-password-of-ours") as rental:
        record = await rental.detach()
    async with client(emulator, state, token=rotate(emulator)) as other, other.rentals.attach(record.name):
        pass
    emulator.assert_nothing_rented()


async def test_first_rental_with_a_new_token_reaps_and_takes_the_same_password(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    lost = await rent_and_lose(gpu)
    async with client(emulator, state, token=rotate(emulator)) as other, other.rent(image=IMAGE) as rental:
        assert [charge.name for charge in emulator.running] == [rental.name] != [lost.name]
    assert len(emulator.requests.of("create_auth")) == 1
    emulator.assert_nothing_rented()


async def test_password_alone_is_taken_over_where_nothing_else_is_on_record(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    async with gpu.rent(image=IMAGE):
        pass
    async with client(emulator, state, token=rotate(emulator)) as other, other.rent(image=IMAGE):
        pass
    assert len(emulator.requests.of("create_auth")) == 1


async def test_account_is_proven_by_the_list_where_its_password_is_the_users_own(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    record = await rent_and_lose(gpu, auth="a-password-of-ours")
    async with client(emulator, state, token=rotate(emulator)) as other:
        assert (await other.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("altered", ["upper case", "prefix", "suffix"])
async def test_account_is_proven_by_an_altered_name(state: Path, altered: Any) -> None:
    world = World(altered_names=altered)
    async with Emulator(seed=7, boot_seconds=0.02, ssh=True, world=world) as emulator, client(emulator, state) as gpu:
        record = await rent_and_lose(gpu, auth="a-password-of-ours")
        async with client(emulator, state, token=rotate(emulator)) as other:
            assert (await other.rentals.reap()).deleted == (record.name,)
        emulator.assert_nothing_rented()


@pytest.mark.parametrize("answer", ["404", "403"])
async def test_rental_of_another_account_is_reported_and_left_alone(state: Path, answer: Any) -> None:
    world = World(other_accounts=answer)
    async with (
        Emulator(seed=7, boot_seconds=0.02, ssh=True, world=world) as emulator,
        client(emulator, state) as gpu,
        client(emulator, state, token=emulator.add_token("other")) as other,
    ):
        record = await rent_and_lose(gpu)
        for rented in (False, True):
            if rented:
                async with other.rent(image=IMAGE):
                    pass
            report = await other.rentals.reap(wait=True)
            assert report.elsewhere == (attrs.evolve(record),)
            assert (report.deleted, report.gone, report.failed) == ((), (), ())
            assert report.clean
            assert await other.rentals.list() == []
        assert await gpu.rentals.list() == [record]
        with pytest.raises(RentalNotFoundError, match="on record for another token, which nothing proves"):
            await other.rentals.attach(record.name).__aenter__()
        assert [charge.container_id for charge in emulator.running] == [record.container_id]
        assert (await gpu.rentals.reap()).deleted == (record.name,)
        emulator.assert_nothing_rented()


async def test_living_rental_of_another_account_is_not_reported(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    async with (
        gpu.rent(image=IMAGE),
        unhurried_client(emulator, state, emulator.add_token("other")) as other,
    ):
        before = len(emulator.requests)
        assert (await other.rentals.reap()).elsewhere == ()
        # The token's check, and the auth of the other account: no walk for what nobody needs to reap.
        assert [request.call for request in emulator.requests[before:]] == ["list_containers", "get_auth"]


async def test_first_rental_warns_of_what_may_be_another_accounts(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = await rent_and_lose(gpu)
    async with client(emulator, state, token=emulator.add_token("other")) as other, other.rent(image=IMAGE):
        pass
    assert f"did not reap {record.name}: it is on record for another token" in caplog.text
    await gpu.rentals.reap()


async def test_auth_of_another_value_proves_nothing(gpu: AsyncRentGPU, emulator: Emulator, state: Path) -> None:
    record = await rent_and_lose(gpu)
    async with client(emulator, state, token=emulator.add_token("other")) as other:
        # A service may count the auths of each account by themselves.
        mine = await other.auths.create("another-password")
        with closing(sqlite3.connect(state)) as connection:
            connection.execute("UPDATE passwords SET auth_id = ?", (mine.id,))
            connection.commit()
        assert [each.name for each in (await other.rentals.reap()).elsewhere] == [record.name]
    assert len(emulator.running) == 1
    await gpu.rentals.reap()


async def test_several_accounts_cost_a_get_each_and_one_walk(emulator: Emulator, state: Path) -> None:
    names: list[str] = []
    for account in ("one", "two"):
        async with unhurried_client(emulator, state, emulator.add_token(account)) as gpu:
            names += [(await rent_and_lose(gpu)).name for _ in range(3)]
    async with unhurried_client(emulator, state, emulator.token) as gpu:
        before = len(emulator.requests)
        report = await gpu.rentals.reap()
    # Beside them, perhaps creates that a machine has refused meanwhile.
    assert set(names) <= {record.name for record in report.elsewhere}
    assert [request.call for request in emulator.requests[before:]] == [
        "list_containers",
        "get_auth",
        "get_auth",
        "list_containers",
    ]
    for charge in emulator.running:
        async with client(emulator, state, token=emulator.add_token(charge.account)) as gpu:
            await gpu.containers.delete(charge.container_id)


@pytest.mark.parametrize("broken", ["get_auth", "list_containers"])
async def test_service_that_cannot_be_asked_is_a_failure(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path, broken: Any
) -> None:
    record = await rent_and_lose(gpu, **({} if broken == "get_auth" else {"auth": "a-password-of-ours"}))
    token = rotate(emulator)
    emulator.faults.add(Fault("status", call=broken, status=503, times="all"))
    if broken == "get_auth":
        # It would be proven by the list otherwise.
        emulator.faults.add(Fault("status", call="list_containers", status=503, times="all"))
    async with client(emulator, state, token=token) as other:
        report = await other.rentals.reap()
        assert [name for name, _ in report.failed] == [record.name]
        assert report.elsewhere == ()
        assert not report.clean
        with pytest.raises(RentGPUError) as failed:
            await other.rentals.attach(record.name).__aenter__()
        assert isinstance(failed.value, ServerError)
        emulator.faults.clear()
        assert (await other.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


@pytest.mark.rentgpu_may_leave_unmet_faults
async def test_create_in_doubt_is_waited_for_where_only_the_list_can_prove_it(emulator: Emulator, state: Path) -> None:
    profile = attrs.evolve(PROFILE, create_lag=timedelta(seconds=4))
    async with client(emulator, state, profile) as gpu:
        emulator.faults.add(Fault("late commit", call="create_container", seconds=2))
        # Otherwise the search may be over before the next look.
        emulator.faults.add(Fault("status", call="list_containers", status=500, times="all"))
        set_limits(gpu, failed_search=3)
        renting = asyncio.create_task(gpu.rent(image=IMAGE, auth="a-password-of-ours").__aenter__())
        await until(lambda: emulator.pending_creates)
        token = rotate(emulator)
        emulator.faults.clear()
        with pytest.raises(RentGPUError):
            await renting
        async with client(emulator, state, profile, token=token) as other:
            report = await other.rentals.reap(wait=True)
            assert len(report.deleted) == 1
            assert report.clean
            assert report.elsewhere == ()
    emulator.assert_nothing_rented()


async def test_join_follows_an_account_that_was_joined_to_a_third_meanwhile(state: Path) -> None:
    states = [state_at(state, token) for token in ("one", "two", "three")]
    one, two, three = [Ledger(each) for each in states]
    name = one.fingerprint
    await one.insert(RECORD)
    await three.join([name])
    await two.join([name])
    for ledger in (one, two, three):
        assert await ledger.list_open() == [RECORD]
    for each in states:
        each.close()


async def test_row_under_a_name_that_leads_elsewhere_is_found(state: Path) -> None:
    # As a file that is restored may have it.
    first, second = state_at(state, "one"), state_at(state, "two")
    await Ledger(second).insert(RECORD)
    await Ledger(second).join([str(first.fingerprint)])
    second.close()
    with closing(sqlite3.connect(state)) as connection:
        connection.execute("UPDATE rentals SET account = ?", (str(first.fingerprint),))
        connection.commit()
    again = state_at(state, "two")
    for each in (first, again):
        assert await Ledger(each).list_open() == [RECORD]
        each.close()


async def test_password_that_proves_an_account_outlasts_a_join(state: Path) -> None:
    first, second = state_at(state, "one"), state_at(state, "two")
    for each, auth_id in ((first, 7), (second, None)):
        values = (str(each.fingerprint), "a value", auth_id)
        await each.write(
            lambda connection, values=values: connection.execute(
                "INSERT INTO passwords (account, value, auth_id) VALUES (?, ?, ?)", values
            )
        )
    await Ledger(second).join([str(first.fingerprint)])
    rows = await second.read(lambda connection: connection.execute("SELECT account, auth_id FROM passwords").fetchall())
    assert rows == [(str(second.fingerprint), 7)]
    first.close()
    second.close()


async def test_damaged_row_of_another_account_prevents_no_reaping(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    record = await rent_and_lose(gpu)
    with closing(sqlite3.connect(state)) as connection:
        for account in (f"{emulator.url} of another", "of another service"):
            values = (account.encode(), b"\xff\xfe")
            connection.execute(
                "INSERT INTO passwords (account, value) VALUES (CAST(? AS TEXT), CAST(? AS TEXT))", values
            )
        connection.commit()
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    async with client(emulator, state) as other, other.rent(image=IMAGE):
        pass


async def test_failed_renaming_of_an_account_leaves_the_file_unlocked(state: Path) -> None:
    token = "a-token"
    fingerprint = Fingerprint("https://service.example", token)
    earlier = fingerprint._spelled("https://service.example:443")
    one = state_at(state, token)
    await one.pin_host_key(1, "key")
    one.close()
    with closing(sqlite3.connect(state)) as connection:
        connection.execute("INSERT INTO host_keys (account, container_id, public_key) VALUES (?, 2, 'key')", (earlier,))
        connection.execute("CREATE TRIGGER refuse BEFORE UPDATE ON host_keys BEGIN SELECT RAISE(ABORT, 'refused'); END")
        connection.commit()
    broken = state_at(state, token)
    with pytest.raises(StateFileError, match="refused"):
        await broken.pin_host_key(3, "key")
    with closing(sqlite3.connect(state, timeout=1)) as connection:
        connection.execute("DROP TRIGGER refuse")
        connection.commit()
    assert await broken.pin_host_key(3, "key") == "key"
    assert await broken.host_key(2) == "key"
    broken.close()


@pytest.mark.parametrize("on_record", [True, False])
async def test_refused_token_is_an_error_for_reap(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path, *, on_record: bool
) -> None:
    if on_record:
        record = await rent_and_lose(gpu)
    before = len(emulator.requests)
    async with unhurried_client(emulator, state, "a-wrong-token") as other:
        with pytest.raises(AuthenticationError):
            await other.rentals.reap()
        with pytest.raises(AuthenticationError):
            await other.rentals.reap(by_name=True)
    assert len(emulator.requests) == before + 2
    if on_record:
        assert await gpu.rentals.list() == [record]
        await gpu.rentals.reap()


async def test_check_of_the_token_that_fails_otherwise_prevents_nothing(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    record = await rent_and_lose(gpu)
    emulator.faults.add(Fault("status", call="list_containers", status=400))
    assert (await gpu.rentals.reap()).deleted == (record.name,)
    emulator.assert_nothing_rented()


async def test_report_names_account_and_state_file(gpu: AsyncRentGPU, emulator: Emulator, state: Path) -> None:
    report = await gpu.rentals.reap()
    assert report.account.startswith(f"{emulator.url} ")
    assert emulator.token not in report.account
    assert report.state_file == state
    by_name = await gpu.rentals.reap(by_name=True)
    assert (by_name.account, by_name.state_file) == (report.account, None)


async def test_processes_with_either_token_see_what_the_other_does(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    async with client(emulator, state, token=emulator.add_token()) as other:
        async with gpu.rent(image=IMAGE) as rental:
            await other.rentals.reap()
            assert [record.name for record in await other.rentals.list()] == [rental.name]
            # Its owner lives, and still writes with the first token.
            async with gpu.rent(image=IMAGE) as second:
                names = {record.name for record in await other.rentals.list()}
                assert names == {rental.name, second.name}
            record = await rental.detach()
        assert await other.rentals.list() == await gpu.rentals.list() == [record]
        async with other.rentals.attach(record):
            assert [each.owner for each in await gpu.rentals.list()] == [this_process()]
        assert await gpu.rentals.list() == []
    emulator.assert_nothing_rented()


async def test_three_tokens_become_one_account_in_any_order(gpu: AsyncRentGPU, emulator: Emulator, state: Path) -> None:
    record = await rent_and_lose(gpu)
    second, third = emulator.add_token(), emulator.add_token()
    async with client(emulator, state, token=second) as other, client(emulator, state, token=third) as last:
        async with other.rent(image=IMAGE) as rental:
            assert [each.name for each in await other.rentals.list()] == [rental.name]
        lost = await rent_and_lose(other)
        assert (await last.rentals.reap()).deleted == (lost.name,)
        for each in (gpu, other, last):
            assert await each.rentals.list() == []
    assert record.name not in {charge.name for charge in emulator.running}
    with closing(sqlite3.connect(state)) as connection:
        accounts = {account for (account,) in connection.execute("SELECT account FROM passwords").fetchall()}
        leading_there = connection.execute("SELECT count(DISTINCT account) FROM fingerprints").fetchone()
    assert len(accounts) == 1
    assert leading_there == (1,)


async def test_password_of_either_account_works_after_they_were_joined(emulator: Emulator, state: Path) -> None:
    async with (
        client(emulator, state) as gpu,
        client(emulator, state.with_name("another"), token=emulator.add_token()) as other,
    ):
        first, second = await rent_and_lose(gpu), await rent_and_lose(other)
        with closing(sqlite3.connect(state)) as connection:
            connection.execute("ATTACH ? AS another", (str(state.with_name("another")),))
            for table in ("rentals", "passwords", "host_keys"):
                connection.execute(f"INSERT INTO main.{table} SELECT * FROM another.{table}")
            connection.execute("UPDATE main.rentals SET stage = 'detached', owner = NULL")
            connection.commit()
        await gpu.rentals.reap()
        for record in (first, second):
            async with gpu.rentals.attach(record.name, timeout=20) as rental:
                assert (await rental.run("true")).ok
        async with gpu.rent(image=IMAGE, ttl=timedelta(minutes=5)):
            pass
    assert len(emulator.requests.of("create_auth")) == 2
    emulator.assert_nothing_rented()
