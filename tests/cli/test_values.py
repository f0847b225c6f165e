"""The values that texts of the command line stand for, and the texts that values are shown as."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.cli.values import (
    Place,
    PortPair,
    WaitCondition,
    duration,
    moment,
    money,
    place,
    port_pair,
    shown_duration,
    shown_moment,
    shown_money,
    shown_size,
    variable,
    wait_condition,
)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the local time zone to Berlin's, by its rule, because the machine may have no list of zones."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def local(*parts: int, fold: int = 0) -> datetime:
    return datetime(*parts, fold=fold).astimezone()  # type: ignore[arg-type]  # year to microsecond


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("0s", 0),
        ("75m", 4500),
        ("12h", 43_200),
        ("3d", 259_200),
        ("2w", 1_209_600),
        ("2h15m", 8100),
        ("1d2h3m4s", 93_784),
        ("0.25h", 900),
        ("1.5m", 90),
        ("0.001s", 0.001),
        ("5H", 18_000),
        (" 7m ", 420),
        # Any order, and a unit twice, are still unambiguous.
        ("30m1h", 5400),
        ("1h1h", 7200),
        ("36500d", 3_153_600_000),
        ("0" * 5000 + "9s", 9),
    ],
)
def test_duration_of_numbers_with_units_is_their_sum(text: str, seconds: float) -> None:
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["", " ", "90", "h", "-1h", "+1h", "1 h", "1h 30m", "1h30", "1,5h", ".5h", "1.h", "5min", "1e3s", "1y", "1h\n2"],
)
def test_duration_of_another_form_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no duration; write it like 90s, 45m, 8h, 1h30m or 2d$") as caught:
        duration(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["36500d1s", "5215w", "9" * 100 + "h", "9" * 5000 + "s"])
def test_duration_of_over_a_century_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^'.*' is longer than 36500 days$"):
        duration(text)


@given(st.integers(0, 36_499), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_duration_in_whole_units_is_read_as_it_was_written(days: int, hours: int, minutes: int, seconds: int) -> None:
    length = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    assert duration(f"{days}d{hours}h{minutes}m{seconds}s") == length


@given(st.text(max_size=20))
def test_duration_of_any_text_is_a_value_or_a_value_error(text: str) -> None:
    try:
        length = duration(text)
    except ValueError:
        return
    assert timedelta(0) <= length <= timedelta(days=36_500)


@pytest.mark.parametrize(
    ("text", "now", "expected"),
    [
        ("17:45", (2027, 3, 1, 9, 0), (2027, 3, 1, 17, 45)),
        ("7:05", (2027, 3, 1, 9, 0), (2027, 3, 2, 7, 5)),
        ("23:59:58", (2027, 3, 1, 23, 59, 57), (2027, 3, 1, 23, 59, 58)),
        # The present second is over once a part of it has passed, and the moment itself is no later one.
        ("09:00", (2027, 3, 1, 9, 0, 0, 1), (2027, 3, 2, 9, 0)),
        ("09:00", (2027, 3, 1, 9, 0), (2027, 3, 2, 9, 0)),
        ("09:00", (2027, 3, 1, 8, 59, 59, 999_999), (2027, 3, 1, 9, 0)),
        # Around midnight, and at the end of a year.
        ("00:00", (2027, 12, 31, 23, 59, 59), (2028, 1, 1)),
        ("0:00", (2028, 1, 1), (2028, 1, 2)),
        ("00:10", (2027, 2, 28, 23, 55), (2027, 3, 1, 0, 10)),
        ("23:55", (2027, 3, 1, 0, 5), (2027, 3, 1, 23, 55)),
        (" 10:30 ", (2027, 3, 1, 9, 0), (2027, 3, 1, 10, 30)),
        ("09:00", (2027, 3, 27, 20, 0), (2027, 3, 28, 9, 0)),
    ],
)
@pytest.mark.usefixtures("berlin")
def test_time_of_day_is_the_next_one(text: str, now: tuple[int, ...], expected: tuple[int, ...]) -> None:
    found = moment(text, local(*now))
    assert found == local(*expected)
    assert found.tzinfo is not None


@pytest.mark.usefixtures("berlin")
def test_time_of_day_that_the_start_of_summer_time_skips_is_an_hour_later() -> None:
    assert moment("02:30", local(2027, 3, 28, 1, 50)) == local(2027, 3, 28, 3, 30)
    assert moment("02:30", local(2027, 3, 28, 4, 0)) == local(2027, 3, 29, 2, 30)


@pytest.mark.usefixtures("berlin")
def test_time_of_day_that_the_end_of_summer_time_repeats_is_the_next_of_both() -> None:
    first, second = local(2027, 10, 31, 2, 30), local(2027, 10, 31, 2, 30, fold=1)
    assert second - first == timedelta(hours=1)
    assert moment("02:30", first - timedelta(minutes=5)) == first
    assert moment("02:30", first + timedelta(minutes=5)) == second
    assert moment("02:30", second) == local(2027, 11, 1, 2, 30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2027-07-04 12:15", datetime(2027, 7, 4, 10, 15, tzinfo=UTC)),
        ("2027-01-04 12:15", datetime(2027, 1, 4, 11, 15, tzinfo=UTC)),
        ("2027-01-04T12:15:30", datetime(2027, 1, 4, 11, 15, 30, tzinfo=UTC)),
        ("2027-07-04T12:15Z", datetime(2027, 7, 4, 12, 15, tzinfo=UTC)),
        ("2027-07-04 12:15-05:30", datetime(2027, 7, 4, 17, 45, tzinfo=UTC)),
        ("2027-07-04T00:00:00.5+14:00", datetime(2027, 7, 3, 10, 0, 0, 500_000, tzinfo=UTC)),
        # A day alone is its midnight, and the past is for the caller to judge.
        ("2027-07-04", datetime(2027, 7, 3, 22, tzinfo=UTC)),
        ("1999-12-31 23:00", datetime(1999, 12, 31, 22, tzinfo=UTC)),
    ],
)
@pytest.mark.usefixtures("berlin")
def test_date_and_time_without_an_offset_is_local(text: str, expected: datetime) -> None:
    assert moment(text, local(2027, 3, 1)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "25:00", "24:00", "12:60", "12:30:60", "1:2", "123:00", "-1:00", "12:30 pm", "18:30+02:00", "12"),
        *("2027-02-29", "2027-13-01 10:00", "2027-01-01 25:00", "99999-01-01", "0000-01-01", "9" * 5000),
        # Beyond what a date holds once it is in another zone.
        *("0001-01-01T00:00+12:00", "9999-12-31T23:59:59-12:00"),
    ],
)
def test_moment_of_another_form_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no moment; write it like 18:30, '2026-12-01 09:00' or") as caught:
        moment(text, datetime.now().astimezone())
    assert str(caught.value).startswith(repr(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", "0"),
        ("12", "12"),
        ("0.000001", "0.000001"),
        (".5", "0.5"),
        (" 3.20 ", "3.20"),
        ("1e2", "100"),
        ("0.1", "0.1"),
        ("12345678901234567890.123456", "12345678901234567890.123456"),
    ],
)
def test_amount_is_read_exactly(text: str, expected: str) -> None:
    assert money(text) == Decimal(expected)


@pytest.mark.parametrize(
    "text", ["", "-1", "-0.01", "five", "5 USD", "$5", "1,5", "NaN", "sNaN", "inf", "-inf", "0x10"]
)
def test_amount_that_is_no_number_or_negative_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no amount; write it like 5 or 0\.75$") as caught:
        money(text)
    assert str(caught.value).startswith(repr(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=1", ("A", "1")),
        ("_x9=", ("_x9", "")),
        ("URL=http://h/?a=b=c", ("URL", "http://h/?a=b=c")),
        ("SPACED= two words ", ("SPACED", " two words ")),
        ("LINES=a\nb", ("LINES", "a\nb")),
        ("FROM_HERE", ("FROM_HERE", "as set")),
        ("EMPTY_HERE", ("EMPTY_HERE", "")),
        ("FROM_HERE=", ("FROM_HERE", "")),
    ],
)
def test_variable_has_the_value_behind_the_sign_or_that_of_the_environment(
    text: str, expected: tuple[str, str]
) -> None:
    assert variable(text, {"FROM_HERE": "as set", "EMPTY_HERE": ""}) == expected


@pytest.mark.parametrize("name", ["", "9A", "A B", "A-B", "A.B", "A\n", "É", "A:"])
def test_name_that_no_variable_can_have_is_refused_without_the_value(name: str) -> None:
    with pytest.raises(ValueError, match=r"is no name of a variable; write NAME=VALUE") as caught:
        variable(f"{name}=s3cret=more", {})
    assert str(caught.value).startswith(repr(name))
    assert "s3cret" not in str(caught.value)
    assert "more" not in str(caught.value)


def test_variable_that_the_environment_lacks_is_refused_without_the_values_of_others() -> None:
    with pytest.raises(ValueError, match=r"^the variable ABSENT is not set here; set it, or write ABSENT=VALUE$"):
        variable("ABSENT", {"absent": "s3cret"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:data/x", Place("train", "data/x")),
        ("rg-12:/abs", Place("rg-12", "/abs")),
        ("4711:", Place("4711", "")),
        (":out", Place("", "out")),
        (":", Place("", "")),
        ("train:a:b", Place("train", "a:b")),
        ("C:data", Place("C", "data")),
        ("plain", Place(None, "plain")),
        ("./train:x", Place(None, "./train:x")),
        ("../a:b", Place(None, "../a:b")),
        ("a/b:c", Place(None, "a/b:c")),
        ("/a:b", Place(None, "/a:b")),
        ("a\\b:c", Place(None, "a\\b:c")),
        ("", Place(None, "")),
        ("-", Place(None, "-")),
    ],
)
def test_place_with_a_colon_before_any_slash_is_on_a_machine(text: str, expected: Place) -> None:
    assert place(text) == expected
    assert str(place(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C:\\data", Place(None, "C:\\data")),
        ("d:x", Place(None, "d:x")),
        ("cd:x", Place("cd", "x")),
        (":x", Place("", "x")),
    ],
)
def test_single_letter_is_a_drive_where_there_are_drives(text: str, expected: Place) -> None:
    assert place(text, has_drives=True) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("-", True), (":-", False), ("m:-", False), ("./-", False), ("--", False)]
)
def test_only_a_dash_here_is_a_stream(text: str, *, expected: bool) -> None:
    assert place(text).is_stream is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6006", PortPair(6006, 6006)),
        ("7000:6006", PortPair(7000, 6006)),
        ("0:22", PortPair(0, 22)),
        ("65535:1", PortPair(65_535, 1)),
        ("1", PortPair(1, 1)),
        ("00080", PortPair(80, 80)),
    ],
)
def test_port_alone_is_the_same_on_both_sides(text: str, expected: PortPair) -> None:
    assert port_pair(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "80:",
        ":80",
        "a",
        "80:b",
        "-1",
        "1:2:3",
        "8 0",
        "65536",
        "65536:80",
        "80:65536",
        "0",
        "80:0",
        "9" * 6,
        "1.5",
    ],
)
def test_text_that_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no port; ") as caught:
        port_pair(text)
    assert str(caught.value).startswith(repr(text))


@given(st.integers(0, 65_535), st.integers(1, 65_535))
def test_pair_of_ports_is_read_as_it_was_written(here: int, there: int) -> None:
    assert port_pair(f"{here}:{there}") == PortPair(here, there)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (0.4, "0 s"),
        (59, "59 s"),
        (59.4, "59 s"),
        # Rounded up to the next unit.
        (59.6, "1 min"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (599, "9 min 59 s"),
        (3599, "1 h"),
        (3599.6, "1 h"),
        (3600, "1 h"),
        (3629, "1 h"),
        (3630, "1 h 1 min"),
        (8040, "2 h 14 min"),
        (86_369, "23 h 59 min"),
        (86_399, "1 d"),
        (86_400, "1 d"),
        (88_199, "1 d"),
        (88_200, "1 d 1 h"),
        (172_799, "2 d"),
        (36_500 * 86_400, "36500 d"),
    ],
)
def test_duration_is_shown_in_its_two_largest_units(seconds: float, expected: str) -> None:
    assert shown_duration(timedelta(seconds=seconds)) == expected


@given(st.floats(0, 1e9))
def test_shown_duration_is_read_as_the_duration_to_a_small_part(seconds: float) -> None:
    shown = shown_duration(timedelta(seconds=seconds)).replace("min", "m").replace(" ", "")
    unit = 0.5 if seconds < 600 else 30 if seconds < 86_400 else 1800
    assert abs(duration(shown).total_seconds() - seconds) <= unit + 0.5


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ((2027, 3, 10, 9, 4, 5), "09:04:05"),
        ((2027, 3, 10), "00:00:00"),
        ((2027, 3, 11), "Thu 11 Mar 00:00"),
        ((2027, 3, 9, 23, 59, 59), "Tue 09 Mar 23:59"),
        ((2027, 3, 16, 8, 0), "Tue 16 Mar 08:00"),
        ((2027, 3, 4, 8, 0), "Thu 04 Mar 08:00"),
        ((2027, 3, 17, 8, 0), "2027-03-17 08:00"),
        ((2027, 3, 3, 8, 0), "2027-03-03 08:00"),
        ((2028, 3, 10, 8, 0), "2028-03-10 08:00"),
    ],
)
@pytest.mark.usefixtures("berlin")
def test_moment_is_shown_with_its_day_unless_it_is_today(when: tuple[int, ...], expected: str) -> None:
    now = local(2027, 3, 10, 23, 30)
    assert shown_moment(local(*when), now) == expected
    assert shown_moment(local(*when).astimezone(UTC), now) == expected


@pytest.mark.usefixtures("berlin")
def test_moment_is_shown_by_the_offset_of_its_own_day() -> None:
    # Summer time begins between now and then.
    now = local(2027, 3, 27, 12, 0)
    assert shown_moment(datetime(2027, 3, 28, 10, 0, tzinfo=UTC), now) == "Sun 28 Mar 12:00"
    assert shown_moment(datetime(2027, 3, 28, 10, 0, tzinfo=UTC), now.astimezone(UTC)) == "Sun 28 Mar 10:00"


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ("0", "0.00"),
        ("3", "3.00"),
        ("3.1", "3.10"),
        ("3.14", "3.14"),
        ("3.140000", "3.14"),
        ("3.142", "3.142"),
        ("0.1417", "0.1417"),
        ("0.000001", "0.000001"),
        ("0.12345649", "0.123456"),
        ("0.0000004", "0.00"),
        ("1e3", "1000.00"),
        ("100", "100.00"),
        ("12345678901234567890.123456", "12345678901234567890.123456"),
    ],
)
def test_amount_is_shown_with_two_to_six_digits(amount: str, expected: str) -> None:
    assert shown_money(Decimal(amount), "USD") == f"{expected} USD"
    assert shown_money(Decimal(amount), None) == expected


def test_amount_that_is_not_known_is_shown_as_a_question_mark() -> None:
    assert shown_money(None, "EUR") == shown_money(None, None) == "?"


@pytest.mark.parametrize("amount", ["1e22", "123456789012345678901234567890.5", "1e45"])
def test_amount_beyond_the_usual_precision_is_shown_whole(amount: str) -> None:
    assert shown_money(money(amount), "USD") == f"{Decimal(amount):.2f} USD"


@given(st.decimals(0, 10**20, places=6))
def test_shown_amount_is_read_as_the_amount(amount: Decimal) -> None:
    assert money(shown_money(amount, None)) == amount


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 bytes"),
        (1, "1 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (1049, "1.0 kB"),
        (999_900, "999.9 kB"),
        (1_000_000, "1.0 MB"),
        (2_340_000, "2.3 MB"),
        (7_800_000_000, "7.8 GB"),
        (4_000_000_000_000, "4.0 TB"),
        (5_000_000_000_000_000, "5000.0 TB"),
    ],
)
def test_size_is_shown_in_a_unit_that_fits(count: int, expected: str) -> None:
    assert shown_size(count) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(999_949, "999.9 kB"), (999_999, "1.0 MB"), (999_999_999, "1.0 GB"), (10**12 - 1, "1.0 TB")]
)
def test_size_that_rounds_to_a_thousand_is_shown_in_the_next_unit(count: int, expected: str) -> None:
    assert shown_size(count) == expected


@pytest.mark.parametrize(
    ("text", "condition", "shown"),
    [
        ("ready", WaitCondition("ready"), "ready"),
        (" has_ssh ", WaitCondition("has-ssh"), "has-ssh"),
        ("has-ssh", WaitCondition("has-ssh"), "has-ssh"),
        ("status=2", WaitCondition("status", (2, "2")), "status=2"),
        ("status=up_now", WaitCondition("status", ("up_now",)), "status=up_now"),
        ("status=a=b", WaitCondition("status", ("a=b",)), "status=a=b"),
    ],
)
def test_condition_of_a_wait_is_read_and_shown(text: str, condition: WaitCondition, shown: str) -> None:
    assert wait_condition(text) == condition
    assert str(condition) == shown


@pytest.mark.parametrize("text", ["", "soon", "status", "status=", "gone=1", "READY"])
def test_condition_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no condition; write ready, reachable, has-ssh, gone, or status=2"):
        wait_condition(text)
