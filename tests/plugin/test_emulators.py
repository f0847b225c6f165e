"""The emulators of the pytest plugin: of its fixtures, of its factory, and of the user's own fixtures."""

from inspect import signature
from pathlib import Path

import pytest
from nested_pytest import run_pytest

from netmind_rentgpu.emulator import Emulator, preset_names
from netmind_rentgpu.testing import EmulatorOptions

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("scope", ["function", "session"])
def test_own_emulator_is_in_force_without_a_client_fixture(tmp_path: Path, scope: str) -> None:
    counts, text = run_pytest(tmp_path, file="plugin_own_emulator_alone.py", SCOPE=scope)
    assert counts == {"passed": 3, "error": 2}, text
    for number in (1, 2):
        assert text.count(f"forgotten-{number} (container") == 1


def test_client_without_a_url_never_reaches_the_real_service(tmp_path: Path) -> None:
    counts, text = run_pytest(tmp_path, file="plugin_emulator_in_force.py")
    assert counts == {"passed": 3}, text


def test_factory_takes_a_world_faults_and_a_clock(tmp_path: Path) -> None:
    test = """
    @pytest.fixture
    def rentgpu_emulator(rentgpu_emulator_factory):
        refused = Fault("status", call="get_auth", status=403, times="all")
        return rentgpu_emulator_factory(world="pairs-01", clock=Clock(scale=0, start=0), faults=[refused])

    def test_options(rentgpu_emulator, rentgpu):
        with pytest.raises(PermissionDeniedError):
            rentgpu.auths.get(1)
        rentgpu_emulator.clock.advance(3600)
        assert rentgpu_emulator.clock.now == 3600
    """
    counts, text = run_pytest(tmp_path, test)
    assert counts == {"passed": 1}, text


def test_factory_takes_the_options_of_an_emulator() -> None:
    assert set(EmulatorOptions.__annotations__) == set(signature(Emulator).parameters)


def test_clients_suit_every_world(tmp_path: Path) -> None:
    test = """
    from netmind_rentgpu.emulator import preset_names

    @pytest.fixture(params=preset_names())
    def rentgpu_emulator(rentgpu_emulator_factory, request):
        rentgpu_emulator_factory(world="documented")
        return rentgpu_emulator_factory(world=request.param)

    @pytest.mark.asyncio
    async def test_world(rentgpu, async_rentgpu, rentgpu_emulator):
        with RentGPU() as own:
            for gpu in (rentgpu, own):
                assert len(await asyncio.to_thread(gpu.machines.list)) == len(await async_rentgpu.machines.list()) == 60
        assert len(rentgpu_emulator.requests) == 4
    """
    counts, text = run_pytest(tmp_path, test)
    assert counts == {"passed": len(preset_names())}, text


def test_code_under_test_finds_the_emulator_and_a_state_file_of_its_own(tmp_path: Path) -> None:
    counts, text = run_pytest(tmp_path, file="plugin_environment.py")
    assert counts == {"passed": 3}, text
