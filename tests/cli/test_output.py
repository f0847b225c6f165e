"""Results on stdout: JSON, CSV, and tables in a pipe; failures of the output itself."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from descriptors import in_place_of, pipe
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.cli.cells import Column
from netmind_rentgpu.cli.output import FORMATS, Format, OutputClosedError, OutputError, Results, write_bytes

NOW = datetime(2027, 5, 20, 15, 0, tzinfo=UTC)
THEN = datetime(2027, 5, 20, 9, 30, 15, 250_000, tzinfo=timezone(timedelta(hours=-3)))
COLUMNS = [
    Column("name", "NAME"),
    Column("count", "COUNT", is_number=True),
    Column("cost", "COST", show=lambda row: f"{row['cost']} coins"),
]
ROWS: list[dict[str, Any]] = [
    {"name": "first", "count": 3, "cost": Decimal("0.1"), "at": THEN, "tags": ["a", "b"], "is_open": True},
    {
        "name": None,
        "count": 12,
        "cost": Decimal("12345678901234567890.123456"),
        "at": None,
        "tags": [],
        "is_open": False,
    },
]


def results(wanted: Format, write: Callable[[bytes], object], *, has_colour: bool = False) -> Results:
    """Return results whose notes are an error."""

    def note(text: str) -> None:
        raise AssertionError(text)

    return Results(wanted, now=lambda: NOW, note=note, has_colour=has_colour, write=lambda data: write(data) and None)


def text_of(wanted: Format, use: Callable[[Results], object], *, has_colour: bool = False) -> str:
    """Return the text that results write, while stdout is a pipe."""
    written = io.BytesIO()
    stdout = pipe()
    with in_place_of(1, stdout.descriptor):
        use(results(wanted, written.write, has_colour=has_colour))
    assert stdout.written() == ""
    return written.getvalue().decode()


def exactly(text: str) -> Any:
    return json.loads(text, parse_float=Decimal)


def test_list_in_json_is_an_array_with_exact_numbers_and_times_in_utc() -> None:
    text = text_of("json", lambda results: results.rows(iter(ROWS), COLUMNS))
    assert exactly(text) == [
        ROWS[0] | {"at": "2027-05-20T12:30:15.250000Z"},
        ROWS[1],
    ]
    assert '"cost": 0.1,' in text
    assert '"cost": 12345678901234567890.123456,' in text
    assert text.endswith("\n]\n")


def test_thing_in_json_is_an_object_with_all_its_fields() -> None:
    text = text_of("json", lambda results: results.value(ROWS[1], COLUMNS[:1]))
    assert exactly(text) == ROWS[1]


def test_empty_list_is_an_empty_array_in_json_and_nothing_in_lines_and_csv() -> None:
    def write(results: Results) -> None:
        results.rows([], COLUMNS)

    assert [text_of(wanted, write) for wanted in ("json", "jsonl", "csv")] == ["[]\n", "", ""]


def test_list_in_lines_of_json_has_an_object_in_each() -> None:
    row = {"text": "two\nlines", "at": THEN, "cost": Decimal("1e-7")}
    text = text_of("jsonl", lambda results: results.rows([row, ROWS[1]], COLUMNS))
    first, second = text.splitlines()
    assert exactly(first) == {
        "text": "two\nlines",
        "at": "2027-05-20T12:30:15.250000Z",
        "cost": Decimal("0.0000001"),
    }
    assert exactly(second) == ROWS[1]
    assert text.endswith("}\n")


offsets = st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=9), st.datetimes(timezones=offsets), st.text())
def test_value_in_json_is_read_as_it_was(amount: Decimal, at: datetime, text: str) -> None:
    written = io.BytesIO()
    # Away from the ends of the calendar, which no other zone has.
    at = at.replace(year=min(max(at.year, 2), 9998))
    results("jsonl", written.write).value({"amount": amount, "at": at, "text": text}, ())
    found = exactly(written.getvalue().decode())
    assert (Decimal(found["amount"]), datetime.fromisoformat(found["at"]), found["text"]) == (amount, at, text)


@pytest.mark.parametrize(("wanted", "expected"), [("jsonl", '{"a":1200.0}\n'), ("csv", "a\n1200.0\n")])
def test_duration_is_a_number_of_seconds(wanted: Format, expected: str) -> None:
    assert text_of(wanted, lambda results: results.value({"a": timedelta(minutes=20)}, ())) == expected


def test_csv_has_all_fields_and_nothing_for_none() -> None:
    text = text_of("csv", lambda results: results.rows(ROWS, COLUMNS))
    assert text == (
        "name,count,cost,at,tags,is_open\n"
        'first,3,0.1,2027-05-20T12:30:15.250000Z,"[""a"",""b""]",true\n'
        ",12,12345678901234567890.123456,,[],false\n"
    )


def test_csv_has_the_fields_of_all_rows_in_their_order() -> None:
    text = text_of("csv", lambda results: results.rows([{"a": 1}, {"b": 2, "a": 3}, {}], ()))
    assert text == "a,b\n1,\n3,2\n,\n"


def test_thing_in_csv_is_a_header_and_a_line() -> None:
    text = text_of("csv", lambda results: results.value({"a": {"b": None}, "c": 1.5}, ()))
    assert text == 'a,c\n"{""b"":null}",1.5\n'


@pytest.mark.parametrize(
    "value", ["a,b", 'say "x"', "two\nlines", "\r", "a\r\nb", "", " padded ", "\x1b[31m", "日本", "'"]
)
def test_text_in_csv_is_read_as_it_was(value: str) -> None:
    text = text_of("csv", lambda results: results.rows([{"before": value, "after": "x"}, {"before": "y"}], ()))
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    assert found == [{"before": value, "after": "x"}, {"before": "y", "after": ""}]


def test_text_that_no_stream_can_write_is_spelled_out_in_csv() -> None:
    assert text_of("csv", lambda results: results.rows([{"a": "x\udcff"}], ())) == "a\nx\\udcff\n"


def test_table_in_a_pipe_has_tabs_and_all_columns_without_colour() -> None:
    wide = [{"name": "n" * 300, "count": 5, "cost": 1}, {"count": None, "cost": 2}]
    text = text_of("table", lambda results: results.rows(wide, COLUMNS), has_colour=True)
    assert text == f"NAME\tCOUNT\tCOST\n{'n' * 300}\t5\t1 coins\n\t\t2 coins\n"


def test_empty_table_in_a_pipe_is_its_heading() -> None:
    assert text_of("table", lambda results: results.rows([], COLUMNS)) == "NAME\tCOUNT\tCOST\n"


def test_text_of_others_in_a_table_is_escaped() -> None:
    rows = [
        {"name": "\x1b[2J\x07\x9b\u202eq", "count": 1, "cost": "\r"},
        {"name": "\udc80[red]", "count": 2, "cost": 0},
    ]
    text = text_of("table", lambda results: results.rows(rows, COLUMNS))
    assert text.split("\n")[1:3] == ["\\x1b[2J\\x07\\x9b\\u202eq\t1\t\\r coins", "\\udc80[red]\t2\t0 coins"]


def test_tabs_and_newlines_within_a_value_leave_a_table_its_lines_and_columns() -> None:
    row = {"name": "a\tb\nc", "count": 1, "cost": "2\n3"}
    assert text_of("table", lambda results: results.rows([row], COLUMNS)).split("\n")[1:] == ["a b c\t1\t2 3 coins", ""]
    assert text_of("table", lambda results: results.value(row, COLUMNS)) == "NAME\ta b c\nCOUNT\t1\nCOST\t2 3 coins\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        (2.5, "2.5"),
        (Decimal("0.1"), "0.10"),
        (Decimal("0.125"), "0.125"),
        (["a", None, 3, Decimal(2)], "a, , 3, 2.00"),
        (("x",), "x"),
        ([], ""),
        (THEN, "12:30:15"),
        (THEN - timedelta(days=2), "Tue 18 May 12:30"),
    ],
)
def test_value_in_a_table_is_shown_for_people(value: object, shown: str) -> None:
    assert Column("a", "A").text({"a": value}, NOW) == shown
    assert Column("b", "B").text({"a": value}, NOW) == ""


def test_thing_as_a_table_has_a_line_for_each_field_that_it_has() -> None:
    columns = [*COLUMNS, Column("at", "AT"), Column("absent", "ABSENT")]
    text = text_of("table", lambda results: results.value(ROWS[0] | {"count": None}, columns))
    assert text == "NAME\tfirst\nCOST\t0.1 coins\nAT\t12:30:15\n"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("table", "rg-\\x1b 5\n"),
        ("json", '{\n  "name": "rg-5"\n}\n'),
        ("jsonl", '{"name":"rg-5"}\n'),
        ("csv", "name\nrg-5\n"),
    ],
)
def test_line_of_text_is_an_object_in_other_formats(wanted: Format, expected: str) -> None:
    assert text_of(wanted, lambda results: results.text("rg-\x1b 5", {"name": "rg-5"})) == expected


def test_item_of_a_list_that_goes_on_is_written_as_it_is_or_as_a_line_of_json() -> None:
    written: list[bytes] = []
    results("table", written.append).line(b"\x1b[1m\xff\n", {"text": "x"})
    results("jsonl", written.append).line(b"\xff\n", {"text": "x"})
    assert written == [b"\x1b[1m\xff\n", b'{"text":"x"}\n']


def test_formats_are_those_that_the_option_offers() -> None:
    assert FORMATS == ("table", "json", "jsonl", "csv")


def test_bytes_are_written_whole_and_unchanged() -> None:
    stream = pipe()
    write_bytes(b"", stream.descriptor)
    write_bytes("é\0\r\n".encode(), stream.descriptor)
    assert stream.written() == "é\0\r\n"


@pytest.fixture
def read_slowly() -> Iterator[tuple[int, list[int]]]:
    """Return a pipe that a thread reads in small pieces, and the list of their sizes."""
    stream, sizes = pipe(), list[int]()

    def read() -> None:
        while chunk := os.read(stream.reader, 5000):
            sizes.append(len(chunk))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield stream.descriptor, sizes
    finally:
        os.close(stream.descriptor)
        thread.join(60)
        os.close(stream.reader)
    assert sum(sizes) == 1_000_000


@pytest.mark.parametrize("is_blocking", [True, False])
def test_bytes_beyond_the_room_of_a_pipe_are_written_whole(
    read_slowly: tuple[int, list[int]], *, is_blocking: bool
) -> None:
    # Another program that shares the pipe may have made it non-blocking.
    os.set_blocking(read_slowly[0], is_blocking)
    write_bytes(b"x" * 1_000_000, read_slowly[0])


def test_output_whose_reader_has_left_is_reported_as_closed() -> None:
    stream = pipe()
    os.close(stream.reader)
    with pytest.raises(OutputClosedError, match=r"^the reader of the output has closed it$") as caught:
        write_bytes(b"x", stream.descriptor)
    assert isinstance(caught.value.__cause__, BrokenPipeError)
    os.close(stream.descriptor)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_on_a_full_disk_is_reported_with_its_cause() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        with pytest.raises(OutputError, match=r"^could not write the output: No space left on device$") as caught:
            write_bytes(b"x", full.fileno())
    assert not isinstance(caught.value, OutputClosedError)


def test_output_to_a_descriptor_that_is_not_open_is_reported_with_its_cause() -> None:
    with pytest.raises(OutputError, match=r"^could not write the output: Bad file descriptor$"):
        write_bytes(b"x", -1)
