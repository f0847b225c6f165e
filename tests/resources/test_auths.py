"""`gpu.auths`, against the emulator."""

import asyncio

import anyio
import pytest
from hostile import Hostile, Peer, answer, stall

from netmind_rentgpu import (
    APIConnectionError,
    APITimeoutError,
    AsyncRentGPU,
    Auth,
    ClientStateError,
    InvalidArgumentError,
    NotFoundError,
    Timeouts,
)


async def test_created_auth_is_got_and_listed(gpu: AsyncRentGPU) -> None:
    auth = await gpu.auths.create("a-password")
    assert (auth.id, auth.value, auth.extra) == (1, "a-password", {})
    assert auth.created_at is not None
    assert await gpu.auths.get(auth.id) == auth
    assert (await gpu.auths.list()).items == (auth,)
    with pytest.raises(NotFoundError):
        await gpu.auths.get(99)


async def test_long_list_of_auths_is_walked_page_by_page(gpu: AsyncRentGPU) -> None:
    made = [await gpu.auths.create(f"password-{number}") for number in range(25)]
    assert [auth async for auth in gpu.auths.list()] == made
    assert [auth async for auth in gpu.auths.list(page_size=7)] == made
    assert [auth async for auth in gpu.auths.list(marker=20)] == made[20:]
    page = await gpu.auths.list(page_size=10)
    assert (page.items, page.next_marker) == (tuple(made[:10]), 10)


async def test_ensure_creates_an_auth_once(gpu: AsyncRentGPU) -> None:
    for number in range(15):
        await gpu.auths.create(f"password-{number}")
    first = await gpu.auths.ensure("the-password")
    assert first.id == 16
    assert await gpu.auths.ensure("the-password") == first
    assert (await gpu.auths.ensure("password-3")).id == 4


async def test_concurrent_ensures_create_one_auth(gpu: AsyncRentGPU) -> None:
    found = await asyncio.gather(*(gpu.auths.ensure("the-password") for _ in range(20)))
    assert {auth.id for auth in found} == {1}


async def test_cancelled_ensure_does_not_delay_other_ensures(gpu: AsyncRentGPU) -> None:
    tasks = [asyncio.create_task(gpu.auths.ensure("the-password")) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    assert isinstance(await tasks[1], Auth)
    assert isinstance(await tasks[2], Auth)


async def test_ensure_with_a_lagging_list_creates_no_duplicate() -> None:
    made = 0

    def behave(peer: Peer) -> None:
        nonlocal made
        if peer.server.seen[-1].method == "GET":
            answer([])(peer)
        else:
            made += 1
            answer({"id": made, "value": "the-password"})(peer)

    async with Hostile([behave]) as server, AsyncRentGPU("t", base_url=server.url) as gpu:
        found = await asyncio.gather(*(gpu.auths.ensure("the-password") for _ in range(5)))
        images = [await gpu.images.ensure(name="a", image_name="b", image_tag="c", image_label="d") for _ in range(3)]
    assert {auth.id for auth in found} == {1}
    assert {image.id for image in images} == {2}


async def test_ensure_matches_an_image_without_a_registry_by_the_default_one() -> None:
    image = {"id": 7, "name": "a", "image_name": "b", "image_tag": "c", "image_label": "d", "docker_registry": None}
    async with Hostile([answer([image])]) as server, AsyncRentGPU("t", base_url=server.url) as gpu:
        assert (await gpu.images.ensure(name="a", image_name="b", image_tag="c", image_label="d")).id == 7


async def test_ensure_waiting_for_another_ensure_times_out() -> None:
    async with Hostile([stall]) as server, AsyncRentGPU("t", base_url=server.url) as gpu:
        first = asyncio.create_task(gpu.auths.ensure("the-password"))
        await server.until(lambda: bool(server.seen))
        with anyio.fail_after(10), pytest.raises(APITimeoutError, match="an earlier call") as caught:
            await gpu.auths.ensure("the-password", timeout=Timeouts(slot=0.01))
        assert caught.value.maybe_processed is False
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first


def test_ensure_in_another_loop_is_refused() -> None:
    client = AsyncRentGPU("t", base_url="http://127.0.0.1:1", retries=0)

    async def use() -> None:
        await client.auths.ensure("the-password")

    with asyncio.Runner() as runner:
        with pytest.raises(APIConnectionError):
            runner.run(use())
        with pytest.raises(ClientStateError):
            asyncio.run(use())
        runner.run(client.close())


@pytest.mark.parametrize("length", [0, 7, 33])
async def test_password_of_the_wrong_length_is_refused_and_not_shown(gpu: AsyncRentGPU, length: int) -> None:
    password = "x" * length
    for call in (gpu.auths.create, gpu.auths.ensure):
        with pytest.raises(InvalidArgumentError, match=f"8 to 32 characters, and this one has {length}") as caught:
            await call(password)
        assert not password or password not in str(caught.value)


@pytest.mark.parametrize("length", [8, 32])
async def test_password_of_the_shortest_or_longest_length_is_accepted(gpu: AsyncRentGPU, length: int) -> None:
    assert (await gpu.auths.create("ü" * length)).value == "ü" * length


async def test_unsendable_auth_arguments_are_refused(gpu: AsyncRentGPU) -> None:
    with pytest.raises(InvalidArgumentError, match="value: holds half a character"):
        await gpu.auths.create("\udcff" * 8)
    with pytest.raises(InvalidArgumentError, match="value: must be a text"):
        await gpu.auths.create(12345678)  # type: ignore[arg-type]  # a wrong type on purpose
    with pytest.raises(InvalidArgumentError, match="auth_id: must be a whole number"):
        await gpu.auths.get("1/../../machines")  # type: ignore[arg-type]  # a wrong type on purpose
    with pytest.raises(InvalidArgumentError, match="page_size: must be at least 1"):
        gpu.auths.list(page_size=0)
    with pytest.raises(InvalidArgumentError, match="marker: must be an id"):
        gpu.auths.list(marker=1.5)  # type: ignore[arg-type]  # a wrong type on purpose
