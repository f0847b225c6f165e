"""The client fixtures of the pytest plugin, under each plugin that runs async tests."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from nested_pytest import ANYIO, QUICK, own_folder, run_pytest
from short_forms import thinned

pytestmark = pytest.mark.slow

PLAIN = """
def test_sync(rentgpu, rentgpu_emulator):
    assert type(rentgpu) is RentGPU
    assert len(rentgpu.machines.list()) == 60
    assert len(rentgpu_emulator.requests.of("list_machines")) == 1
"""


def test_sync_client_works_without_plugins_for_async_tests(tmp_path: Path) -> None:
    counts, text = run_pytest(tmp_path, PLAIN, "-p", "no:anyio", "-p", "no:asyncio")
    assert counts == {"passed": 1}, text


# Per manager: the environment, conftest.py, pytest.ini and the options of the nested run.
MANAGERS: dict[str, tuple[dict[str, str], str, str, tuple[str, ...]]] = {
    "anyio's marker": ({"MARK": "anyio"}, ANYIO, "", ()),
    "anyio's marker, without pytest-asyncio": ({"MARK": "anyio"}, ANYIO, "", ("-p", "no:asyncio")),
    "anyio's auto mode": ({"MARK": ""}, ANYIO, "anyio_mode = auto", ()),
    "pytest-asyncio, strict": ({"MARK": "asyncio"}, "", "", ()),
    "pytest-asyncio, auto": ({"MARK": ""}, "", "asyncio_mode = auto", ("-p", "no:anyio")),
    **{
        f"pytest-asyncio, a loop for each {scope}": ({"MARK": "asyncio", "LOOP_SCOPE": scope}, "", "", ())
        for scope in ("class", "module", "package", "session")
    },
    "pytest-asyncio, one loop by default": (
        {"MARK": ""},
        "",
        "asyncio_mode = auto\nasyncio_default_test_loop_scope = session\nasyncio_default_fixture_loop_scope = session",
        (),
    ),
}


SHORT = ("anyio's marker", "pytest-asyncio, strict", "pytest-asyncio, auto", "pytest-asyncio, a loop for each session")


@pytest.mark.parametrize(
    "manager",
    [pytest.param(manager, marks=() if manager in SHORT else pytest.mark.full) for manager in MANAGERS],
    ids=MANAGERS,
)
def test_async_client_works_under_each_manager_of_event_loops(manager: str, tmp_path: Path) -> None:
    environment, conftest, ini, options = MANAGERS[manager]
    counts, text = run_pytest(
        tmp_path, "", *options, file="plugin_async_client.py", conftest=conftest, ini=ini, **environment
    )
    assert counts == {"passed": 2}, text


def test_async_client_under_trio_fails_with_an_explanation(tmp_path: Path) -> None:
    test = """
    @pytest.mark.anyio
    async def test_client(async_rentgpu):
        pass
    """
    counts, text = run_pytest(tmp_path, test, conftest=ANYIO.replace('"asyncio"', '"trio"'))
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
    """Install the parts of pytest-asyncio 0.23 that the plugin uses, so that they are found before the real one."""
    site = tmp_path / "site"
    (site / "pytest_asyncio-0.23.8.dist-info").mkdir(parents=True)
    (site / "pytest_asyncio-0.23.8.dist-info" / "METADATA").write_text("Name: pytest-asyncio\nVersion: 0.23.8\n")
    (site / "pytest_asyncio-0.23.8.dist-info" / "entry_points.txt").write_text("[pytest11]\nasyncio = pytest_asyncio\n")
    (site / "pytest_asyncio.py").write_text(OLD_ASYNCIO)
    monkeypatch.setenv("PYTHONPATH", str(site))


@pytest.mark.usefixtures("old_asyncio")
def test_old_pytest_asyncio_prevents_only_the_async_client(tmp_path: Path) -> None:
    test = """
    import pytest_asyncio

    @pytest.mark.asyncio
    async def test_own_client(rentgpu_emulator):
        assert "loop_scope" not in str(pytest_asyncio.__dict__)
        async with AsyncRentGPU() as gpu:
            await gpu.machines.list()

    def test_sync_client(rentgpu):
        rentgpu.machines.list()

    @pytest.mark.asyncio
    async def test_async_client(async_rentgpu):
        pass
    """
    (tmp_path / "tests").mkdir()
    counts, text = run_pytest(tmp_path / "tests", test, "-W", "default::pytest.PytestConfigWarning")
    assert counts == {"passed": 2, "error": 1, "warning": 1}, text
    assert "\nasync_rentgpu needs pytest-asyncio 0.24 or later, or anyio's plugin\n" in text


def test_async_client_works_with_a_pytest_asyncio_without_a_default_scope_for_tests(tmp_path: Path) -> None:
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
    async def test_default(async_rentgpu):
        await async_rentgpu.machines.list()

    @pytest.mark.asyncio(scope="session")
    async def test_scope(async_rentgpu):
        await async_rentgpu.machines.list()
    """
    counts, text = run_pytest(tmp_path, test, "-W", "default::pytest.PytestDeprecationWarning", conftest=conftest)
    assert counts.pop("warning", 1) == 1
    assert counts == {"passed": 2}, text


