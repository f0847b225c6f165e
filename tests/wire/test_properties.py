"""Random answers: each becomes a model or an error of the tree, and readable fields are kept."""

import pickle
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from turns import run_at_once

from netmind_rentgpu import APIStatusError, Auth, Container, Image, Machine, ServiceProfile, UnexpectedResponseError
from netmind_rentgpu.wire.codec import Codec, ShapeError
from netmind_rentgpu.wire.messages import RawResponse, Request
from netmind_rentgpu.wire.responses import payload

MODELS = [Machine, Auth, Image, Container]
IDENTITY = {Machine: "node_name", Auth: "id", Image: "id", Container: "id"}
TEXT = {
    Machine: "on_demand node_name cluster gpu_name cpu_name region organization driver_version cuda_version",
    Auth: "value",
    Image: "name description image_name image_tag image_label docker_username docker_passwd docker_registry public_port "
    "onstart options",
    Container: "name node_name ssh exposed_service vscode_service jupyter_service",
}
NUMBER = {
    Machine: "gpu_count gpu_memory cpu_count cpu_per_gpu memory_per_gpu memory_total disk_per_gpu disk_total "
    "network_upload_speed network_download_speed up_time online_rate",
    Auth: "",
    Image: "",
    Container: "cpu disk_size memory",
}
WHOLE = {Machine: "gpu_id", Auth: "id", Image: "id", Container: "id auth_id gpu image_template_id status gpu_name"}
FLAG = {Machine: "nvlink_status", Auth: "", Image: "", Container: "enable_vscode enable_jupyter"}
CODEC = Codec(ServiceProfile(container_statuses={"RUNNING": 1}))

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)


@st.composite
def documented(draw: st.DrawFn, model: type[Any]) -> dict[str, Any]:
    """Draw a payload as it is documented."""
    found: dict[str, Any] = {}
    for names, values in (
        (TEXT[model], st.text(max_size=20)),
        (NUMBER[model], st.integers(0, 10**6) | st.floats(0, 1e6)),
        (WHOLE[model], st.integers(0, 2**31)),
        (FLAG[model], st.booleans()),
    ):
        found |= {name: draw(values) for name in names.split()}
    if model is not Machine:
        found["created_at"] = draw(st.datetimes(timezones=st.just(UTC))).isoformat()
    return found


@st.composite
def damaged(draw: st.DrawFn) -> tuple[type[Any], dict[str, Any], dict[str, Any]]:
    """Draw a documented payload and the same with fields removed, nulled, retyped and added."""
    model = draw(st.sampled_from(MODELS))
    whole = draw(documented(model))
    changed = dict(whole)
    for name in draw(st.lists(st.sampled_from(sorted(whole)), max_size=6, unique=True)):
        match draw(st.sampled_from(["remove", "null", "retype"])):
            case "remove":
                del changed[name]
            case "null":
                changed[name] = None
            case "retype":
                changed[name] = draw(json_values)
    changed |= draw(
        st.dictionaries(st.text(min_size=1, max_size=8), json_values, max_size=3).map(
            lambda d: {f"x{k}": v for k, v in d.items()}
        )
    )
    return model, whole, changed


@given(model=st.sampled_from(MODELS), value=json_values)
def test_any_json_is_a_model_or_a_shape_error(model: type[Any], value: Any) -> None:
    try:
        found = CODEC.one(model, value)
    except ShapeError:
        return
    assert isinstance(found, model)
    assert pickle.loads(pickle.dumps(found)) is not None
    hash(found)


@given(damaged())
def test_readable_fields_of_a_damaged_payload_are_kept(drawn: tuple[type[Any], dict[str, Any], dict[str, Any]]) -> None:
    model, whole, changed = drawn
    try:
        found = CODEC.one(model, changed)
    except ShapeError as error:
        assert error.json_path == f"$.{IDENTITY[model]}"
        assert changed.get(IDENTITY[model], None) != whole[IDENTITY[model]] or type(changed[IDENTITY[model]]) is bool
        return
    intact = CODEC.one(model, whole)
    for name, value in changed.items():
        if name not in whole:
            assert found.extra[name] == value
        elif value is whole[name]:
            assert getattr(found, name) == getattr(intact, name)
        elif getattr(found, name) is None and value is not None:
            assert found.extra[name] == value


@given(st.lists(json_values, max_size=6), st.sampled_from(MODELS))
def test_list_loses_only_items_without_identity(items: list[Any], model: type[Any]) -> None:
    good: dict[str, Any] = {IDENTITY[model]: "n" if model is Machine else 1}
    listed = run_at_once(CODEC.many(model, [*items, good]))
    found = listed.items
    assert len(found) + listed.unreadable_count == len(items) + 1
    assert getattr(found[-1], IDENTITY[model]) == good[IDENTITY[model]]


headers = st.dictionaries(
    st.sampled_from(["retry-after", "location", "x-request-id"]), st.text(st.characters(codec="utf-8"), max_size=40)
)
bodies = st.binary(max_size=200) | json_values.map(orjson.dumps) | st.text().map(str.encode)


@given(status=st.integers(200, 599), headers=headers, body=bodies, key=st.sampled_from(["detail", "errors"]))
def test_any_response_is_a_payload_or_an_error(status: int, headers: dict[str, str], body: bytes, key: str) -> None:
    request = Request(method="POST", path="/x", secrets=("secret-1",))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    try:
        answer = RawResponse(status, headers, body)
        run_at_once(payload(request, answer, validation_errors_key=key, token="secret-2", now=lambda: now))
    except (APIStatusError, UnexpectedResponseError) as error:
        assert error.status == status
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    else:
        assert 200 <= status < 300


@pytest.mark.parametrize("model", MODELS)
def test_documented_payloads_name_every_field(model: type[Any]) -> None:
    named = {*TEXT[model].split(), *NUMBER[model].split(), *WHOLE[model].split(), *FLAG[model].split()}
    others = {"created_at", "extra", "status_name", "labels", "price", "original_price", "image_type"}
    assert named == {field.name for field in model.__attrs_attrs__} - others
