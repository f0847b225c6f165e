"""The pytest plugin: fixtures for an emulated service and its clients. The package installs it; tests import nothing.

    def test_something(rentgpu): ...                    # RentGPU
    async def test_something(async_rentgpu): ...        # AsyncRentGPU, with pytest-asyncio or anyio's plugin

Both are clients of `rentgpu_emulator`, which runs in its own thread during that test. `rentgpu_emulator_factory` starts more
emulators. A fixture `rentgpu_emulator` in your conftest.py replaces the plugin's, and the clients use it. A test fails if it
leaves a container rented, unless it has the marker `rentgpu_may_leave_rented`. A test that would pass also fails if no
request met a fault that it added, unless it has the marker `rentgpu_may_leave_unmet_faults`.

The plugin imports the client and the emulator when a test first uses a fixture, so that other test runs stay fast.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from decimal import Decimal
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import pytest

if TYPE_CHECKING:
    from typing import Unpack

    from pluggy import Result

    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.emulator import Charge, Clock, Emulator, Fault, PendingCreate, World
    from netmind_rentgpu.profile import ServiceProfile
    from netmind_rentgpu.sync.client import RentGPU

__all__ = ["EmulatorFactory", "EmulatorOptions"]

_MAY_LEAVE_RENTED = "rentgpu_may_leave_rented"
_MAY_LEAVE_UNMET = "rentgpu_may_leave_unmet_faults"
_EMULATOR = "rentgpu_emulator"
_VARIABLES = ("NETMIND_API_KEY", "NETMIND_API_TOKEN", "NETMIND_BASE_URL", "NETMIND_RENTGPU_PROFILE")
_CLOSERS = "netmind_rentgpu.testing.asyncio"
_LOOP_SCOPES = ("function", "class", "module", "package", "session")
_BOOT_SECONDS = 0.05
_PASSED = pytest.StashKey[bool]()


class EmulatorOptions(TypedDict, total=False):
    """The arguments of `Emulator`."""

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
    ssh: bool
    isolated: bool
    allow_hosts: Iterable[str]


class EmulatorFactory(Protocol):
    """The type of `rentgpu_emulator_factory`."""

    def __call__(self, **options: Unpack[EmulatorOptions]) -> Emulator:
        """Start an emulator, which stops after the test. Containers start within 0.1 s unless `boot_seconds` is given."""
        ...


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and the fixtures that need pytest-asyncio where that is installed."""
    config.addinivalue_line(
        "markers", f"{_MAY_LEAVE_RENTED}: the test does not fail if it leaves containers rented in an emulator."
    )
    config.addinivalue_line(
        "markers", f"{_MAY_LEAVE_UNMET}: the test does not fail if no request meets a fault that it added."
    )
    if config.pluginmanager.hasplugin("asyncio"):
        import pytest_asyncio

        if "loop_scope" not in signature(pytest_asyncio.fixture).parameters:
            return  # because pytest-asyncio is older than 0.24, with which `async_rentgpu` fails
        # A module, because pytest finds fixtures in modules.
        closers = ModuleType(_CLOSERS)
        for scope in _LOOP_SCOPES:
            closer = _closer(pytest_asyncio.fixture, f"_rentgpu_client_in_{scope}_loop", loop_scope=scope)
            setattr(closers, scope, closer)
        config.pluginmanager.register(closers, _CLOSERS)


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Generator[None]:
    """Protect the setup of a `rentgpu_emulator` with a wider scope than a test from the environment's token and URL."""
    is_shared = fixturedef.argname == _EMULATOR and fixturedef.scope != "function"
    with _environment() if is_shared else nullcontext():
        yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Result[Any]]:
    """Record if the test itself passed, because a failed test is allowed to leave faults unmet."""
    outcome = yield
    if call.when != "teardown":
        item.stash[_PASSED] = call.when == "call" and outcome.get_result().passed


@contextmanager
def _environment() -> Generator[pytest.MonkeyPatch]:
    """Remove the client's variables from the environment, so that no client reaches the real service."""
    with pytest.MonkeyPatch.context() as environment:
        for name in _VARIABLES:
            environment.delenv(name, raising=False)
        yield environment


