"""Tests that passed although nothing has met a fault that they added fail at teardown."""

from pathlib import Path

import pytest
from nested_pytest import run_pytest
from short_forms import thinned

from netmind_rentgpu.emulator import Fault
from netmind_rentgpu.emulator.faults import Faults

pytestmark = pytest.mark.slow

UNMET = """
{mark}
def test_adds_an_unmet_fault(rentgpu, rentgpu_emulator):
    rentgpu_emulator.faults.add(Fault("status", call="get_image", status=502))
    rentgpu.machines.list()

def test_meets_its_fault(rentgpu, rentgpu_emulator):
    rentgpu_emulator.faults.add(Fault("status", call="list_machines", status=403))
    with pytest.raises(PermissionDeniedError):
        rentgpu.machines.list()
"""


def test_unmet_fault_fails_the_test(tmp_path: Path) -> None:
    counts, text = run_pytest(tmp_path, UNMET.format(mark=""))
    assert counts == {"passed": 2, "error": 1}, text
    assert "ERROR at teardown of test_adds_an_unmet_fault" in text
    assert "\nnothing has met 1 of the test's faults" in text
    assert (
        "\n  {'what': 'status', 'call': 'get_image', 'when': 'before', 'status': 502, 'nth': 1, 'times': 1}\n" in text
    )
    assert "'call': 'list_machines'" not in text


def test_unmet_fault_of_a_marked_test_is_allowed(tmp_path: Path) -> None:
    counts, text = run_pytest(tmp_path, UNMET.format(mark="@pytest.mark.rentgpu_may_leave_unmet_faults"))
    assert counts == {"passed": 2}, text
    assert "@pytest.mark.rentgpu_may_leave_unmet_faults: the test does not" in run_pytest(tmp_path, "", "--markers")[1]


def test_unmet_faults_in_every_emulator_of_the_factory_are_reported(tmp_path: Path) -> None:
    test = """
    def test_adds_unmet_faults(rentgpu_emulator_factory):
        rentgpu_emulator_factory(faults=[Fault("drop", call="get_auth"), Fault("drop", call="list_machines")])
        second = rentgpu_emulator_factory(faults=[Fault("drop", call="get_image")])
        second.faults.add(Fault("drop", call="create_image"))
        with RentGPU(retries=0) as gpu, pytest.raises(APIConnectionError):
            gpu.machines.list()
    """
    counts, text = run_pytest(tmp_path, test)
    assert counts == {"passed": 1, "error": 1}, text
    assert "nothing has met 3 of the test's faults" in text
    assert [
        text.count(f"  {{'what': 'drop', 'call': '{call}',") for call in ("get_auth", "get_image", "create_image")
    ] == [
        1,
        1,
        1,
    ]
    assert "'call': 'list_machines'" not in text


def test_unmet_fault_of_a_test_that_did_not_pass_is_not_reported(tmp_path: Path) -> None:
    test = """
    def test_fails(rentgpu_emulator):
        rentgpu_emulator.faults.add(Fault("drop"))
        raise AssertionError("the test's own")

    def test_is_skipped(rentgpu_emulator):
        rentgpu_emulator.faults.add(Fault("drop"))
        pytest.skip("halfway")

    @pytest.mark.xfail(strict=True)
    def test_fails_as_expected(rentgpu_emulator_factory):
        rentgpu_emulator_factory(faults=[Fault("drop")])
        raise AssertionError("the test's own")
    """
    counts, text = run_pytest(tmp_path, test)
    assert counts == {"failed": 1, "skipped": 1, "xfailed": 1}, text
    assert "nothing has met" not in text


@pytest.mark.parametrize("scope", thinned(["session", "function"], every=2))
def test_unmet_fault_of_the_users_own_emulator_is_reported_only_if_the_test_added_it(
    tmp_path: Path, scope: str
) -> None:
    counts, text = run_pytest(tmp_path, file="plugin_own_faults.py", SCOPE=scope)
    assert counts == {"passed": 4, "error": 2}, text
    assert "ERROR at teardown of test_adds_an_unmet_fault" in text
    assert "ERROR at teardown of test_adds_a_fault_like_that_of_the_fixture" in text
    assert text.count("nothing has met 1 of the test's faults") == 2
    assert text.count("  {'what': 'drop', 'call': 'create_image',") == 1
    assert text.count("  {'what': 'drop', 'call': 'get_auth',") == 1
    assert "'call': 'stop_container'" not in text


def test_fault_with_a_probability_is_met_once_chance_decided_about_a_request(tmp_path: Path) -> None:
    test = """
    def test_chance_decides(rentgpu, rentgpu_emulator):
        rentgpu_emulator.faults.add(Fault("drop", call="list_machines", probability=0))
        rentgpu.machines.list()

    def test_chance_decides_nothing(rentgpu, rentgpu_emulator):
        rentgpu_emulator.faults.add(Fault("drop", call="list_machines", probability=0, nth=2))
        rentgpu.machines.list()
    """
    counts, text = run_pytest(tmp_path, test)
    assert counts == {"passed": 2, "error": 1}, text
    assert "ERROR at teardown of test_chance_decides_nothing" in text


