"""The options for a machine, as arguments of the client."""

from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import click
import pytest

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.needs import offer_arguments, rent_arguments, with_needs
from netmind_rentgpu.cli.problems import CommandError

NOW = datetime(2027, 8, 3, 12, 0, tzinfo=UTC)
# Each option with a value, and the client's argument.
SELECTING: list[tuple[list[str], dict[str, Any]]] = [
    (["--gpu", "H100"], {"gpu_name": ("H100",)}),
    (["--gpu", "H100", "--gpu", "RTX 5090"], {"gpu_name": ("H100", "RTX 5090")}),
    (["--gpus", "3"], {"gpus": 3}),
    (["--region", "FI", "--region", "us"], {"regions": ("FI", "us")}),
    (["--max-price", "0.35"], {"max_price": Decimal("0.35")}),
    (["--max-price", "0"], {"max_price": Decimal(0)}),
    (["--min-memory", "64"], {"min_memory": 64.0}),
    (["--min-gpu-memory", "0"], {"min_gpu_memory": 0.0}),
    (["--min-disk", "1.5"], {"min_disk": 1.5}),
    (["--cuda", "12.8"], {"min_cuda": "12.8"}),
    (["--exclude", "node-a", "--exclude", "node-b"], {"exclude": ("node-a", "node-b")}),
    (["--balance", "nmt"], {"payment_type": "nmt"}),
    (["--gpu", "A10", "--gpus", "2", "--cuda", "11"], {"gpu_name": ("A10",), "gpus": 2, "min_cuda": "11"}),
    ([], {}),
]
RENTING: list[tuple[list[str], dict[str, Any]]] = [
    (["--image", "PyTorch 2.9"], {"image": "PyTorch 2.9"}),
    (["--ttl", "1d6h"], {"ttl": timedelta(hours=30)}),
    (["--extendable-to", "3d"], {"extendable_to": timedelta(days=3)}),
    (["--budget", "7.5"], {"budget": Decimal("7.5")}),
    (["--shared-budget", "lab"], {"shared_budget": "lab"}),
    (["--idle-timeout", "20m"], {"idle_timeout": timedelta(minutes=20)}),
    (["--wait-for-stock", "2h"], {"wait_for_stock": timedelta(hours=2)}),
    (["--label", "nightly"], {"label": "nightly"}),
    (["--label", ""], {"label": ""}),
    (["--until", "2027-08-03T14:30Z"], {"ttl": timedelta(hours=2, minutes=30)}),
    (["--until", "2027-08-05T12:00+02:00", "--budget", "1"], {"ttl": timedelta(hours=46), "budget": Decimal(1)}),
]


def parsed(words: list[str], *, renting: bool = True) -> dict[str, Any]:
    """Return the options' values as a command's function gets them."""
    command = click.command(with_needs(renting=renting)(lambda **_: None))
    return command.make_context("rent", list(words)).params


@pytest.mark.parametrize(("words", "arguments"), SELECTING, ids=lambda value: json.dumps(value, default=str))
def test_option_for_the_machine_is_an_argument_for_offers_and_rentals(
    words: list[str], arguments: dict[str, Any]
) -> None:
    assert offer_arguments(parsed(words)) == rent_arguments(parsed(words), NOW) == arguments


@pytest.mark.parametrize(("words", "arguments"), RENTING, ids=lambda value: json.dumps(value, default=str))
def test_option_for_the_rental_is_an_argument_for_rentals_alone(words: list[str], arguments: dict[str, Any]) -> None:
    assert rent_arguments(parsed(words), NOW) == arguments
    assert offer_arguments(parsed(words)) == {}
    # `offers` accepts it, so that the words of `rent` can be used there, too.
    assert parsed(words, renting=False) == parsed(words)


def test_each_argument_is_one_of_the_client() -> None:
    def all_of(table: list[tuple[list[str], dict[str, Any]]]) -> set[str]:
        return {name for _, arguments in table for name in arguments}

    assert all_of(SELECTING) <= set(inspect.signature(AsyncRentGPU.offers).parameters)
    assert all_of(SELECTING) | all_of(RENTING) <= set(inspect.signature(AsyncRentGPU.rent).parameters)


def test_options_of_rentals_are_hidden_from_the_help_of_offers() -> None:
    def listed(*, renting: bool) -> set[str]:
        command = click.command(with_needs(renting=renting)(lambda **_: None))
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        return {option.opts[0] for option in options if not option.hidden}

    renting = {
        *("--image", "--ttl", "--until", "--extendable-to", "--budget", "--shared-budget", "--label"),
        *("--idle-timeout", "--wait-for-stock"),
    }
    assert listed(renting=True) - listed(renting=False) == renting


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("17", 17),
        ("0", 0),
        ("0042", 42),
        ("17.1", "17.1"),
        ("-17", "-17"),
        ("17b", "17b"),
        ("", ""),
        (" 17", " 17"),
        ("pytorch:2", "pytorch:2"),
    ],
)
def test_image_that_is_a_number_is_an_id(text: str, image: int | str) -> None:
    found = rent_arguments(parsed([f"--image={text}"]), NOW)["image"]
    assert (found, type(found)) == (image, type(image))


@pytest.mark.parametrize("text", ["²", "17²", "①"])
def test_image_with_digits_that_make_no_number_is_a_name(text: str) -> None:
    assert rent_arguments(parsed(["--image", text]), NOW) == {"image": text}


def test_time_to_rent_that_is_given_twice_is_refused() -> None:
    with pytest.raises(CommandError, match=r"^--ttl and --until say the same thing: give one of them$") as caught:
        rent_arguments(parsed(["--ttl", "3h", "--until", "2027-08-04T00:00Z"]), NOW)
    assert caught.value.code is ExitCode.USAGE


@pytest.mark.parametrize("text", ["2027-08-03T12:00Z", "2027-08-03T11:59:59.999Z", "1999-01-01"])
def test_end_of_a_rental_that_has_passed_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match=r"^--until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d has passed$") as caught:
        rent_arguments(parsed(["--until", text]), NOW)
    assert caught.value.code is ExitCode.USAGE


def test_end_of_a_rental_that_is_near_is_accepted() -> None:
    until = ["--until", "2027-08-03T12:00:00.001Z"]
    assert rent_arguments(parsed(until), NOW) == {"ttl": timedelta(milliseconds=1)}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--ttl", "0s"], "'0s' is no time at all"),
        (["--ttl", "2"], "'2' is no duration"),
        (["--extendable-to", "1y"], "'1y' is no duration"),
        (["--until", "25:00"], "'25:00' is no moment"),
        (["--budget", "-1"], "'-1' is no amount"),
        (["--max-price", "cheap"], "'cheap' is no amount"),
        (["--gpus", "1.5"], "'1.5' is not a valid integer"),
    ],
)
def test_option_with_a_value_of_another_form_is_refused_by_its_name(words: list[str], problem: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        parsed(words)
    message = caught.value.format_message()
    assert words[0] in message
    assert problem in message
