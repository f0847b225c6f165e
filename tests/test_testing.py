"""The pytest plugin, as users have it: runs of pytest in processes of their own, with warnings as errors."""

import os
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path
from textwrap import dedent

import pytest

from netmind_rentgpu.emulator import Emulator, preset_names
from netmind_rentgpu.testing import EmulatorOptions

# What the tests of the plugin do not need, and what would take most of their time.
QUICK = [f"-pno:{plugin}" for plugin in ("cacheprovider", "hypothesispytest", "schemathesis")]
# The short summary repeats an error, cut where `CI` is unset and whole where it is set.
SAID_ONCE = ["-rN"]
BEGIN = """
import asyncio, os, sys
import pytest
from netmind_rentgpu import (
    APIConnectionError, AsyncRentGPU, ConfigurationError, InvalidRequestError, PaymentType, PermissionDeniedError, RentGPU
)
from netmind_rentgpu.emulator import Clock, Emulator, Fault

async def create(gpu, name="mine"):
    auth = await gpu.auths.create("a-password")
    machine = (await gpu.machines.list())[0]
    return await gpu.containers.create(
        name=name, auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type=PaymentType.USD
    )
"""
ANYIO = """
@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


def run(folder: Path, test: str, *options: str, conftest: str = "", ini: str = "") -> tuple[dict[str, int], str]:
    """Run a test file; return how many tests did what, and all that was printed."""
    (folder / "test_it.py").write_text(BEGIN + dedent(test))
    (folder / "conftest.py").write_text(dedent(conftest))
    if "no:asyncio" not in options and "asyncio_default_fixture_loop_scope" not in ini:
        ini += "\nasyncio_default_fixture_loop_scope = function"  # it warns where that is unset
    (folder / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *QUICK, *SAID_ONCE, "-W", "error", "--strict-markers", *options, folder],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
        env={**os.environ, "NETMIND_API_KEY": "the-real-one"},
    )
    last = done.stdout.strip().rpartition("\n")[2]
    counts = {kind.rstrip("s"): int(number) for number, kind in re.findall(r"(\d+) (\w+)", last.rpartition(" in ")[0])}
    return counts, done.stdout + done.stderr


PLAIN = """
def test_sync(rentgpu, rentgpu_emulator):
    assert type(rentgpu) is RentGPU
    assert len(rentgpu.machines.list()) == 60
    assert len(rentgpu_emulator.requests.of("list_machines")) == 1
"""


def test_a_plain_test(tmp_path: Path) -> None:
    counts, text = run(tmp_path, PLAIN, "-p", "no:anyio", "-p", "no:asyncio")
    assert counts == {"passed": 1}, text


ASYNC = """
@pytest.fixture
async def container(async_rentgpu):
    container = await create(async_rentgpu)
    yield container
    await async_rentgpu.containers.delete(container.id)

class TestIt:
    {mark}
    async def test_async(self, async_rentgpu, container, rentgpu_emulator):
        assert type(async_rentgpu) is AsyncRentGPU
        async with asyncio.timeout(30):
            while (await async_rentgpu.containers.get(container.id)).ssh_endpoint is None:
                await asyncio.sleep(0.01)
        assert [one.name for one in rentgpu_emulator.running] == ["mine"]

    {mark}
    async def test_another(self, async_rentgpu, container):
        assert [one.name async for one in async_rentgpu.containers.list()] == ["mine"]
"""
MANAGERS = {
    "anyio's marker": (ASYNC.format(mark="@pytest.mark.anyio") + ANYIO, "", ()),
    "anyio's marker, without pytest-asyncio": (
        ASYNC.format(mark="@pytest.mark.anyio") + ANYIO,
        "",
        ("-p", "no:asyncio"),
    ),
    "anyio's auto mode": (ASYNC.format(mark="") + ANYIO, "anyio_mode = auto", ()),
    "pytest-asyncio, strict": (
        ASYNC.format(mark="@pytest.mark.asyncio").replace(
            "@pytest.fixture", "import pytest_asyncio\n@pytest_asyncio.fixture"
        ),
        "",
        (),
    ),
    "pytest-asyncio, auto": (ASYNC.format(mark=""), "asyncio_mode = auto", ("-p", "no:anyio")),
    **{
        f"pytest-asyncio, a loop for each {scope}": (
            ASYNC.format(mark=f"@pytest.mark.asyncio(loop_scope='{scope}')").replace(
                "@pytest.fixture", f"import pytest_asyncio\n@pytest_asyncio.fixture(loop_scope='{scope}')"
            ),
            "",
            (),
        )
        for scope in ("class", "module", "package", "session")
    },
    "pytest-asyncio, one loop by default": (
        ASYNC.format(mark=""),
        "asyncio_mode = auto\nasyncio_default_test_loop_scope = session\nasyncio_default_fixture_loop_scope = session",
        (),
    ),
}


@pytest.mark.parametrize("manager", MANAGERS)
def test_an_asynchronous_test(manager: str, tmp_path: Path) -> None:
    test, ini, options = MANAGERS[manager]
    counts, text = run(tmp_path, test, *options, ini=ini)
    assert counts == {"passed": 2}, text


def test_trio_is_told_that_it_does_not_suit(tmp_path: Path) -> None:
    test = """