def test_async_client_works_in_a_loop_that_the_test_runs_itself(tmp_path: Path) -> None:
    test = """
    def test_own_loop(async_rentgpu):
        async def main():
            async with async_rentgpu as gpu:
                return await gpu.machines.list()
        assert len(asyncio.run(main())) == 60

    def test_unused(async_rentgpu):
        pass
    """
    counts, text = run_pytest(tmp_path, test)
    assert counts == {"passed": 2}, text


def test_both_clients_see_one_service(tmp_path: Path) -> None:
    test = """
    @pytest.mark.asyncio
    async def test_both(rentgpu, async_rentgpu):
        auth = await async_rentgpu.auths.create("a-password")
        assert (await asyncio.to_thread(rentgpu.auths.get, auth.id)).value == "a-password"
    """
    counts, text = run_pytest(tmp_path, test)
    assert counts == {"passed": 1}, text


@pytest.mark.parametrize("ini", thinned(["", "asyncio_mode = auto"], every=2))
def test_async_client_works_in_an_async_fixture_of_a_plain_test(ini: str, tmp_path: Path) -> None:
    test = """
    import gc
    import pytest_asyncio

    @pytest_asyncio.fixture
    async def machines(async_rentgpu):
        yield await async_rentgpu.machines.list()
        await async_rentgpu.machines.list()

    def test_plain(machines):
        assert len(machines) == 60

    def test_afterwards():
        gc.collect()
    """
    counts, text = run_pytest(tmp_path, test, ini=ini)
    assert counts == {"passed": 2}, text


def test_clients_use_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    counts, text = run_pytest(tmp_path, PLAIN)
    assert counts == {"passed": 1}, text


def test_clients_use_the_profile_of_the_users_own_fixture(tmp_path: Path) -> None:
    test = """
    from netmind_rentgpu import ServiceProfile

    @pytest.fixture
    def rentgpu_profile():
        return ServiceProfile(gpu_names_parameter="gpu")

    @pytest.mark.asyncio
    async def test_profile(rentgpu, async_rentgpu, rentgpu_emulator):
        with pytest.raises(InvalidRequestError):
            await async_rentgpu.machines.list(gpu_names=["TITAN_V"])
        with pytest.raises(InvalidRequestError):
            await asyncio.to_thread(rentgpu.machines.list, gpu_names=["TITAN_V"])
        assert [request.query["gpu"] for request in rentgpu_emulator.requests] == ["TITAN_V"] * 2
    """
    counts, text = run_pytest(tmp_path, test)
    assert counts == {"passed": 1}, text


def test_plugin_imports_nothing_where_no_fixture_is_used(tmp_path: Path) -> None:
    test = """
    def test_modules():
        loaded = sorted(name for name in sys.modules if name.startswith(("netmind_rentgpu", "aiohttp", "attr", "orjson")))
        assert loaded == ["netmind_rentgpu", "netmind_rentgpu.testing"]
    """
    (tmp_path / "bare.py").write_text("import sys\n" + dedent(test))
    command = [sys.executable, "-m", "pytest", *QUICK, own_folder(tmp_path), "bare.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, cwd=tmp_path)
    assert "1 passed" in done.stdout, done.stdout
