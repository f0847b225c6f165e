"""JSON -> models: what is read, what is kept aside, what is refused."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from turns import run_at_once

from netmind_rentgpu import (
    Auth,
    Container,
    Image,
    ImageType,
    InvalidArgumentError,
    Machine,
    PaymentType,
    ServiceProfile,
)
from netmind_rentgpu.wire.codec import Codec, ShapeError

# The samples of the vendor's page, with values of the documented types that tell the fields apart.
SAMPLES: dict[type[Any], dict[str, Any]] = {
    Machine: {
        "on_demand": "a",
        "labels": ["b", "c"],
        "node_name": "d",
        "cluster": "e",
        "gpu_name": "f",
        "gpu_count": 1,
        "gpu_memory": 2,
        "cpu_name": "g",
        "cpu_count": 3,
        "cpu_per_gpu": 4,
        "memory_per_gpu": 5,
        "memory_total": 6,
        "disk_per_gpu": 7,
        "disk_total": 8,
        "region": "h",
        "network_upload_speed": 9,
        "network_download_speed": 10,
        "up_time": 11,
        "online_rate": 0.993,
        "price": "0.45",
        "original_price": "0.5",
        "gpu_id": 12,
        "organization": "i",
        "driver_version": "j",
        "cuda_version": "k",
        "nvlink_status": True,
    },
    Auth: {"id": 1, "value": "a-password", "created_at": "2025-05-29T04:47:41.008Z"},
    Image: {
        "name": "a",
        "description": "b",
        "image_name": "c",
        "image_tag": "d",
        "image_label": "e",
        "docker_username": "f",
        "docker_passwd": "g",
        "docker_registry": "https://index.docker.io/v1/",
        "public_port": "h",
        "onstart": "i",
        "options": "j",
        "image_type": 2,
        "id": 1,
        "created_at": "2025-05-29T04:47:41.008Z",
    },
    Container: {
        "name": "a",
        "auth_id": 1,
        "gpu": 2,
        "node_name": "b",
        "image_template_id": 3,
        "enable_vscode": False,
        "enable_jupyter": True,
        "cpu": 4,
        "disk_size": 200,
        "memory": 5,
        "gpu_name": 1,
        "id": 6,
        "ssh": "c",
        "status": 0,
        "exposed_service": "d",
        "vscode_service": "e",
        "jupyter_service": "f",
        "created_at": "2025-05-29T04:47:41.008Z",
    },
}
PARSED = {
    "price": Decimal("0.45"),
    "original_price": Decimal("0.5"),
    "labels": ("b", "c"),
    "image_type": ImageType.CUSTOM,
    "created_at": datetime(2025, 5, 29, 4, 47, 41, 8000, tzinfo=UTC),
}
IDENTITY = {Machine: "node_name", Auth: "id", Image: "id", Container: "id"}
READ_AS = {
    model: {field: PARSED.get(field, value) for field, value in sample.items()} for model, sample in SAMPLES.items()
}
UNREADABLE: list[Any] = [{"a": 1}, [[1]], [None]]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(ServiceProfile())


@pytest.mark.parametrize("model", SAMPLES)
def test_every_documented_field_is_read(codec: Codec, model: type[Any]) -> None:
    found = codec.one(model, SAMPLES[model])
    assert {field: getattr(found, field) for field in SAMPLES[model]} == READ_AS[model]
    assert found.extra == {}


@pytest.mark.parametrize("model", SAMPLES)
@pytest.mark.parametrize("value", [None, "missing"])
def test_any_field_but_the_identity_may_be_null_or_missing(codec: Codec, model: type[Any], value: Any) -> None:
    for field in SAMPLES[model].keys() - {IDENTITY[model]}:
        payload = {**SAMPLES[model], field: None}
        if value == "missing":
            del payload[field]
        found = codec.one(model, payload)
        assert {name: getattr(found, name) for name in SAMPLES[model]} == {**READ_AS[model], field: None}
        assert found.extra == {}, field


@pytest.mark.parametrize("model", SAMPLES)
def test_object_without_its_identity_is_refused(codec: Codec, model: type[Any]) -> None:
    identity = IDENTITY[model]
    rest = {name: value for name, value in SAMPLES[model].items() if name != identity}
    for payload in (rest, *({**rest, identity: value} for value in (None, *UNREADABLE))):
        with pytest.raises(ShapeError) as caught:
            codec.one(model, payload)
        assert caught.value.json_path == f"$.{identity}"


@pytest.mark.parametrize("model", SAMPLES)
def test_unreadable_value_is_none_and_kept_in_extra(codec: Codec, model: type[Any]) -> None:
    for field in SAMPLES[model].keys() - {IDENTITY[model]}:
        for value in UNREADABLE:
            found = codec.one(model, {**SAMPLES[model], field: value, "new": 1})
            assert {name: getattr(found, name) for name in SAMPLES[model]} == {**READ_AS[model], field: None}
            assert found.extra == {field: value, "new": 1}


def test_value_of_another_type_is_not_converted(codec: Codec) -> None:
    payload = {
        **SAMPLES[Container],
        "name": 5,
        "gpu": "2",
        "ssh": False,
        "enable_vscode": 1,
        "cpu": "4",
        "auth_id": True,
    }
    found = codec.one(Container, payload)
    assert (found.name, found.gpu, found.ssh, found.enable_vscode, found.cpu, found.auth_id) == (None,) * 6
    assert found.extra == {"name": 5, "gpu": "2", "ssh": False, "enable_vscode": 1, "cpu": "4", "auth_id": True}


def test_whole_floats_are_read_as_integers(codec: Codec) -> None:
    found = codec.one(Container, {**SAMPLES[Container], "id": 6.0, "gpu": 2.0, "cpu": 7.5, "auth_id": 1.5})
    assert (found.id, type(found.id), found.gpu, found.cpu, found.auth_id) == (6, int, 2, 7.5, None)
    assert found.extra == {"auth_id": 1.5}
    with pytest.raises(ShapeError):
        codec.one(Container, {"id": 1e300})


@pytest.mark.parametrize(
    ("value", "price"),
    [("0.45", "0.45"), (0.25, "0.25"), (1, "1"), (" 2.50 ", "2.50"), ("0", "0"), ("-0.00", "0.00"), ("1e-3", "0.001")],
)
def test_price_is_read_as_an_exact_decimal(codec: Codec, value: Any, price: str) -> None:
    assert str(codec.one(Machine, {"node_name": "n", "price": value}).price) == price


@pytest.mark.parametrize(
    "value", ["", "free", "NaN", "Infinity", True, [], "1e999999999", "1e-999999999", "-1", -0.5, "-1e-18"]
)
def test_unreadable_price_is_none_and_kept_in_extra(codec: Codec, value: Any) -> None:
    found = codec.one(Machine, {"node_name": "n", "price": value})
    assert found.price is None
    assert found.extra == {"price": value}


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2025-05-29T04:47:41.008Z", datetime(2025, 5, 29, 4, 47, 41, 8000, tzinfo=UTC)),
        ("2025-05-29T04:47:41", datetime(2025, 5, 29, 4, 47, 41, tzinfo=UTC)),
        ("2024-11-13 09:00:19", datetime(2024, 11, 13, 9, 0, 19, tzinfo=UTC)),
        ("2025-05-29T04:47:41.123456", datetime(2025, 5, 29, 4, 47, 41, 123456, tzinfo=UTC)),
        ("2025-05-29T04:47:41+08:00", datetime(2025, 5, 29, 4, 47, 41, tzinfo=timezone(timedelta(hours=8)))),
    ],
)
def test_moment_without_a_zone_is_read_as_utc(codec: Codec, value: str, moment: datetime) -> None:
    found = codec.one(Auth, {"id": 1, "created_at": value}).created_at
    assert found == moment
    assert found is not None
    assert found.tzinfo is not None


@pytest.mark.parametrize("value", ["yesterday", "", 1732000000, "2025-13-01T00:00:00Z"])
def test_unreadable_moment_is_none_and_kept_in_extra(codec: Codec, value: Any) -> None:
    found = codec.one(Auth, {"id": 1, "created_at": value})
    assert (found.created_at, found.extra) == (None, {"created_at": value})


def test_gpu_name_is_read_as_a_number_or_a_text(codec: Codec) -> None:
    assert codec.one(Container, {"id": 1, "gpu_name": "RTX"}).gpu_name == "RTX"
    assert codec.one(Container, {"id": 1, "gpu_name": 7}).gpu_name == 7


def test_unknown_members_of_enumerations_are_kept(codec: Codec) -> None:
    assert codec.one(Image, {"id": 1, "image_type": 0}).image_type == ImageType.OFFICIAL
    assert codec.one(Image, {"id": 1, "image_type": 9}).image_type == ImageType(9)
    assert codec.one(Image, {"id": 1, "image_type": "SHARED"}).image_type == ImageType("SHARED")
    assert codec.one(Container, {"id": 1, "status": "up"}).status == "up"


def test_numbers_of_enumerations_are_those_of_the_profile() -> None:
    profile = ServiceProfile(
        image_types={"CUSTOM": 0}, payment_types={"CNY": 5}, container_statuses={"RUNNING": 3, "GONE": 4}
    )
    codec = Codec(profile)
    assert codec.one(Image, {"id": 1, "image_type": 0}).image_type == ImageType.CUSTOM
    assert codec.payment_type_number(PaymentType.CNY) == 5
    assert codec.image_type_number("CUSTOM") == 0
    container = codec.one(Container, {"id": 1, "status": 3, "new": 1})
    assert (container.status, container.status_name, container.extra) == (3, "RUNNING", {"new": 1})
    assert codec.one(Container, {"id": 1, "status": 9}).status_name is None
    for status in (None, "x", [3]):
        assert codec.one(Container, {"id": 1, "status": status}).status_name is None


def test_payment_type_without_a_number_is_refused(codec: Codec) -> None:
    assert codec.payment_type_number(PaymentType.USD) == 0
    assert codec.payment_type_number("NMT") == codec.payment_type_number("nmt") == 1
    assert codec.payment_type_number(17) == 17
    for value in (PaymentType("EUR"), "us", None, True, 1.0):
        with pytest.raises(InvalidArgumentError, match=r"payment_type: .*USD, NMT, CNY"):
            codec.payment_type_number(value)  # type: ignore[arg-type]  # what a caller without a type checker may pass


def test_derived_fields_are_not_read_from_the_wire(codec: Codec) -> None:
    found = codec.one(Container, {"id": 1, "status_name": "x", "extra": "y"})
    assert found.status_name is None
    assert found.extra == {"status_name": "x", "extra": "y"}


@pytest.mark.parametrize(
    ("payload", "problem"),
    [(None, "empty or null"), ([], "a list"), (3, "a number"), (0.5, "a number"), ("x", "a text"), (True, "a boolean")],
)
def test_payload_that_is_no_object_is_refused(codec: Codec, payload: Any, problem: str) -> None:
    with pytest.raises(ShapeError, match=f"is {problem} where an object belongs"):
        codec.one(Container, payload)
    if payload != []:
        with pytest.raises(ShapeError, match=f"is {problem} where a list belongs"):
            run_at_once(codec.many(Container, payload))


def test_list_is_read_around_its_unreadable_items(codec: Codec) -> None:
    items = [{"id": 1}, "two", {"id": None}, None, {"id": 5, "name": "five"}]
    listed = run_at_once(codec.many(Container, items))
    found = listed.items
    assert [(container.id, container.name) for container in found] == [(1, None), (5, "five")]
    assert listed.unreadable_count == 3
    assert [error.json_path for error in listed.unreadable] == ["$[1]", "$[2].id", "$[3]"]
    assert run_at_once(codec.ids([{"id": 1}, "two", {"id": None}, None, {"id": 5.0}, {}])) == [
        1,
        None,
        None,
        None,
        5,
        None,
    ]


def test_number_of_an_enumeration_has_at_most_31_bits(codec: Codec) -> None:
    assert codec.payment_type_number(2**31 - 1) == 2**31 - 1
    for number in (2**31, -1):
        with pytest.raises(InvalidArgumentError, match="must be a number from 0 to 2147483647"):
            codec.payment_type_number(number)


def test_float_beyond_what_floats_count_exactly_is_no_whole_number(codec: Codec) -> None:
    assert codec.one(Container, {"id": 1, "gpu": 2.0**53}).gpu == 2**53
    found = codec.one(Container, {"id": 1, "gpu": 2.0**53 + 2})
    assert (found.gpu, found.extra) == (None, {"gpu": 2.0**53 + 2})