@pytest.mark.anyio
async def test_it(async_rentgpu):
    pass
"""
    counts, text = run(tmp_path, test + ANYIO.replace('"asyncio"', '"trio"'))
    assert counts == {"error": 1}, text
    assert "\nasync_rentgpu needs asyncio; the anyio_backend of this test is trio\n" in text


OLD_ASYNCIO = """
import asyncio, inspect
import pytest

def fixture(function=None, **options):
    return pytest.fixture(function, **options)

def pytest_configure(config):
    config.addinivalue_line("markers", "asyncio: run in a loop")

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if inspect.iscoroutinefunction(pyfuncitem.function):
        asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}))
        return True
"""


@pytest.fixture
def old_asyncio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What of pytest-asyncio 0.23 the plugin meets: found before the one that is installed."""
    site = tmp_path / "site"
    (site / "pytest_asyncio-0.23.8.dist-info").mkdir(parents=True)
    (site / "pytest_asyncio-0.23.8.dist-info" / "METADATA").write_text("Name: pytest-asyncio\nVersion: 0.23.8\n")
    (site / "pytest_asyncio-0.23.8.dist-info" / "entry_points.txt").write_text("[pytest11]\nasyncio = pytest_asyncio\n")
    (site / "pytest_asyncio.py").write_text(OLD_ASYNCIO)
    monkeypatch.setenv("PYTHONPATH", str(site))


@pytest.mark.usefixtures("old_asyncio")
def test_an_old_pytest_asyncio_is_not_in_the_way(tmp_path: Path) -> None:
    test = """
    import pytest_asyncio

    @pytest.mark.asyncio
    async def test_it(rentgpu_emulator):
        assert "loop_scope" not in str(pytest_asyncio.__dict__)
        async with AsyncRentGPU() as gpu:
            await gpu.machines.list()

    def test_plain(rentgpu):
        rentgpu.machines.list()

    @pytest.mark.asyncio
    async def test_client(async_rentgpu):
        pass
    """
    (tmp_path / "tests").mkdir()
    counts, text = run(tmp_path / "tests", test, "-W", "default::pytest.PytestConfigWarning")
    assert counts == {"passed": 2, "error": 1, "warning": 1}, text
    assert "\nasync_rentgpu needs pytest-asyncio 0.24 or later, or anyio's plugin\n" in text


def test_a_pytest_asyncio_without_a_default_for_tests(tmp_path: Path) -> None:
    """Before 0.26 there was no such setting, and before 0.24 the marker's `loop_scope` was called `scope`."""
    conftest = """
    def pytest_configure(config):
        getini = config.getini
        def missing(name):
            asking = sys._getframe(1).f_globals["__name__"]
            if (asking, name) == ("netmind_rentgpu.testing", "asyncio_default_test_loop_scope"):
                raise ValueError(name)
            return getini(name)
        config.getini = missing
    import sys
    """
    test = """
    @pytest.mark.asyncio
    async def test_it(async_rentgpu):
        await async_rentgpu.machines.list()

    @pytest.mark.asyncio(scope="session")
    async def test_scope(async_rentgpu):
        await async_rentgpu.machines.list()
    """
    counts, text = run(tmp_path, test, "-W", "default::pytest.PytestDeprecationWarning", conftest=conftest)
    assert counts.pop("warning", 1) == 1
    assert counts == {"passed": 2}, text


