"""Plain values of models, and the form in which requests are sent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from netmind_rentgpu.requests import ListQuery, MachineQuery, NewAuth, NewContainer, NewImage
from netmind_rentgpu.wire.codec import Codec

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WHOLES = st.integers(-(2**53), 2**53)
ZONES = st.timezones() | st.integers(-720, 720).map(lambda minutes: timezone(timedelta(minutes=minutes)))
# A time that a clock change skips or repeats is equal to no time of another zone, not even to itself in UTC.
MOMENTS = st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=ZONES).filter(  # noqa: DTZ001  # hypothesis adds the zones
    lambda moment: moment.replace(fold=0).utcoffset() == moment.replace(fold=1).utcoffset()
)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXTS,
    int: WHOLES,
    str | None: st.none() | TEXTS,
    int | None: st.none() | WHOLES,
    float | None: st.none() | st.floats(allow_nan=False, allow_infinity=False) | WHOLES,
    bool | None: st.none() | st.booleans(),
    int | str | None: st.none() | WHOLES | TEXTS,
    tuple[str, ...] | None: st.none() | st.lists(TEXTS, max_size=3).map(tuple),
    Decimal | None: st.none() | st.decimals(0, 10**18, allow_nan=False, places=6),
    datetime | None: st.none() | MOMENTS,
    ImageType | None: st.none() | st.sampled_from([ImageType.OFFICIAL, ImageType("new"), ImageType(0), ImageType(7)]),
}
JSON = st.recursive(st.none() | st.booleans() | WHOLES | TEXTS, lambda inner: st.lists(inner, max_size=2), max_leaves=3)


def models(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Draw models with any values that the service may send, fields that nobody documented included."""
    attrs.resolve_types(kind)
    fields = {field.name: VALUES[field.type] for field in attrs.fields(kind) if field.name != "extra"}
    extra = st.dictionaries(TEXTS.filter(lambda name: name not in {*fields, "extra"}), JSON, max_size=2)
    return st.builds(kind, **fields, extra=extra)


@given(model=st.one_of(models(Machine), models(Auth), models(Image), models(Container)))
def test_model_is_equal_to_what_its_plain_values_are_read_as(model: Any) -> None:
    assert type(model).from_dict(model.to_dict(secrets=True)) == model
    sent = orjson.loads(orjson.dumps(model.to_dict(secrets=True, json=True)))
    assert type(model).from_dict(sent) == model


def test_plain_values_keep_prices_and_times_unless_they_have_to_be_json() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    machine = Machine(node_name="n", price=Decimal("0.50"), labels=("a", "b"))
    container = Container(id=1, created_at=moment, status_name="running")
    assert machine.to_dict()["price"] == Decimal("0.50")
    assert machine.to_dict(json=True)["price"] == "0.50"
    assert machine.to_dict()["labels"] == machine.to_dict(json=True)["labels"] == ["a", "b"]
    assert (container.to_dict()["created_at"], container.to_dict()["status_name"]) == (moment, "running")
    assert container.to_dict(json=True)["created_at"] == "2026-01-02T03:04:05+00:00"
    assert list(machine.to_dict()) == [field.name for field in attrs.fields(Machine) if field.name != "extra"]


def test_plain_values_mask_secrets_unless_they_are_asked_for() -> None:
    auth = Auth(id=1, value="canary-1")
    image = Image(
        id=2, docker_passwd="canary-2", image_type=ImageType.CUSTOM, onstart="canary-4", options="-e canary-5"
    )
    unreadable = Auth.from_dict({"id": 3, "value": ["canary-3"], "new": 4})
    assert unreadable.extra == {"value": ["canary-3"], "new": 4}
    assert "canary" not in f"{auth.to_dict()} {image.to_dict()} {unreadable.to_dict()} {auth.to_dict(json=True)}"
    assert (auth.to_dict()["value"], image.to_dict()["image_type"]) == ("***", "CUSTOM")
    assert Auth(id=1).to_dict()["value"] is None
    assert auth.to_dict(secrets=True)["value"] == "canary-1"
    assert image.to_dict(secrets=True)["docker_passwd"] == "canary-2"
    assert image.to_dict(secrets=True)["options"] == "-e canary-5"
    assert unreadable.to_dict(secrets=True)["extra"] == {"value": ["canary-3"], "new": 4}


def test_plain_values_are_the_callers_own() -> None:
    given = {"id": 1, "new": [{"a": [1]}], "extra": {"other": [2]}}
    container = Container.from_dict(given)
    found = container.to_dict()["extra"]
    for values in (found, {"new": given["new"], **given["extra"]}):
        values["new"][0]["a"].append(3)
        values["other"].append(3)
    assert container.extra == {"new": [{"a": [1]}], "other": [2]}


def test_deeply_nested_extra_is_copied() -> None:
    deep: Any = 0
    for _ in range(100_000):
        deep = [deep]
    found = Container.from_dict({"id": 1, "new": deep}).to_dict()["extra"]["new"]
    assert found is not deep


@pytest.mark.parametrize("extra", ["text", None, 5, [1]])
def test_undocumented_field_called_extra_is_kept(extra: Any) -> None:
    assert Machine.from_dict({"node_name": "n", "extra": extra}).extra == {"extra": extra}


