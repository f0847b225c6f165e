"""Bodies in slices: the same values and verdicts as in one piece, and bounds on what is read."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from turns import counted, run_at_once

from netmind_rentgpu.wire import payload
from netmind_rentgpu.wire.payload import NotJSONError, TooLargeError, parse, parse_in_slices

# Limits so small that short lists meet them all.
SMALL = {"SLICE": 20, "_STRETCH": 7, "_MARKS_PER_TURN": 3}
texts = st.text(alphabet='a"\\[]{}, é\n😀', max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 999) | st.floats(-1, 1) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def verdict(parsed: Any) -> Any:
    """Return what a body holds, or NotJSONError."""
    try:
        return parsed()
    except NotJSONError:
        return NotJSONError


@given(st.lists(values, max_size=8), st.sampled_from([None, 1]), st.booleans())
def test_list_in_slices_is_the_same_as_in_one_piece(items: list[Any], indent: int | None, ascii_only: bool) -> None:
    body = json.dumps(items, indent=indent, ensure_ascii=ascii_only).encode()
    with patch.multiple(payload, **SMALL):
        assert run_at_once(parse_in_slices(body)) == items


@given(st.lists(values, min_size=1, max_size=8), st.data())
def test_damaged_list_in_slices_has_the_same_verdict_as_in_one_piece(items: list[Any], data: st.DataObject) -> None:
    body = bytearray(json.dumps(items).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 1))] = data.draw(
            st.sampled_from([b"", *map(bytes, zip(b'[]{},"\\ 1a'))])
        )
        body = body or bytearray(b" ")
    with patch.multiple(payload, **SMALL):
        assert verdict(lambda: run_at_once(parse_in_slices(bytes(body)))) == verdict(lambda: parse(bytes(body)))


@pytest.mark.parametrize(
    "body",
    [b"[1,%b,2]", b"[%b,1]", b"[1,%b]", b"[1%b", b"[1%b] 2", b"[1%b]]", b"[{%b]}", b'[1,%b"]', b"[1,%b}"],
)
def test_long_list_that_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(NotJSONError):
        run_at_once(parse_in_slices(body % (b" " * 2 * payload.SLICE)))


def test_no_slice_of_a_list_is_longer_than_the_limit() -> None:
    lengths: list[int] = []

    def parse_and_measure(body: bytes) -> Any:
        lengths.append(len(body))
        return parse(body)

    items = [{"name": "n" * (position % 500), "labels": [1, {"a": "]"}]} for position in range(20_000)]
    with patch.object(payload, "parse", parse_and_measure):
        found, turns = counted(parse_in_slices(json.dumps(items).encode()))
    assert found == items
    assert max(lengths) <= payload.SLICE + 2
    assert turns >= len(lengths) > 10


def test_problem_of_a_slice_is_reported_with_its_place() -> None:
    body = b"[" + b'"x",' * 200_000 + b"nul]"
    with (
        patch.object(payload, "MOST_ITEMS", 10**6),
        pytest.raises(NotJSONError, match="counted from byte 78643"),
    ):
        run_at_once(parse_in_slices(body))


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"[" + b"1," * 100_000 + b"1]", "a list of more than 100,000 items"),
        (b"[" + b"{}," * 400_000 + b"1]", "a list of more than 100,000 items"),
        (b'[{"a":[' + b"[]," * 90_000 + b"1]}" + b',{"a":[%b1]}' % (b"[]," * 90_000) * 6 + b"]", "1,000,000 values"),
        (b'[{"name":"%b"}]' % (b"x" * 2**20), "a list with an item of more than 1024 KiB"),
        (b'[{"name":"%b' % (b"x" * 2**22), "a list with an item of more than 1024 KiB"),
        (b"[1,%b]" % (b"[1]," * 2**19), "a list of more than 100,000 items"),
        (b"[[%b1]]" % (b"1," * 2**20), "a list with an item of more than 1024 KiB"),
        (b"[" + b" " * 2**21 + b"]", "a list with an item of more than 1024 KiB"),
        (b'{"name":"%b"}' % (b"x" * 2**20), "an object of more than 1024 KiB"),
        (b'"%b"' % (b"x" * 2**20), "an object of more than 1024 KiB"),
    ],
    ids=[
        "items",
        "objects",
        "values",
        "item",
        "text without an end",
        "lists",
        "list within",
        "blanks",
        "object",
        "text",
    ],
)
def test_value_beyond_a_limit_is_refused(body: bytes, problem: str) -> None:
    with pytest.raises(TooLargeError, match=problem):
        run_at_once(parse_in_slices(body))


def test_values_up_to_the_limits_are_read() -> None:
    assert len(run_at_once(parse_in_slices(b"[" + b"1," * 99_999 + b"1]"))) == 100_000
    [item] = run_at_once(parse_in_slices(b'[{"name":"%b"}]' % (b"x" * (2**20 - 11))))
    assert len(item["name"]) == 2**20 - 11
    assert len(run_at_once(parse_in_slices(b'"%b"' % (b"x" * (2**20 - 2))))) == 2**20 - 2


def test_deep_brackets_are_looked_at_in_turns() -> None:
    body = b"[" + (b"[" * 500 + b"]" * 500 + b",") * 300 + b"1]"
    found, turns = counted(parse_in_slices(body))
    assert len(found) == 301
    assert turns >= 150