def test_an_asynchronous_client_in_a_loop_of_the_tests_own(tmp_path: Path) -> None:
    test = """
    def test_it(async_rentgpu):
        async def main():
            async with async_rentgpu as gpu:
                return await gpu.machines.list()
        assert len(asyncio.run(main())) == 60

    def test_unused(async_rentgpu):
        pass
    """
    counts, text = run(tmp_path, test)
    assert counts == {"passed": 2}, text


def test_both_clients_see_one_service(tmp_path: Path) -> None:
    test = """
    @pytest.mark.asyncio
    async def test_it(rentgpu, async_rentgpu):
        auth = await async_rentgpu.auths.create("a-password")
        assert (await asyncio.to_thread(rentgpu.auths.get, auth.id)).value == "a-password"
    """
    counts, text = run(tmp_path, test)
    assert counts == {"passed": 1}, text


LEAKS = """
{mark}
def test_leaks(rentgpu):
    auth = rentgpu.auths.create("a-password")
    machine = rentgpu.machines.list()[0]
    rentgpu.containers.create(
        name="forgotten", auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type=PaymentType.USD
    )

def test_does_not(rentgpu):
    rentgpu.machines.list()
"""


def test_what_is_left_rented_fails_the_test(tmp_path: Path) -> None:
    counts, text = run(tmp_path, LEAKS.format(mark=""))
    assert counts == {"passed": 2, "error": 1}
    assert "ERROR at teardown of test_leaks" in text
    assert re.search(r"1 still rented, for 0\.\d+ USD an hour:\n  forgotten \(container 1001\): 1 GPU on node-", text)


def test_unless_it_is_marked(tmp_path: Path) -> None:
    counts, text = run(tmp_path, LEAKS.format(mark="@pytest.mark.rentgpu_may_leave_rented"))
    assert counts == {"passed": 2}, text
    assert "@pytest.mark.rentgpu_may_leave_rented: what the test leaves" in run(tmp_path, "", "--markers")[1]


def test_every_emulator_of_a_test_is_looked_at(tmp_path: Path) -> None:
    test = """
    @pytest.mark.asyncio
    async def test_it(rentgpu_emulator_factory):
        for name in ("in-the-first", "in-the-second"):
            emulator = rentgpu_emulator_factory()
            async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
                await create(gpu, name)
    """
    counts, text = run(tmp_path, test)
    assert counts == {"passed": 1, "error": 1}
    assert text.count("in-the-first (container 1001)") == 1
    assert text.count("in-the-second (container 1001)") == 1


def test_a_create_that_is_done_late_is_a_leak(tmp_path: Path) -> None:
    test = """
    def test_it(rentgpu, rentgpu_emulator):
        auth = rentgpu.auths.create("a-password")
        node_name = rentgpu.machines.list()[0].node_name
        rentgpu_emulator.faults.add(Fault("late commit", seconds=60))
        with pytest.raises(APIConnectionError):
            rentgpu.containers.create(
                name="x", auth_id=auth.id, node_name=node_name, image_template_id=1, payment_type=PaymentType.USD
            )
    """
    counts, text = run(tmp_path, test)
    assert counts == {"passed": 1, "error": 1}
    assert "1 still to be rented, for 0.0" in text


def test_what_one_test_may_leave_is_not_held_against_the_next(tmp_path: Path) -> None:
    """An emulator that outlives a test: ids begin again after a reset, and a late create is done in another test."""
    test = """
    @pytest.fixture(scope="session")
    def rentgpu_emulator():
        with Emulator(boot_seconds=0, clock=Clock(scale=0)) as emulator:
            yield emulator

    async def rent(name):
        async with AsyncRentGPU() as gpu:
            await create(gpu, name)

    @pytest.mark.rentgpu_may_leave_rented
    def test_1_leaves(rentgpu_emulator):
        asyncio.run(rent("left"))

    def test_2_leaks_after_a_reset(rentgpu_emulator):
        rentgpu_emulator.reset()
        asyncio.run(rent("forgotten"))

    @pytest.mark.rentgpu_may_leave_rented
    def test_3_leaves_one_to_come(rentgpu_emulator):
        rentgpu_emulator.faults.add(Fault("late commit", seconds=60))
        with pytest.raises(APIConnectionError):
            asyncio.run(rent("coming"))

    def test_4_does_nothing(rentgpu_emulator):
        assert [one.name for one in rentgpu_emulator.coming] == ["coming"]

    def test_5_waits(rentgpu_emulator):
        rentgpu_emulator.clock.advance(60)
        assert [one.name for one in rentgpu_emulator.running] == ["forgotten", "coming"]
    """
    counts, text = run(tmp_path, test)
    assert counts == {"passed": 5, "error": 1}, text
    assert "ERROR at teardown of test_2_leaks_after_a_reset" in text
    assert "1 still rented" in text
    assert "  forgotten (container 1001)" in text


