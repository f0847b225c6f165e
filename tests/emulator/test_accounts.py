"""Several accounts and tokens of one emulator: what is shared, what is apart, and what a token is worth."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import aiohttp
import attrs
import pytest

from netmind_rentgpu import (
    AsyncRentGPU,
    AuthenticationError,
    Container,
    InsufficientBalanceError,
    NotFoundError,
    PermissionDeniedError,
    RentGPUError,
)
from netmind_rentgpu.emulator import Clock, Emulator, Fault, World


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(seed=7, boot_seconds=0, clock=Clock(scale=0)) as emulator:
        yield emulator


def client(emulator: Emulator, token: str) -> AsyncRentGPU:
    return AsyncRentGPU(token, base_url=emulator.url, retries=0)


async def create(gpu: AsyncRentGPU, *, gpus: int = 1, name: str = "mine") -> Container:
    auth = await gpu.auths.create("a-password")
    machine = max(await gpu.machines.list(), key=lambda machine: machine.gpu_count or 0)
    return await gpu.containers.create(
        name=name, auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type=0, gpu=gpus
    )


async def test_tokens_of_one_account_show_the_same(emulator: Emulator) -> None:
    async with client(emulator, emulator.token) as one, client(emulator, emulator.add_token()) as other:
        container = await create(one)
        image = await one.images.create(name="mine", image_name="a/b", image_tag="1", image_label="x")
        assert (await other.containers.get(container.id)).name == "mine"
        assert (await other.auths.get(container.auth_id or 0)).value == "a-password"
        assert (await other.images.get(image.id)).name == "mine"
        await other.containers.delete(container.id)
    emulator.assert_nothing_rented()


@pytest.mark.parametrize(("answer", "error"), [("404", NotFoundError), ("403", PermissionDeniedError)])
async def test_accounts_have_their_own_things_and_share_the_machines(answer: Any, error: type[RentGPUError]) -> None:
    world = attrs.evolve(World(), other_accounts=answer)
    async with (
        Emulator(seed=7, boot_seconds=0, world=world) as emulator,
        client(emulator, emulator.token) as one,
        client(emulator, emulator.add_token("other")) as other,
    ):
        free = {machine.node_name: machine.gpu_count for machine in await one.machines.list()}
        mine = await create(one)
        image = await one.images.create(name="mine", image_name="a/b", image_tag="1", image_label="x")
        for call in (
            other.containers.get(mine.id),
            other.containers.stop(mine.id),
            other.containers.restart(mine.id),
            other.containers.delete(mine.id),
            other.auths.get(mine.auth_id or 0),
            other.images.get(image.id),
            other.containers.create(
                name="x",
                auth_id=mine.auth_id or 0,
                node_name=mine.node_name or "",
                image_template_id=1,
                payment_type=0,
            ),
        ):
            with pytest.raises(error):
                await call
        # What nobody has is not there in either world.
        with pytest.raises(NotFoundError):
            await other.containers.get(mine.id + 50)
        assert [each async for each in other.containers.list()] == []
        assert [each async for each in other.auths.list()] == []
        assert [each async for each in other.images.list(image_type=2)] == []
        assert len(await other.images.list()) == len(await one.images.list())
        theirs = await create(other)
        assert theirs.id > mine.id
        assert theirs.auth_id != mine.auth_id
        assert await one.machines.list(gpu=free[mine.node_name or ""] or 0) == await other.machines.list(
            gpu=free[mine.node_name or ""] or 0
        )
        assert mine.node_name not in {
            machine.node_name for machine in await one.machines.list(gpu=free[mine.node_name or ""] or 0)
        }
        assert [(charge.account, charge.container_id) for charge in emulator.running] == [
            ("default", mine.id),
            ("other", theirs.id),
        ]
        await one.containers.delete(mine.id)
        await other.containers.delete(theirs.id)
        emulator.assert_nothing_rented()


async def test_revoked_token_is_refused_and_what_its_account_has_goes_on(emulator: Emulator) -> None:
    async with client(emulator, emulator.token) as gpu:
        container = await create(gpu)
        token = emulator.add_token()
        emulator.revoke_token(emulator.token)
        with pytest.raises(AuthenticationError):
            await gpu.containers.get(container.id)
        with pytest.raises(ValueError, match="no such token"):
            emulator.revoke_token(emulator.token)
    async with client(emulator, token) as gpu:
        await gpu.containers.delete(container.id)
        assert emulator.add_token(token=emulator.token) == emulator.token
    async with client(emulator, emulator.token) as gpu:
        with pytest.raises(NotFoundError):
            await gpu.containers.get(container.id)


async def test_reset_leaves_only_the_first_token(emulator: Emulator) -> None:
    token = emulator.add_token("other")
    emulator.revoke_token(emulator.token)
    emulator.reset()
    async with client(emulator, emulator.token) as gpu:
        assert (await gpu.containers.list()).items == ()
    async with client(emulator, token) as gpu:
        with pytest.raises(AuthenticationError):
            await gpu.containers.list()


async def test_token_leads_to_one_account_only(emulator: Emulator) -> None:
    token = emulator.add_token("other", "a-token")
    assert token == "a-token"
    assert emulator.add_token("other", "a-token") == "a-token"
    with pytest.raises(ValueError, match="already belongs to account other"):
        emulator.add_token("third", "a-token")
    for account, given in (("", None), ("a b", None), ("other", ""), ("other", "two words"), ("other", "schlüssel")):
        with pytest.raises(ValueError, match="ASCII characters without spaces"):
            emulator.add_token(account, given)
    assert emulator.add_token("other") != emulator.add_token("other")


async def test_each_account_has_a_balance_of_its_own() -> None:
    clock = Clock(scale=0)
    async with (
        Emulator(seed=7, boot_seconds=0, balance=Decimal("0.01"), clock=clock) as emulator,
        client(emulator, emulator.token) as one,
        client(emulator, emulator.add_token("other")) as other,
    ):
        first = await create(one)
        clock.advance(3600)
        with pytest.raises(InsufficientBalanceError):
            await create(one)
        second = await create(other)
        await one.containers.delete(first.id)
        await other.containers.delete(second.id)


async def test_late_create_belongs_to_the_account_that_asked(emulator: Emulator) -> None:
    emulator.faults.add(Fault("late commit", call="create_container", seconds=10))
    async with client(emulator, emulator.add_token("other")) as other:
        with pytest.raises(RentGPUError):
            await create(other, name="late")
        assert [(one.account, one.name) for one in emulator.pending_creates] == [("other", "late")]
        emulator.clock.advance(11)
        assert [(charge.account, charge.name) for charge in emulator.running] == [("other", "late")]
        await other.containers.delete(emulator.running[0].container_id)


async def test_id_of_one_account_is_given_to_another_where_ids_are_reused() -> None:
    async with (
        Emulator(seed=7, boot_seconds=0, world=World(ids="reused")) as emulator,
        client(emulator, emulator.token) as one,
        client(emulator, emulator.add_token("other")) as other,
    ):
        first = await create(one)
        await one.containers.delete(first.id)
        assert (await create(other)).id == first.id
        with pytest.raises(NotFoundError):
            await one.containers.get(first.id)
        await other.containers.delete(first.id)
        again = await create(one)
        assert again.id == first.id
        assert (await one.containers.get(first.id)).name == "mine"
        await one.containers.delete(first.id)


async def test_tokens_are_changed_over_http_and_masked_in_requests(emulator: Emulator) -> None:
    async with aiohttp.ClientSession(f"{emulator.url}/_emulator/") as http:

        async def change(**body: Any) -> tuple[int, Any]:
            async with http.post("tokens", json=body) as answer:
                return answer.status, await answer.json()

        accepted = [
            {"token": emulator.token, "account": "default"},
            {"token": "a-token-of-the-other", "account": "other"},
        ]
        assert await change(account="other", token="a-token-of-the-other") == (200, {"tokens": accepted})
        async with http.get("tokens") as answer:
            assert await answer.json() == {"tokens": accepted}
        assert (await change(account="third", token="a-token-of-the-other"))[0] == 409
        assert (await change(revoke="unknown"))[0] == 404
        for wrong in ({}, {"token": "x"}, {"account": 7}, {"account": "a b"}, {"revoke": "x", "account": "other"}):
            assert (await change(**wrong))[0] == 422
        async with client(emulator, "a-token-of-the-other") as gpu:
            await gpu.request("GET", "machines", params={"region": "a-token-of-the-other"})
        assert emulator.requests[-1].query == {"region": "***"}
        assert await change(revoke="a-token-of-the-other") == (200, {"tokens": accepted[:1]})
