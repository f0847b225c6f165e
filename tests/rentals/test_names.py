"""A rental's name: what it holds, and that nobody else's is ever taken for one of ours."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.rentals.names import LATEST, expiry_in, is_same_name, new_name

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
UP_TO_NONCE = len("rg-") + 10
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz-"

moments = st.integers(0, (LATEST - EPOCH) // timedelta(microseconds=1)).map(
    lambda microseconds: EPOCH + timedelta(microseconds=microseconds)
)
nonces = st.integers(0, 36**10 - 1)
draws = nonces.map(lambda nonce: lambda _: nonce)
names = st.builds(new_name, moments, random=draws)
kept_names = st.builds(new_name, st.none(), random=draws)


@given(moments)
def test_a_name_is_short_and_plain(moment: datetime) -> None:
    name = new_name(moment)
    assert re.fullmatch(r"rg-[0-9a-z]{10}-[0-9a-z]{10}", name)
    # A service that cuts names at 24 characters leaves it whole.
    assert len(name) == 24
    assert expiry_in(name[:24]) == expiry_in(name)


@given(moments)
def test_an_expiry_is_rounded_up_within_a_minute(moment: datetime) -> None:
    read = expiry_in(new_name(moment))
    assert read is not None
    assert timedelta(0) <= read - moment < MINUTE
    assert (read - EPOCH) % MINUTE == timedelta(0)


@pytest.mark.parametrize(
    ("moment", "read"),
    [
        (EPOCH, EPOCH),
        (EPOCH + timedelta(microseconds=1), EPOCH + MINUTE),
        (NOON, NOON),
        (NOON - timedelta(microseconds=1), NOON),
        (NOON + timedelta(seconds=59, microseconds=999_999), NOON + MINUTE),
        (LATEST, LATEST),
        (LATEST - timedelta(seconds=59), LATEST),
    ],
)
def test_which_minute_a_name_holds(moment: datetime, read: datetime) -> None:
    assert expiry_in(new_name(moment)) == read


@given(moment=moments, hours=st.integers(-12, 14))
def test_the_zone_makes_no_difference(moment: datetime, hours: int) -> None:
    elsewhere = moment.astimezone(timezone(timedelta(hours=hours)))
    assert expiry_in(new_name(elsewhere)) == expiry_in(new_name(moment))


def test_a_nonce_is_drawn_from_all_there_are() -> None:
    asked: list[int] = []

    def largest(bound: int) -> int:
        asked.append(bound)
        return bound - 1

    assert new_name(NOON, random=largest)[:14] == "rg-zzzzzzzzzz-"
    assert new_name(None, random=largest) == "kept-zzzzzzzzzz"
    assert new_name(NOON, random=lambda _: 0)[:14] == "rg-0000000000-"
    assert asked == [36**10] * 2
    assert len({new_name(NOON) for _ in range(1000)}) == 1000


@given(name=kept_names, length=st.integers(0, 14))
def test_a_kept_name_has_no_expiry_and_is_only_itself(name: str, length: int) -> None:
    assert re.fullmatch(r"kept-[0-9a-z]{10}", name)
    assert expiry_in(name) is None
    assert is_same_name(name, name)
    assert not is_same_name(name, name[:length])


def test_a_name_that_an_earlier_version_made_is_still_read() -> None:
    name = "rg-04djiygmia-hl4s0wig39"
    assert expiry_in(name) == NOON
    assert new_name(NOON, random=lambda _: 12_345_678_901_234) == name


def test_any_one_character_that_is_changed_makes_it_somebody_elses() -> None:
    name = new_name(NOON, random=lambda _: 12_345_678_901_234)
    assert expiry_in(name) == NOON
    changed = {
        name[:place] + other + name[place + 1 :] for place in range(len(name)) for other in (*ALPHABET, *"_ AZ٣é\0")
    } - {name}
    assert len(changed) == 24 * (len(ALPHABET) - 1 + 7)
    assert [one for one in changed if expiry_in(one) is not None] == []


@given(name=names, place=st.integers(0, 23), other=st.characters(codec="utf-8"))
def test_a_changed_name_is_not_ours(name: str, place: int, other: str) -> None:
    changed = name[:place] + other + name[place + 1 :]
    assert (expiry_in(changed) is None) is (changed != name)
    assert is_same_name(name, changed) is (changed == name)


@given(name=names, place=st.integers(0, 24), other=st.sampled_from(ALPHABET))
def test_a_name_with_a_character_more_or_less_is_not_ours(name: str, place: int, other: str) -> None:
    assert expiry_in(name[:place] + other + name[place:]) is None
    assert expiry_in(name[:place]) == (expiry_in(name) if place == 24 else None)
    assert expiry_in(name[:place] + name[place + 1 :]) == (expiry_in(name) if place == 24 else None)


@given(name=names, place=st.integers(0, 22))
def test_a_name_with_two_characters_swapped_is_not_ours(name: str, place: int) -> None:
    swapped = name[:place] + name[place + 1] + name[place] + name[place + 2 :]
    assert (expiry_in(swapped) is None) is (swapped != name)


@given(st.text() | st.from_regex(r"rg-[0-9a-z]{10}-[0-9a-z]{10}", fullmatch=True) | st.text(ALPHABET, min_size=24))
def test_a_name_that_somebody_chose_is_not_ours(text: str) -> None:
    assert expiry_in(text) is None


@pytest.mark.parametrize("text", ["", "rg-", "rg-training", "rg-" + "0" * 21, "training", " ", "kept-0000000000"])
def test_names_of_other_forms_are_not_ours(text: str) -> None:
    assert expiry_in(text) is None


@given(names)
def test_capitals_are_not_ours(name: str) -> None:
    # Even where a service did that to its names: what was ours has to be recognized for sure, or left alone.
    assert expiry_in(name.upper()) is None
    assert not is_same_name(name, name.upper())


@given(name=names, length=st.integers(0, 24))
def test_a_name_may_be_cut_behind_its_nonce(name: str, length: int) -> None:
    assert is_same_name(name, name[:length]) is (length >= UP_TO_NONCE)


@given(name=names, more=st.text(min_size=1))
def test_a_name_with_something_added_is_anothers(name: str, more: str) -> None:
    assert not is_same_name(name, name + more)
    assert not is_same_name(name, more + name)


@given(moment=moments, other_moment=moments, drawn=st.lists(nonces, min_size=2, max_size=2, unique=True))
def test_one_name_is_never_another(moment: datetime, other_moment: datetime, drawn: list[int]) -> None:
    name = new_name(moment, random=lambda _: drawn[0])
    other = new_name(other_moment, random=lambda _: drawn[1])
    assert not any(is_same_name(name, other[:length]) for length in range(25))
    assert not is_same_name(name, new_name(None, random=lambda _: drawn[0]))


@given(name=names | kept_names, shown=st.text())
def test_what_a_service_shows_without_a_name_is_nobodys(name: str, shown: str) -> None:
    assert not is_same_name(name, None)
    assert not is_same_name(name, "")
    assert not is_same_name(name, shown)