class _Emulators:
    """The emulators of one test. The plugin checks them after the test."""

    def __init__(self, stack: ExitStack, environment: pytest.MonkeyPatch, profile: Path) -> None:
        self._stack = stack
        self._environment = environment
        self._profile = profile
        self._watched: list[tuple[Emulator, list[Charge | PendingCreate], tuple[Fault, ...]]] = []

    def start(self, **options: Unpack[EmulatorOptions]) -> Emulator:
        from netmind_rentgpu.emulator import Emulator

        settings: dict[str, Any] = {"boot_seconds": _BOOT_SECONDS, **options}
        emulator = self._stack.enter_context(Emulator(**settings))
        self._watched.append((emulator, [], ()))
        if len(self._watched) == 1:
            self.put_in_force(emulator)
        return emulator

    def put_in_force(self, emulator: Emulator) -> None:
        """Make an emulator the default of clients without a token or URL, and check it after the test."""
        self._profile.write_text(f'authorization = "{emulator.world.token}"\n', encoding="utf-8")
        self._environment.setenv("NETMIND_BASE_URL", emulator.url)
        self._environment.setenv("NETMIND_API_KEY", emulator.token)
        self._environment.setenv("NETMIND_RENTGPU_PROFILE", str(self._profile))
        self._watch(emulator)

    def _watch(self, emulator: Emulator) -> None:
        # A user's own emulator may have containers and faults from before this test, which this test must not answer for.
        if all(emulator is not watched for watched, *_ in self._watched):
            self._watched.append((emulator, [*emulator.pending_creates, *emulator.running], emulator.faults.unmet))

    def leaked(self) -> str:
        """Describe the containers that the test left rented; an empty text if there are none."""
        leaks: list[str] = []
        for emulator, before, _ in self._watched:
            try:
                emulator.assert_nothing_rented(apart_from=before)
            except AssertionError as leaked:
                leaks.append(str(leaked))
        return "\n".join(leaks)

    def unmet(self) -> str:
        """Return a message about the test's faults that nothing has met; an empty text if there are none."""
        # By identity, because a fault of this test may be equal to an earlier fault.
        faults = [
            fault
            for emulator, _, before in self._watched
            for fault in emulator.faults.unmet
            if all(fault is not earlier for earlier in before)
        ]
        if not faults:
            return ""
        problem = (
            f"nothing has met {len(faults)} of the test's faults, so that the test proves nothing about them; remove the "
            f"faults, or mark the test with {_MAY_LEAVE_UNMET}:"
        )
        return "\n".join([problem, *(f"  {fault.to_mapping()}" for fault in faults)])