@pytest.mark.parametrize("scope", ["function", "module", "session"])
def test_an_emulator_of_the_users_own_is_looked_at_as_well(tmp_path: Path, scope: str) -> None:
    test = f"""
    @pytest.fixture(scope="{scope}")
    def rentgpu_emulator():
        with Emulator(boot_seconds=0) as emulator:
            asyncio.run(create_with(emulator, "from-before"))
            yield emulator

    async def create_with(emulator, name):
        async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
            return await create(gpu, name)

    def test_leaks(rentgpu, rentgpu_emulator):
        asyncio.run(create_with(rentgpu_emulator, "forgotten"))

    def test_does_not(rentgpu, rentgpu_emulator):
        assert len(rentgpu_emulator.running) == {1 if scope == "function" else 2}
        assert os.environ["NETMIND_BASE_URL"] == rentgpu_emulator.url
        assert "NETMIND_RENTGPU_STATE" in os.environ
        with RentGPU() as own:
            assert own.containers.list().first_page().items == rentgpu.containers.list().first_page().items
    """
    counts, text = run(tmp_path, test)
    assert counts == {"passed": 2, "error": 1}, text
    assert "ERROR at teardown of test_leaks" in text
    assert "1 still rented" in text
    assert "forgotten (container 1002)" in text
    assert "from-before" not in text.partition("=== ERRORS")[2].partition("short test summary")[0]


@pytest.mark.parametrize("scope", ["function", "session"])
def test_an_emulator_of_the_users_own_is_in_force_without_a_client_fixture(tmp_path: Path, scope: str) -> None:
    test = f"""
    @pytest.fixture(scope="{scope}")
    def rentgpu_emulator():
        with pytest.raises(ConfigurationError):
            RentGPU()
        with Emulator(boot_seconds=0) as emulator:
            yield emulator

    @pytest.mark.parametrize("number", [1, 2])
    def test_leaks(rentgpu_emulator, number):
        async def main():
            async with AsyncRentGPU() as gpu:
                await create(gpu, f"forgotten-{{number}}")
        asyncio.run(main())
        assert [charge.name for charge in rentgpu_emulator.running][-1] == f"forgotten-{{number}}"

    def test_afterwards():
        assert os.environ["NETMIND_API_KEY"] == "the-real-one"
    """
    counts, text = run(tmp_path, test)
    assert counts == {"passed": 3, "error": 2}, text
    for number in (1, 2):
        assert text.count(f"forgotten-{number} (container") == 1


def test_no_test_reaches_the_real_service(tmp_path: Path) -> None:
    test = """
    def test_before_there_is_an_emulator(rentgpu_emulator_factory):
        with pytest.raises(ConfigurationError):
            RentGPU()

    def test_with_one(rentgpu_emulator_factory):
        first, second = rentgpu_emulator_factory(), rentgpu_emulator_factory()
        with RentGPU() as gpu:
            gpu.machines.list()
        assert (len(first.requests), len(second.requests)) == (1, 0)

    @pytest.fixture
    def rentgpu_emulator(rentgpu_emulator_factory):
        rentgpu_emulator_factory()
        return rentgpu_emulator_factory()

    def test_with_another_one_in_force(rentgpu, rentgpu_emulator):
        with RentGPU() as gpu:
            gpu.machines.list()
        assert len(rentgpu_emulator.requests) == 1
    """
    counts, text = run(tmp_path, test)
    assert counts == {"passed": 3}, text


@pytest.mark.parametrize("ini", ["", "asyncio_mode = auto"])
def test_a_plain_test_on_an_asynchronous_fixture(ini: str, tmp_path: Path) -> None:
    test = """
    import gc
    import pytest_asyncio

    @pytest_asyncio.fixture
    async def machines(async_rentgpu):
        yield await async_rentgpu.machines.list()
        await async_rentgpu.machines.list()

    def test_it(machines):
        assert len(machines) == 60

    def test_afterwards():
        gc.collect()
    """
    counts, text = run(tmp_path, test, ini=ini)
    assert counts == {"passed": 2}, text


