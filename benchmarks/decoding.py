"""A page of 100 containers, unknown fields kept, beside orjson and the bare constructor on the same data."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import orjson

from benchmarks.measure import report
from benchmarks.server import CONTAINER
from netmind_rentgpu import Container, ServiceProfile
from netmind_rentgpu.wire.codec import Codec

LIMIT = 1.5
PAGE = orjson.dumps([{**CONTAINER, "id": number, "new_field": "x"} for number in range(1, 101)])


def _bare() -> list[Container]:
    found = []
    for item in orjson.loads(PAGE):
        extra = {"new_field": item.pop("new_field")}
        item["created_at"] = datetime.fromisoformat(item["created_at"])
        found.append(Container(**item, extra=extra))
    return found


def _others() -> dict[str, Callable[[], object]]:
    """Return what is shown beside, where it is installed."""
    found: dict[str, Callable[[], object]] = {}
    fields = {name: type(value) for name, value in CONTAINER.items()} | {"created_at": datetime}
    try:
        import msgspec

        struct = msgspec.defstruct("Struct", list(fields.items()), frozen=True)
        decoder: Any = msgspec.json.Decoder(list[struct])  # type: ignore[valid-type]  # made at run time
        found["msgspec (unknown fields dropped)"] = lambda: decoder.decode(PAGE)
    except ImportError:
        print("msgspec is not installed and not shown")
    try:
        import pydantic

        definitions: dict[str, Any] = {name: (kind, ...) for name, kind in fields.items()}
        model: Any = pydantic.create_model(
            "Model", __config__=pydantic.ConfigDict(extra="allow", frozen=True), **definitions
        )
        adapter: Any = pydantic.TypeAdapter(list[model])
        found["pydantic"] = lambda: adapter.validate_json(PAGE)
    except ImportError:
        print("pydantic is not installed and not shown")
    return found


def _decoded(codec: Codec) -> list[Container]:
    steps = codec.many(Container, orjson.loads(PAGE))
    try:
        while True:
            next(steps)
    except StopIteration as end:
        found: list[Container] = end.value.items
        return found


def run(rounds: int) -> bool:
    """Measure the microseconds for each container."""
    codec = Codec(ServiceProfile())
    assert _decoded(codec) == _bare()
    candidates: dict[str, Callable[[], object]] = {
        "orjson and the bare constructor": _bare,
        "the client's codec": lambda: _decoded(codec),
        **_others(),
    }
    found = []
    for _ in range(rounds):
        one = {}
        for name, candidate in candidates.items():
            began = time.perf_counter()
            for _ in range(20):
                candidate()
            one[name] = (time.perf_counter() - began) / 2000 * 1e6
        found.append(one)
    title = "Decoding a page of 100 containers, each"
    return report(title, found, "orjson and the bare constructor", "us", {"the client's codec": LIMIT})