@pytest.fixture
def _rentgpu_environment(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    with _environment() as environment:
        environment.setenv("NETMIND_RENTGPU_STATE", str(tmp_path / "netmind-rentgpu.sqlite3"))
        yield environment


@pytest.fixture
def _rentgpu_emulators(
    request: pytest.FixtureRequest, _rentgpu_environment: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[_Emulators]:
    with ExitStack() as stack:
        emulators = _Emulators(stack, _rentgpu_environment, tmp_path / "netmind-rentgpu.toml")
        yield emulators
        leaked, unmet = emulators.leaked(), emulators.unmet()
    problems: list[str] = []
    if leaked and request.node.get_closest_marker(_MAY_LEAVE_RENTED) is None:
        problems.append(leaked)
    if unmet and request.node.stash.get(_PASSED, False) and request.node.get_closest_marker(_MAY_LEAVE_UNMET) is None:
        problems.append(unmet)
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture(autouse=True)
def _rentgpu_everywhere(request: pytest.FixtureRequest) -> None:
    """Check every test that uses `rentgpu_emulator`, also without a client, and also if the fixture is the user's own."""
    if _EMULATOR in request.fixturenames:
        request.getfixturevalue("_rentgpu_environment")  # first, because it protects the setup of the emulator
        request.getfixturevalue("_rentgpu_in_force")


@pytest.fixture
def rentgpu_emulator_factory(_rentgpu_emulators: _Emulators) -> EmulatorFactory:
    """Start emulators with the arguments of `Emulator`, such as a world, faults or a clock.

    Clients without a token or URL use the first of these emulators, and keep their state in the test's temporary folder.
    """
    return _rentgpu_emulators.start


@pytest.fixture
def rentgpu_emulator(rentgpu_emulator_factory: EmulatorFactory) -> Emulator:
    """Start an emulated Rent GPU service for this test. Clients without a token or URL use it."""
    return rentgpu_emulator_factory()


@pytest.fixture
def _rentgpu_in_force(rentgpu_emulator: Emulator, _rentgpu_emulators: _Emulators) -> Emulator:
    """Return `rentgpu_emulator`, which may be the user's own, as the default of the test's clients."""
    _rentgpu_emulators.put_in_force(rentgpu_emulator)
    return rentgpu_emulator


@pytest.fixture
def rentgpu_profile(_rentgpu_in_force: Emulator) -> ServiceProfile:
    """Return the profile of the clients: the default profile with the token's form in the emulator's world.

    Your own fixture of this name replaces it.
    """
    from netmind_rentgpu.profile import ServiceProfile

    return ServiceProfile(authorization=_rentgpu_in_force.world.token)


@pytest.fixture
def rentgpu(_rentgpu_in_force: Emulator, rentgpu_profile: ServiceProfile) -> Iterator[RentGPU]:
    """Open a synchronous client of `rentgpu_emulator`."""
    from netmind_rentgpu.sync.client import RentGPU

    with RentGPU(_rentgpu_in_force.token, base_url=_rentgpu_in_force.url, profile=rentgpu_profile) as gpu:
        yield gpu


@pytest.fixture
def async_rentgpu(request: pytest.FixtureRequest, _rentgpu_client: AsyncRentGPU) -> AsyncRentGPU:
    """Return an asynchronous client of `rentgpu_emulator`.

    If pytest-asyncio (0.24 or later) or anyio's plugin (on asyncio) runs the test or the fixtures that use the client, the
    fixture closes the client after them. A test that runs its own event loop must close it: `async with async_rentgpu:`.
    """
    config = request.config
    if "anyio_backend" in request.fixturenames:
        backend = request.getfixturevalue("anyio_backend_name")
        if backend != "asyncio":
            pytest.fail(f"async_rentgpu needs asyncio; the anyio_backend of this test is {backend}", pytrace=False)
        request.getfixturevalue("_rentgpu_client_under_anyio")
    elif config.pluginmanager.hasplugin(_CLOSERS):
        request.getfixturevalue(f"_rentgpu_client_in_{_loop_scope(request)}_loop")
    elif config.pluginmanager.hasplugin("asyncio"):
        pytest.fail("async_rentgpu needs pytest-asyncio 0.24 or later, or anyio's plugin", pytrace=False)
    return _rentgpu_client


def _loop_scope(request: pytest.FixtureRequest) -> str:
    """Return the scope of the event loop that runs the test, or that runs the fixtures of a synchronous test."""
    marker = request.node.get_closest_marker("asyncio")
    if marker is None:
        scope = request.config.getini("asyncio_default_fixture_loop_scope")
    else:
        scope = marker.kwargs.get("loop_scope") or marker.kwargs.get("scope")
        with suppress(ValueError):  # because pytest-asyncio before 0.26 has no such setting
            scope = scope or request.config.getini("asyncio_default_test_loop_scope")
    return scope if scope in _LOOP_SCOPES else "function"


@pytest.fixture
def _rentgpu_client(_rentgpu_in_force: Emulator, rentgpu_profile: ServiceProfile) -> AsyncRentGPU:
    from netmind_rentgpu.client import AsyncRentGPU

    return AsyncRentGPU(_rentgpu_in_force.token, base_url=_rentgpu_in_force.url, profile=rentgpu_profile)


def _closer(fixture: Callable[..., Any], name: str, **options: Any) -> Any:
    """Create a fixture that closes the client in the event loop that runs the fixture."""

    async def closing(_rentgpu_client: AsyncRentGPU) -> AsyncIterator[None]:
        from netmind_rentgpu.errors import ClientStateError

        yield
        # A test that used the client in its own event loop has to close it there.
        with suppress(ClientStateError):
            await _rentgpu_client.close()

    return fixture(closing, name=name, **options)


_closing_under_anyio = _closer(pytest.fixture, "_rentgpu_client_under_anyio")
