"""Fixtures for all tests: an emulator on a port, a client on it, and time that only moves when it is told to."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import canaries
import openssh
import pytest
from guardian_copies import SharedCopies
from hypothesis import settings
from responses import Responses

from netmind_rentgpu import AsyncRentGPU, RentGPUError, Retries
from netmind_rentgpu.emulator import Clock, Emulator
from netmind_rentgpu.wire.codec import Codec

# No example has to be quick on a busy machine. CI sees the same examples every time; elsewhere each run looks for new ones.
settings.register_profile("tests", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("tests")

# Many tests start programs, which would otherwise compile the whole package each time.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# What runs in the background or under nohup is started with these ignored, and all that it starts, too.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

# A warning of a coroutine that was never awaited says where it was created.
sys.set_coroutine_origin_tracking_depth(3)

_PASSED = pytest.StashKey[bool]()

# Retries that do not wait: what a test is about is whether a call is sent again, not how long that takes.
AT_ONCE = Retries(base_delay=0, max_delay=0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="run the full forms of the tests marked slow: many minutes more"
    )
    parser.addoption(
        "--crash-stride", type=int, metavar="N", help="let the crash fuzzer kill and cancel at every Nth loop step"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that have a full form; start the slow ones first, so that no worker is left with one in the end."""
    for item in items:
        if isinstance(item, pytest.Function) and "full" in item.fixturenames:
            item.add_marker("full_form")
    if not config.getoption("--full"):
        deselected = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave the thousands of collected tests out of each later garbage collection, which would take a third of a second."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None]:
    """End with one sentence on the tests that were skipped for want of Debian's packages."""
    yield
    skipped = [
        report for report in terminalreporter.stats.get("skipped", []) if openssh.INSTALL in str(report.longrepr)
    ]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests were skipped because OpenSSH's server or client, libnss-wrapper or a shell is missing; "
            f"to run them, install it: {openssh.INSTALL}"
        )


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """True if the full forms of slow tests are asked for."""
    return bool(request.config.getoption("--full"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Record whether the test itself passed."""
    report = yield
    if call.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@pytest.fixture(scope="session", autouse=True)
def folder_of_shared_copies(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Choose the folder of the copies that guardians run from."""
    folder = tmp_path_factory.getbasetemp()
    SharedCopies.folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(autouse=True)
def every_fault_is_met(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that passed although no request met one of the faults that it added to an emulator."""
    emulators: list[Emulator] = []
    make = Emulator.__init__

    @functools.wraps(make)
    def made(self: Emulator, **options: Any) -> None:
        make(self, **options)
        emulators.append(self)

    monkeypatch.setattr(Emulator, "__init__", made)
    yield
    if request.node.stash.get(_PASSED, False) and not request.node.get_closest_marker("rentgpu_may_leave_unmet_faults"):
        assert [fault.to_mapping() for emulator in emulators for fault in emulator.faults.unmet] == []


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the machine's own settings out of the tests, and the tests out of the user's state file and one another's."""
    monkeypatch.setenv("NETMIND_RENTGPU_STATE", str(tmp_path / "netmind-rentgpu-state" / "state.sqlite3"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "netmind-rentgpu-config"))
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

    def many(self: Codec, *arguments: Any) -> Generator[None, None, Any]:
        found = yield from read_many(self, *arguments)
        watch.things.extend(found.items[:20])
        return found

    read_one, read_many, make = Codec.one, Codec.many, AsyncRentGPU.__init__

    @functools.wraps(make)
    def made(self: AsyncRentGPU, *arguments: Any, **keywords: Any) -> None:
        make(self, *arguments, **keywords)
        watch.things += [self, self._parts.settings, self._caller, self.auths, self.images, self.containers]

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


@pytest.fixture
def responses() -> Iterator[Responses]:
    with Responses() as responses:
        yield responses
