"""Fixtures for all tests: an emulator on a port, a client on it, and time that only moves when it is told to."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import canaries
import pytest
from aioresponses import aioresponses
from hypothesis import settings

from netmind_rentgpu import AsyncRentGPU, RentGPUError, Retries
from netmind_rentgpu.emulator import Clock, Emulator
from netmind_rentgpu.wire.codec import Codec

# No example has to be quick on a busy machine. CI sees the same examples every time; elsewhere each run looks for new ones.
settings.register_profile("tests", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("tests")

# Retries that do not wait: what a test is about is whether a call is sent again, not how long that takes.
AT_ONCE = Retries(base_delay=0, max_delay=0)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the machine's own settings out of the tests, and the tests out of the user's state file and one another's."""
    monkeypatch.setenv("NETMIND_RENTGPU_STATE", str(tmp_path / "netmind-rentgpu-state" / "state.sqlite3"))
    for name in (
        "NETMIND_API_KEY",
        "NETMIND_API_TOKEN",
        "NETMIND_BASE_URL",
        "NETMIND_RENTGPU_PROFILE",
        *(f"{scheme}_proxy" for scheme in ("http", "https", "all", "no")),
        *(f"{scheme}_PROXY" for scheme in ("HTTP", "HTTPS", "ALL", "NO")),
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_secret_shows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Search all that a test produced for the secrets that it used."""
    watch = canaries.Watch()

    def raised(self: RentGPUError, *arguments: Any) -> None:
        super(RentGPUError, self).__init__(*arguments)
        watch.errors.append(self)

    def one(self: Codec, *arguments: Any) -> Any:
        found = read_one(self, *arguments)
        watch.things.append(found)
        return found

    def many(self: Codec, *arguments: Any) -> Any:
        found = read_many(self, *arguments)
        watch.things.extend(found[0][:20])
        return found

    read_one, read_many, make = Codec.one, Codec.many, AsyncRentGPU.__init__

    @functools.wraps(make)
    def made(self: AsyncRentGPU, *arguments: Any, **keywords: Any) -> None:
        make(self, *arguments, **keywords)
        watch.things += [self, self._settings, self._caller, self.auths, self.images, self.containers]

    monkeypatch.setattr(RentGPUError, "__init__", raised, raising=False)
    monkeypatch.setattr(Codec, "one", one)
    monkeypatch.setattr(Codec, "many", many)
    monkeypatch.setattr(AsyncRentGPU, "__init__", made)
    root = logging.getLogger()
    level = root.level
    root.addHandler(watch)
    root.setLevel(logging.DEBUG)
    yield
    root.setLevel(level)
    root.removeHandler(watch)
    for where, text in watch.shown():
        for secret in canaries.ALL:
            assert secret.encode() not in text, f"{secret.partition('-')[0]} in {where}"


@pytest.fixture(autouse=True)
def no_unhandled_error(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which an event loop, of any thread, reported an error that no caller received."""
    reported: list[dict[str, Any]] = []

    def report(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        reported.append(context)

    monkeypatch.setattr(asyncio.BaseEventLoop, "default_exception_handler", report)
    yield
    assert reported == []


class MovedClock(Clock):
    """A clock that a test moves, and a sleep that moves it."""

    def __init__(self) -> None:
        super().__init__(scale=0, start=1_700_000_000.0)
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
async def emulator(clock: MovedClock) -> AsyncIterator[Emulator]:
    async with Emulator(seed=7, boot_seconds=10, token=canaries.TOKEN, clock=clock) as emulator:
        yield emulator


@pytest.fixture
async def gpu(emulator: Emulator) -> AsyncIterator[AsyncRentGPU]:
    async with AsyncRentGPU(emulator.token, base_url=emulator.url, retries=AT_ONCE) as gpu:
        yield gpu


class _Response(aiohttp.ClientResponse):
    """aioresponses 0.7.9 builds responses as aiohttp did before 3.14, without a stream writer (its issue 289)."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **{"stream_writer": mock.Mock(), **keywords})


class Responses(aioresponses):
    """aioresponses that works with the aiohttp of today."""

    def add(self, *arguments: Any, **keywords: Any) -> None:
        super().add(*arguments, **{"response_class": _Response, **keywords})


@pytest.fixture
def responses() -> Iterator[Responses]:
    with Responses() as responses:
        yield responses
