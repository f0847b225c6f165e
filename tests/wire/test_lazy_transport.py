"""A transport that imports its library with the first request."""

from __future__ import annotations

import asyncio

import pytest

from netmind_rentgpu import APIConnectionError, AsyncRentGPU, ClientStateError, ConfigurationError
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.wire import lazy_transport
from netmind_rentgpu.wire.lazy_transport import LazyTransport


class Late(AsyncRentGPU):
    _imports_late = True


def late(emulator: Emulator) -> Late:
    return Late(emulator.token, base_url=emulator.url)


async def test_client_makes_its_transport_with_the_first_request(emulator: Emulator) -> None:
    async with late(emulator) as gpu:
        transport = gpu._caller._transport
        assert isinstance(transport, LazyTransport)
        assert transport._transport is None
        found = await asyncio.gather(*(gpu.machines.list() for _ in range(3)))
        assert transport._transport is not None
        assert len({len(machines) for machines in found}) == 1
    with pytest.raises(ClientStateError, match="closed"):
        await gpu.machines.list()


async def test_client_without_a_request_closes_and_belongs_to_its_loop(emulator: Emulator) -> None:
    gpu = late(emulator)
    gpu._caller.check_usable()
    with pytest.raises(ClientStateError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(gpu.machines.list()))
    with pytest.raises(ClientStateError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(gpu.close()))
    await gpu.close()
    await gpu.close()


async def test_client_that_is_closed_during_the_import_sends_nothing(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = asyncio.Event()

    async def wait(_: object) -> None:
        await imported.wait()

    monkeypatch.setattr(lazy_transport, "_MODULE", "not.imported.yet")
    monkeypatch.setattr(lazy_transport, "run_in_thread", wait)
    gpu = Late(emulator.token, base_url=emulator.url, retries=0)
    call = asyncio.create_task(gpu.machines.list())
    for _ in range(5):
        await asyncio.sleep(0)
    await gpu.close()
    imported.set()
    with pytest.raises((APIConnectionError, ClientStateError)) as caught:
        await call
    assert "closed" in str(caught.value)
    assert len(emulator.requests) == 0


def test_proxy_that_cannot_be_used_is_found_at_once() -> None:
    with pytest.raises(ConfigurationError):
        Late("token", proxy="http://user:\udcff@proxy")