def test_a_world_faults_and_a_clock_of_ones_choice(tmp_path: Path) -> None:
    test = """
    @pytest.fixture
    def rentgpu_emulator(rentgpu_emulator_factory):
        refused = Fault("status", call="get_auth", status=403, times="all")
        return rentgpu_emulator_factory(world="pairs-01", clock=Clock(scale=0, start=0), faults=[refused])

    def test_it(rentgpu_emulator, rentgpu):
        with pytest.raises(PermissionDeniedError):
            rentgpu.auths.get(1)
        rentgpu_emulator.clock.advance(3600)
        assert rentgpu_emulator.clock.now == 3600
    """
    counts, text = run(tmp_path, test)
    assert counts == {"passed": 1}, text


def test_clients_suit_every_world(tmp_path: Path) -> None:
    test = """
    from netmind_rentgpu.emulator import preset_names

    @pytest.fixture(params=preset_names())
    def rentgpu_emulator(rentgpu_emulator_factory, request):
        rentgpu_emulator_factory(world="documented")
        return rentgpu_emulator_factory(world=request.param)

    @pytest.mark.asyncio
    async def test_it(rentgpu, async_rentgpu, rentgpu_emulator):
        with RentGPU() as own:
            for gpu in (rentgpu, own):
                assert len(await asyncio.to_thread(gpu.machines.list)) == len(await async_rentgpu.machines.list()) == 60
        assert len(rentgpu_emulator.requests) == 4
    """
    counts, text = run(tmp_path, test)
    assert counts == {"passed": len(preset_names())}, text


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    test = """
    from netmind_rentgpu import ServiceProfile

    @pytest.fixture
    def rentgpu_profile():
        return ServiceProfile(gpu_names_parameter="gpu")

    @pytest.mark.asyncio
    async def test_it(rentgpu, async_rentgpu, rentgpu_emulator):
        with pytest.raises(InvalidRequestError):
            await async_rentgpu.machines.list(gpu_names=["TITAN_V"])
        with pytest.raises(InvalidRequestError):
            await asyncio.to_thread(rentgpu.machines.list, gpu_names=["TITAN_V"])
        assert [request.query["gpu"] for request in rentgpu_emulator.requests] == ["TITAN_V"] * 2
    """
    counts, text = run(tmp_path, test)
    assert counts == {"passed": 1}, text


def test_code_under_test_finds_the_emulator_and_a_state_file_of_its_own(tmp_path: Path) -> None:
    test = """
    BEFORE = dict(os.environ)
    SEEN = []

    @pytest.mark.parametrize("number", [1, 2])
    def test_it(rentgpu_emulator, number):
        with RentGPU() as gpu:
            assert len(gpu.machines.list()) == 60
        assert os.environ["NETMIND_BASE_URL"] == rentgpu_emulator.url
        SEEN.append(os.environ["NETMIND_RENTGPU_STATE"])
        assert os.path.isdir(os.path.dirname(SEEN[-1]))

    def test_afterwards():
        now = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        before = {name: value for name, value in BEFORE.items() if name != "PYTEST_CURRENT_TEST"}
        assert now == before
        assert len(set(SEEN)) == 2
    """
    counts, text = run(tmp_path, test)
    assert counts == {"passed": 3}, text


def test_no_proxy_comes_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    counts, text = run(tmp_path, PLAIN)
    assert counts == {"passed": 1}, text


def test_it_costs_nothing_where_it_is_not_used(tmp_path: Path) -> None:
    test = """
    def test_it():
        loaded = sorted(name for name in sys.modules if name.startswith(("netmind_rentgpu", "aiohttp", "attr", "orjson")))
        assert loaded == ["netmind_rentgpu", "netmind_rentgpu.testing"]
    """
    (tmp_path / "bare.py").write_text("import sys\n" + dedent(test))
    command = [sys.executable, "-m", "pytest", *QUICK, "bare.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert "1 passed" in done.stdout, done.stdout


def test_the_factory_takes_what_an_emulator_takes() -> None:
    assert set(EmulatorOptions.__annotations__) == set(signature(Emulator).parameters)
