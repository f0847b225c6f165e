"""The pytest plugin: fixtures for an emulated service and for clients on it. Installed with the package; nothing to import.

    def test_something(rentgpu): ...                    # RentGPU
    async def test_something(async_rentgpu): ...        # AsyncRentGPU, with pytest-asyncio or anyio's plugin

Both are clients of `rentgpu_emulator`, which runs in a thread of its own for that test. `rentgpu_emulator_factory` makes
others; a `rentgpu_emulator` of one's own in a conftest.py replaces the usual one, and the clients follow it. A test that
left something rented fails, unless it is marked with `rentgpu_may_leave_rented`.

It costs nothing where it is not used: neither the client nor the emulator is imported before a fixture is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import pytest

if TYPE_CHECKING:
    from typing import Unpack

    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.emulator import Clock, Emulator, Fault, World
    from netmind_rentgpu.sync import RentGPU

__all__ = ["EmulatorFactory", "EmulatorOptions"]

_MAY_LEAVE = "rentgpu_may_leave_rented"
_LOOP_SCOPES = ("function", "class", "module", "package", "session")
_BOOT_SECONDS = 0.05


class EmulatorOptions(TypedDict, total=False):
    """What `Emulator` takes."""

    seed: int
    port: int
    machines: int
    boot_seconds: float
    token: str | None
    world: World | str
    balance: Decimal | None
    clock: Clock | None
    faults: Iterable[Fault]
    keep_requests: int | None


class EmulatorFactory(Protocol):
    """The type of `rentgpu_emulator_factory`."""

    def __call__(self, **options: Unpack[EmulatorOptions]) -> Emulator:
        """Start an emulator, which stops after the test; containers start within 0.1 s unless `boot_seconds` is given."""
        ...


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marker means, and meet pytest-asyncio if it is there."""
    config.addinivalue_line(
        "markers", f"{_MAY_LEAVE}: what the test leaves rented in an emulator does not make it fail."
    )
    if config.pluginmanager.hasplugin("asyncio"):
        import pytest_asyncio

        # pytest finds fixtures in modules; this one is only made where there is something to put into it.
        closers = ModuleType("netmind_rentgpu.testing.asyncio")
        for scope in _LOOP_SCOPES:
            closer = _closer(pytest_asyncio.fixture, f"_rentgpu_client_in_{scope}_loop", loop_scope=scope)
            setattr(closers, scope, closer)
        config.pluginmanager.register(closers, closers.__name__)


@pytest.fixture
def rentgpu_emulator_factory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmulatorFactory]:
    """Start emulators with a world, faults or a clock of the test's choice; they take what `Emulator` takes.

    Clients of this test keep their state in a file of its own.
    """
    from netmind_rentgpu.emulator import Emulator

    emulators: list[Emulator] = []
    with ExitStack() as stack:
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        environment.setenv("NETMIND_RENTGPU_STATE", str(tmp_path / "netmind-rentgpu.sqlite3"))
        environment.delenv("NETMIND_RENTGPU_PROFILE", raising=False)

        def start(**options: Unpack[EmulatorOptions]) -> Emulator:
            settings: dict[str, Any] = {"boot_seconds": _BOOT_SECONDS, **options}
            emulator = Emulator(**settings)
            emulators.append(stack.enter_context(emulator))
            return emulator

        yield start
    if request.node.get_closest_marker(_MAY_LEAVE) is None:
        for emulator in emulators:
            try:
                emulator.assert_nothing_rented()
            except AssertionError as leaked:
                pytest.fail(str(leaked), pytrace=False)


@pytest.fixture
def rentgpu_emulator(rentgpu_emulator_factory: EmulatorFactory) -> Iterator[Emulator]:
    """Serve an emulated Rent GPU service for this test. Clients made without a token or URL find it, too."""
    emulator = rentgpu_emulator_factory()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NETMIND_BASE_URL", emulator.url)
        environment.setenv("NETMIND_API_KEY", emulator.token)
        yield emulator


@pytest.fixture
def rentgpu(rentgpu_emulator: Emulator) -> Iterator[RentGPU]:
    """Give a synchronous client of `rentgpu_emulator`."""
    from netmind_rentgpu.sync import RentGPU

    with RentGPU(rentgpu_emulator.token, base_url=rentgpu_emulator.url) as gpu:
        yield gpu


@pytest.fixture
def async_rentgpu(request: pytest.FixtureRequest, _rentgpu_client: AsyncRentGPU) -> AsyncRentGPU:
    """Give an asynchronous client of `rentgpu_emulator`.

    It is closed after the test, and after fixtures that use it, where pytest-asyncio or anyio's plugin runs the test. A test
    that runs a loop of its own closes it there: `async with async_rentgpu: ...`.
    """
    marker = request.node.get_closest_marker("asyncio")
    if "anyio_backend" in request.fixturenames:
        request.getfixturevalue("_rentgpu_client_under_anyio")
    elif marker is not None and request.config.pluginmanager.hasplugin("asyncio"):
        # In whichever loop the test runs, for there the client belongs.
        scope = marker.kwargs.get("loop_scope") or request.config.getini("asyncio_default_test_loop_scope")
        request.getfixturevalue(f"_rentgpu_client_in_{scope}_loop")
    return _rentgpu_client


@pytest.fixture
def _rentgpu_client(rentgpu_emulator: Emulator) -> AsyncRentGPU:
    from netmind_rentgpu.client import AsyncRentGPU

    return AsyncRentGPU(rentgpu_emulator.token, base_url=rentgpu_emulator.url)


def _closer(fixture: Callable[..., Any], name: str, **options: Any) -> Any:
    """Make a fixture that closes the client in the loop that the fixture runs in."""

    async def closing(_rentgpu_client: AsyncRentGPU) -> AsyncIterator[None]:
        yield
        await _rentgpu_client.close()

    return fixture(closing, name=name, **options)


_closing_under_anyio = _closer(pytest.fixture, "_rentgpu_client_under_anyio")