def test_cleared_fault_stays_unmet_until_the_emulator_is_reset(tmp_path: Path) -> None:
    test = """
    def test_clears_an_unmet_fault(rentgpu, rentgpu_emulator):
        rentgpu_emulator.faults.add(Fault("drop", call="list_machines"))
        rentgpu_emulator.faults.clear()
        rentgpu.machines.list()
        assert list(rentgpu_emulator.faults) == []
        assert rentgpu_emulator.faults.unmet == (Fault("drop", call="list_machines"),)

    def test_clears_and_resets(rentgpu_emulator):
        rentgpu_emulator.faults.add(Fault("drop", call="list_machines"))
        rentgpu_emulator.faults.clear()
        rentgpu_emulator.faults.add(Fault("drop", call="get_auth"))
        rentgpu_emulator.reset()
        assert rentgpu_emulator.faults.unmet == ()
    """
    counts, text = run_pytest(tmp_path, test)
    assert counts == {"passed": 2, "error": 1}, text
    assert "ERROR at teardown of test_clears_an_unmet_fault" in text


def test_unmet_fault_equal_to_an_earlier_one_is_reported_after_a_reset(tmp_path: Path) -> None:
    test = """
    @pytest.fixture
    def rentgpu_emulator():
        with Emulator() as emulator:
            emulator.faults.add(Fault("drop", call="get_auth"))
            yield emulator

    def test_leaves_the_earlier_fault(rentgpu_emulator):
        pass

    def test_adds_an_equal_fault(rentgpu_emulator):
        rentgpu_emulator.reset()
        rentgpu_emulator.faults.add(Fault("drop", call="get_auth"))
    """
    counts, text = run_pytest(tmp_path, test)
    assert counts == {"passed": 2, "error": 1}, text
    assert "ERROR at teardown of test_adds_an_equal_fault" in text


def test_leak_and_unmet_fault_of_one_test_are_reported_together(tmp_path: Path) -> None:
    test = """
    @pytest.mark.asyncio
    async def test_leaves_both(rentgpu_emulator, async_rentgpu):
        rentgpu_emulator.faults.add(Fault("drop", call="get_auth"))
        await create(async_rentgpu, "forgotten")
    """
    counts, text = run_pytest(tmp_path, test)
    assert counts == {"passed": 1, "error": 1}, text
    assert "forgotten (container 1001)" in text
    assert "nothing has met 1 of the test's faults" in text


def test_fault_is_listed_as_unmet_until_one_request_meets_it() -> None:
    never, often = Fault("drop", call="get_auth"), Fault("drop", call="list_machines", times=3)
    faults = Faults(7, [never])
    faults.add(often)
    assert faults.unmet == (never, often)
    assert faults.meet("list_machines", "GET", "/v1/rentgpu/machines") == often
    assert faults.unmet == (never,)
    faults.clear()
    faults.clear()
    assert (list(faults), faults.unmet) == ([], (never,))
    faults.add(often)
    assert faults.unmet == (never, often)
    faults.reset()
    assert (list(faults), faults.unmet) == ([never], (never,))


def test_fault_of_the_beginning_that_was_met_before_a_reset_is_not_listed_as_unmet() -> None:
    first, other = Fault("drop", call="get_auth"), Fault("drop", call="list_machines")
    faults = Faults(7, [first, other])
    assert faults.meet("get_auth", "GET", "/v1/rentgpu/auths/1") == first
    faults.reset()
    assert (list(faults), faults.unmet) == ([first, other], (other,))
    faults.clear()
    faults.reset()
    assert (list(faults), faults.unmet) == ([first, other], (other,))
    # It is in force all the same.
    assert faults.meet("get_auth", "GET", "/v1/rentgpu/auths/1") == first


def test_fault_that_waits_behind_another_is_listed_as_unmet() -> None:
    first, second = Fault("drop", times=1), Fault("html", times=1)
    faults = Faults(7, [first, second])
    assert faults.meet("get_auth", "GET", "/v1/rentgpu/auths/1") == first
    assert faults.unmet == (second,)
    assert faults.meet("get_auth", "GET", "/v1/rentgpu/auths/1") == second
    assert faults.unmet == ()


def test_stock_out_keeps_the_other_faults_of_a_container_unmet() -> None:
    refused, dies = Fault("stock-out"), Fault("dies")
    faults = Faults(7, [dies, refused])
    faults.start("create_container", "POST", "/v1/rentgpu/containers/").refused()
    assert faults.unmet == (dies,)
    faults.start("create_container", "POST", "/v1/rentgpu/containers/").done()
    assert faults.unmet == ()
