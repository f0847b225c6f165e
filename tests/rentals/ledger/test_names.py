"""A rental's name: its nonce and expiry, and the distinction from all names that we did not make."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.rentals.ledger.names import LATEST, expiry_in, holds_nonce, is_same_name, new_name

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
def test_name_is_short_and_plain(moment: datetime) -> None:
    name = new_name(moment)
    assert re.fullmatch(r"rg-[0-9a-z]{10}-[0-9a-z]{10}", name)
    # A service that cuts names at 24 characters leaves it whole.
    assert len(name) == 24
    assert expiry_in(name[:24]) == expiry_in(name)


@given(moments)
def test_expiry_in_a_name_is_rounded_up_by_less_than_a_minute(moment: datetime) -> None:
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
def test_name_holds_the_expiry_rounded_up_to_the_minute(moment: datetime, read: datetime) -> None:
    assert expiry_in(new_name(moment)) == read


@given(moment=moments, hours=st.integers(-12, 14))
def test_time_zone_of_an_expiry_makes_no_difference(moment: datetime, hours: int) -> None:
    zoned = moment.astimezone(timezone(timedelta(hours=hours)))
    assert expiry_in(new_name(zoned)) == expiry_in(new_name(moment))


def test_nonce_is_drawn_from_the_whole_range() -> None:
    bounds: list[int] = []

    def largest(bound: int) -> int:
        bounds.append(bound)
        return bound - 1

    assert new_name(NOON, random=largest)[:14] == "rg-zzzzzzzzzz-"
    assert new_name(None, random=largest) == "kept-zzzzzzzzzz"
    assert new_name(NOON, random=lambda _: 0)[:14] == "rg-0000000000-"
    assert bounds == [36**10] * 2
    assert len({new_name(NOON) for _ in range(1000)}) == 1000


@given(name=kept_names, length=st.integers(0, 14))
def test_kept_name_has_no_expiry_and_matches_only_itself(name: str, length: int) -> None:
    assert re.fullmatch(r"kept-[0-9a-z]{10}", name)
    assert expiry_in(name) is None
    assert is_same_name(name, name)
    assert not is_same_name(name, name[:length])


def test_name_of_an_earlier_version_is_still_read() -> None:
    name = "rg-04djiygmia-hl4s0wig39"
    assert expiry_in(name) == NOON
    assert new_name(NOON, random=lambda _: 12_345_678_901_234) == name


def test_name_with_any_one_character_changed_is_not_ours() -> None:
    name = new_name(NOON, random=lambda _: 12_345_678_901_234)
    assert expiry_in(name) == NOON
    changed = {
        name[:place] + other + name[place + 1 :] for place in range(len(name)) for other in (*ALPHABET, *"_ AZ٣é\0")
    } - {name}
    assert len(changed) == 24 * (len(ALPHABET) - 1 + 7)
    assert {other for other in changed if expiry_in(other) is not None} == {
        other for other in changed if other.lower() == name
    }


@given(name=names, place=st.integers(0, 23), other=st.characters(codec="utf-8"))
def test_name_with_a_random_character_in_any_place_is_not_ours(name: str, place: int, other: str) -> None:
    changed = name[:place] + other + name[place + 1 :]
    assert (expiry_in(changed) is None) is (changed.lower() != name)
    assert is_same_name(name, changed) is (changed.lower() == name)


@given(name=names, place=st.integers(0, 24), other=st.sampled_from(ALPHABET))
def test_name_with_a_character_more_or_less_is_not_ours(name: str, place: int, other: str) -> None:
    assert expiry_in(name[:place] + other + name[place:]) is None
    assert expiry_in(name[:place]) == (expiry_in(name) if place == 24 else None)
    assert expiry_in(name[:place] + name[place + 1 :]) == (expiry_in(name) if place == 24 else None)


@given(name=names, place=st.integers(0, 22))
def test_name_with_two_characters_swapped_is_not_ours(name: str, place: int) -> None:
    swapped = name[:place] + name[place + 1] + name[place] + name[place + 2 :]
    assert (expiry_in(swapped) is None) is (swapped != name)


@given(st.text() | st.from_regex(r"rg-[0-9a-z]{10}-[0-9a-z]{10}", fullmatch=True) | st.text(ALPHABET, min_size=24))
def test_name_that_a_user_chose_is_not_ours(text: str) -> None:
    assert expiry_in(text) is None


@pytest.mark.parametrize("text", ["", "rg-", "rg-training", "rg-" + "0" * 21, "training", " ", "kept-0000000000"])
def test_names_of_other_forms_are_not_ours(text: str) -> None:
    assert expiry_in(text) is None


@given(name=names | kept_names)
def test_name_in_capitals_is_still_ours(name: str) -> None:
    assert expiry_in(name.upper()) == expiry_in(name)
    assert is_same_name(name, name.upper())
    assert holds_nonce(name, name.upper())


@given(name=names | kept_names, before=st.text(), after=st.text(), length=st.integers(0, 24))
def test_nonce_is_found_wherever_it_stands(name: str, before: str, after: str, length: int) -> None:
    assert holds_nonce(name, before + name.title() + after)
    whole = len("kept-" if name.startswith("kept-") else "rg-") + 10
    assert holds_nonce(name, name[:length]) is (length >= whole)
    assert not holds_nonce(name, None)


@given(moment=moments, drawn=st.lists(nonces, min_size=2, max_size=2, unique=True))
def test_nonce_of_another_name_is_not_found(moment: datetime, drawn: list[int]) -> None:
    name, other = (new_name(moment, random=lambda _, nonce=nonce: nonce) for nonce in drawn)
    assert not holds_nonce(name, other)


@pytest.mark.parametrize("name", ["rg-", "rg-1", "training", ""])
def test_name_without_a_nonce_is_found_nowhere(name: str) -> None:
    assert not holds_nonce(name, f"u7-{name}-u7")


@given(name=names, length=st.integers(0, 24))
def test_cut_name_matches_if_its_nonce_is_whole(name: str, length: int) -> None:
    assert is_same_name(name, name[:length]) is (length >= UP_TO_NONCE)


@given(name=names, more=st.text(min_size=1))
def test_name_with_text_added_does_not_match(name: str, more: str) -> None:
    assert not is_same_name(name, name + more)
    assert not is_same_name(name, more + name)


@given(moment=moments, other_moment=moments, drawn=st.lists(nonces, min_size=2, max_size=2, unique=True))
def test_names_with_different_nonces_never_match(moment: datetime, other_moment: datetime, drawn: list[int]) -> None:
    name = new_name(moment, random=lambda _: drawn[0])
    other = new_name(other_moment, random=lambda _: drawn[1])
    assert not any(is_same_name(name, other[:length]) for length in range(25))
    assert not is_same_name(name, new_name(None, random=lambda _: drawn[0]))


@given(name=names | kept_names, shown=st.text())
def test_missing_or_arbitrary_shown_name_matches_no_rental(name: str, shown: str) -> None:
    assert not is_same_name(name, None)
    assert not is_same_name(name, "")
    assert not is_same_name(name, shown)
