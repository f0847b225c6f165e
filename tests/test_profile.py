"""The profile: the assumptions about a service whose documentation leaves things open."""

import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from netmind_rentgpu import AsyncRentGPU, ConfigurationError, ServiceProfile

WHOLE_FILE = """
authorization = "bare"
gpu_names_parameter = "gpu"
currency = "CNY"
validation_errors_key = "errors"
price_period = 86400
price_basis = "machine"
memory_field = "gpu_memory"
disk_field = "disk_per_gpu"
page_size = 50
list_lag = 2.5
create_lag = 7
delete_lag = 3
deleted_stay_listed = true
ssh_username = "ubuntu"

[image_types]
OFFICIAL = 1
CUSTOM = 7

[payment_types]
USD = 3

[container_statuses]
RUNNING = 2
"""
WHOLE = ServiceProfile(
    authorization="bare",
    gpu_names_parameter="gpu",
    currency="CNY",
    validation_errors_key="errors",
    price_period=timedelta(days=1),
    price_basis="machine",
    memory_field="gpu_memory",
    disk_field="disk_per_gpu",
    page_size=50,
    list_lag=timedelta(seconds=2.5),
    create_lag=timedelta(seconds=7),
    delete_lag=timedelta(seconds=3),
    deleted_stay_listed=True,
    ssh_username="ubuntu",
    image_types={"OFFICIAL": 1, "CUSTOM": 7},
    payment_types={"USD": 3},
    container_statuses={"RUNNING": 2},
)


def test_profile_file_can_set_every_field(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(WHOLE_FILE)
    assert ServiceProfile.from_toml(path) == WHOLE
    default = ServiceProfile()
    assert all(getattr(WHOLE, field.name) != getattr(default, field.name) for field in attrs.fields(ServiceProfile))


def test_client_takes_a_profile_a_path_or_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(WHOLE_FILE)
    assert AsyncRentGPU("t").profile == ServiceProfile()
    assert AsyncRentGPU("t", profile=WHOLE).profile is WHOLE
    assert AsyncRentGPU("t", profile=path).profile == WHOLE
    assert AsyncRentGPU("t", profile=str(path)).profile == WHOLE
    monkeypatch.setenv("NETMIND_RENTGPU_PROFILE", str(path))
    assert AsyncRentGPU("t").profile == WHOLE
    assert AsyncRentGPU("t", profile=ServiceProfile()).profile == ServiceProfile()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("colour = 1", "unknown key colour"),
        ('authorization = "basic"', "authorization must be one of bearer, bare, not 'basic'"),
        ("page_size = 0", "page_size must be a whole number above 0"),
        ("page_size = true", "page_size must be a whole number above 0"),
        ('currency = ""', "currency must be a text"),
        ("currency = 3", "currency must be a text"),
        ("price_period = 0", "price_period must be above 0"),
        ("price_period = inf", "price_period must be a duration"),
        ('list_lag = "soon"', "list_lag must be a duration"),
        ("list_lag = -1", "list_lag must be a duration"),
        ("deleted_stay_listed = 1", "deleted_stay_listed must be true or false"),
        ("payment_types = 3", "payment_types must map each name to a whole number"),
        ('payment_types = {USD = "0"}', "payment_types must map each name to a whole number"),
        ("payment_types = {USD = 0, NMT = 0}", "payment_types maps two names to one number"),
        ("= 3", r"profile\.toml"),
    ],
)
def test_invalid_profile_file_is_refused_with_its_path(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        AsyncRentGPU("t", profile=path)
    assert str(path) in str(caught.value)


def test_missing_or_binary_profile_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        AsyncRentGPU("t", profile=tmp_path / "nowhere.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="binary"):
        AsyncRentGPU("t", profile=tmp_path / "binary.toml")


def test_profiles_are_immutable_values() -> None:
    again = pickle.loads(pickle.dumps(WHOLE))
    assert again == WHOLE
    assert hash(again) == hash(WHOLE)
    assert ServiceProfile() != WHOLE
    numbers: dict[str, int] = {"USD": 9}
    profile = ServiceProfile(payment_types=numbers)
    numbers["USD"] = 1
    assert profile.payment_types["USD"] == 9
    changeable: Any = profile.payment_types
    with pytest.raises(TypeError):
        changeable["USD"] = 1


def test_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    path.write_text("list_lag = 3\n", encoding="utf-8-sig")
    assert ServiceProfile.from_toml(path).list_lag == timedelta(seconds=3)