def test_unreadable_status_name_is_kept_in_extra() -> None:
    found = Container.from_dict({"id": 1, "status_name": 5})
    assert (found.status_name, found.extra) == (None, {"status_name": 5})


def test_subclass_of_a_model_is_read_as_itself() -> None:
    class Mine(Container):
        __slots__ = ()

    assert type(Mine.from_dict({"id": 1})) is Mine


def test_plain_values_without_what_names_the_thing_are_refused() -> None:
    for model, values in ((Container, {"name": "x"}), (Container, {"id": "1"}), (Machine, {"node_name": None})):
        with pytest.raises(InvalidArgumentError, match=r"^(id|node_name): is "):
            model.from_dict(values)


def test_request_bodies_have_the_documented_fields() -> None:
    codec = Codec(ServiceProfile(payment_types={"USD": 5}))
    assert codec.written(NewAuth(value="password")) == {"value": "password"}
    image = NewImage(name="a", image_name="b", image_tag="c", image_label="d", options="-e X=1")
    assert codec.written(image) == {
        "name": "a",
        "image_name": "b",
        "image_tag": "c",
        "image_label": "d",
        "options": "-e X=1",
    }
    container = NewContainer(
        name="a", auth_id=1, gpu=2, node_name="b", image_template_id=3, payment_type=PaymentType.USD
    )
    body = {"name": "a", "auth_id": 1, "gpu": 2, "node_name": "b", "image_template_id": 3, "payment_type": 5}
    assert codec.written(container) == body
    assert codec.written(attrs.evolve(container, payment_type=7))["payment_type"] == 7
    with pytest.raises(InvalidArgumentError, match="payment_type: the profile has no number for 'NMT'"):
        codec.written(attrs.evolve(container, payment_type="NMT"))


def test_queries_leave_out_what_was_not_asked_for() -> None:
    codec = Codec(ServiceProfile())
    assert codec.query(ListQuery()) == {}
    assert codec.query(ListQuery(marker=7, page_size=20, image_type=0)) == {
        "image_type": "0",
        "limit": "20",
        "marker": "7",
    }
    assert codec.query(MachineQuery(currency="USD")) == {"currency": "USD"}
    query = MachineQuery(
        currency="NMT", region="JP", gpu=2, gpu_names=["a", "b"], min_memory=0, max_disk=9, min_price=1, max_price=2.7
    )
    assert codec.query(query) == {
        "currency": "NMT",
        "region": "JP",
        "gpu": "2",
        "gpu_names": "a,b",
        "min_memory": "0",
        "max_disk": "9",
        "min_price": "1",
    }
    # One parameter cannot hold a count and names.
    other = Codec(ServiceProfile(gpu_names_parameter="gpu"))
    assert other.query(query)["gpu"] == "a,b"
    assert other.query(attrs.evolve(query, gpu_names=None))["gpu"] == "2"


@pytest.mark.parametrize(
    ("kind", "values", "argument"),
    [
        (NewAuth, {"value": "short"}, "value"),
        (NewContainer, {"gpu": 0}, "gpu"),
        (NewContainer, {"gpu": 13}, "gpu"),
        (NewContainer, {"gpu": True}, "gpu"),
        (NewContainer, {"auth_id": "1"}, "auth_id"),
        (NewContainer, {"image_template_id": 2**63}, "image_template_id"),
        (NewContainer, {"node_name": None}, "node_name"),
        (NewContainer, {"name": "\ud800"}, "name"),
        (NewImage, {"options": "--privileged"}, "options"),
        (NewImage, {"description": 1}, "description"),
        (MachineQuery, {"region": 1}, "region"),
        (MachineQuery, {"gpu_names": []}, "gpu_names"),
        (MachineQuery, {"min_memory": 1.5}, "min_memory"),
        (MachineQuery, {"min_price": "nan"}, "min_price"),
        (MachineQuery, {"max_price": float("inf")}, "max_price"),
        (ListQuery, {"marker": 1.0}, "marker"),
        (ListQuery, {"page_size": 0}, "page_size"),
    ],
    ids=str,
)
def test_request_beyond_a_limit_names_the_argument(kind: type[Any], values: dict[str, Any], argument: str) -> None:
    usual: dict[type[Any], dict[str, Any]] = {
        NewContainer: {
            "name": "a",
            "auth_id": 1,
            "gpu": 1,
            "node_name": "b",
            "image_template_id": 1,
            "payment_type": "USD",
        },
        NewImage: {"name": "a", "image_name": "b", "image_tag": "c", "image_label": "d"},
        MachineQuery: {"currency": "USD"},
    }
    kind(**usual.get(kind, {"value": "password"} if kind is NewAuth else {}))
    with pytest.raises(InvalidArgumentError) as caught:
        kind(**{**usual.get(kind, {}), **values})
    assert caught.value.argument == argument


@pytest.mark.parametrize(("sent", "count"), [(8, 8), (8.0, 8), (7.5, None), ("8", None), (True, None), (None, None)])
def test_count_is_a_whole_number_or_none(sent: object, count: int | None) -> None:
    machine = Machine.from_dict({"node_name": "n", "gpu_count": sent, "cpu_count": sent})
    assert machine.gpu_count == machine.cpu_count == count
    assert count is None or type(machine.gpu_count) is int
    assert machine.extra.get("gpu_count") == (sent if count is None else None)
