"""Tests that leave something rented in an emulator fail at teardown."""

import re
from pathlib import Path

import pytest
from nested_pytest import run_pytest
from short_forms import thinned

pytestmark = pytest.mark.slow

LEAKS = """
{mark}
def test_leaks(rentgpu):
    auth = rentgpu.auths.create("a-password")
    machine = rentgpu.machines.list()[0]
    rentgpu.containers.create(
        name="forgotten", auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type=PaymentType.USD
    )

def test_leaks_nothing(rentgpu):
    rentgpu.machines.list()
"""


def test_container_left_rented_fails_the_test(tmp_path: Path) -> None:
    counts, text = run_pytest(tmp_path, LEAKS.format(mark=""))
    assert counts == {"passed": 2, "error": 1}
    assert "ERROR at teardown of test_leaks" in text
    assert re.search(r"1 still rented, for 0\.\d+ USD an hour:\n  forgotten \(container 1001\): 1 GPU on node-", text)


def test_container_left_rented_by_a_marked_test_is_allowed(tmp_path: Path) -> None:
    counts, text = run_pytest(tmp_path, LEAKS.format(mark="@pytest.mark.rentgpu_may_leave_rented"))
    assert counts == {"passed": 2}, text
    assert "@pytest.mark.rentgpu_may_leave_rented: the test does not fail" in run_pytest(tmp_path, "", "--markers")[1]


def test_containers_left_in_every_emulator_of_the_factory_are_reported(tmp_path: Path) -> None:
    test = """
    @pytest.mark.asyncio
    async def test_leaks(rentgpu_emulator_factory):
        for name in ("in-the-first", "in-the-second"):
            emulator = rentgpu_emulator_factory()
            async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
                await create(gpu, name)
    """
    counts, text = run_pytest(tmp_path, test)
    assert counts == {"passed": 1, "error": 1}
    assert text.count("in-the-first (container 1001)") == 1
    assert text.count("in-the-second (container 1001)") == 1


def test_create_that_the_service_does_late_fails_the_test(tmp_path: Path) -> None:
    test = """
    def test_leaks(rentgpu, rentgpu_emulator):
        auth = rentgpu.auths.create("a-password")
        node_name = rentgpu.machines.list()[0].node_name
        rentgpu_emulator.faults.add(Fault("late commit", seconds=60))
        with pytest.raises(APIConnectionError):
            rentgpu.containers.create(
                name="x", auth_id=auth.id, node_name=node_name, image_template_id=1, payment_type=PaymentType.USD
            )
    """
    counts, text = run_pytest(tmp_path, test)
    assert counts == {"passed": 1, "error": 1}
    assert "1 still to be rented, for 0.0" in text


def test_container_left_by_an_earlier_test_does_not_fail_a_later_test(tmp_path: Path) -> None:
    counts, text = run_pytest(tmp_path, file="plugin_leaks_across_tests.py")
    assert counts == {"passed": 5, "error": 1}, text
    assert "ERROR at teardown of test_2_leaks_after_a_reset" in text
    assert "1 still rented" in text
    assert "  forgotten (container 1001)" in text


@pytest.mark.parametrize("scope", thinned(["function", "module", "session"], every=3))
def test_container_left_in_an_emulator_of_the_users_own_fails_the_test(tmp_path: Path, scope: str) -> None:
    counts, text = run_pytest(tmp_path, file="plugin_own_emulator.py", SCOPE=scope)
    assert counts == {"passed": 2, "error": 1}, text
    assert "ERROR at teardown of test_leaks" in text
    assert "1 still rented" in text
    assert "forgotten (container 1002)" in text
    assert "from-before" not in text.partition("=== ERRORS")[2].partition("short test summary")[0]
