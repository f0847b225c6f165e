"""Errors as they are shown: the text, what to do, and the fields of JSON."""

from __future__ import annotations

import json
import os
from decimal import Decimal
from typing import Any

import pytest

from netmind_rentgpu import AsyncRentGPU, errors
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.notes import Notes
from netmind_rentgpu.cli.output import OutputClosedError, OutputError
from netmind_rentgpu.cli.problems import CommandError, Problem, problem_of
from netmind_rentgpu.cli.session import show

BUG_HINT = "This is a bug of rentgpu. With --debug, the same command prints where it happened."
HOSTILE = "a\x1b]0;b\x07\u202ec\udcff"
RENTAL: dict[str, Any] = {"name": "rg-31", "container_id": 31}


def answer(kind: type[errors.APIStatusError] = errors.ConflictError, **changed: Any) -> errors.APIStatusError:
    details: dict[str, Any] = {
        "status": 409,
        "code": "MACHINE_TAKEN",
        "message": "taken",
        "body": None,
        "request_id": "req-8",
        "method": "POST",
        "path": "/v1/rentgpu",
    }
    return kind("POST /v1/rentgpu was refused: taken", **(details | changed))


def raised(error: Exception) -> Exception:
    """Return an error with a traceback."""
    try:
        raise error
    except type(error) as caught:
        return caught


def test_command_error_has_its_own_code_and_hint() -> None:
    problem = problem_of(CommandError(ExitCode.NOT_FOUND, "no rental is open", "`rentgpu rent` opens one."))
    assert problem == Problem(
        exit_code=66, error="CommandError", message="no rental is open", hint="`rentgpu rent` opens one."
    )
    assert problem.text == "no rental is open\n`rentgpu rent` opens one."


def test_command_error_without_a_hint_is_its_message() -> None:
    problem = problem_of(CommandError(ExitCode.USAGE, "give one of them"), reads_only=True)
    assert (problem.exit_code, problem.hint, problem.text) == (2, None, "give one of them")


@pytest.mark.parametrize(
    ("error", "code"), [(OutputClosedError("the reader left"), 141), (OutputError("the disk is full"), 74)]
)
def test_output_that_fails_is_no_bug_and_has_no_hint(error: OutputError, code: int) -> None:
    assert problem_of(error) == Problem(exit_code=code, error=type(error).__name__, message=str(error))


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("gpu_name", "--gpu"),
        ("regions", "--region"),
        ("min_cuda", "--cuda"),
        ("payment_type", "--balance"),
        ("grace", "--grace"),
        ("gpus", "--gpus"),
        ("gpu", "--gpus"),
        ("gpu_names", "--gpu"),
        ("image_template_id", "--image"),
        ("max_disk", "--max-disk"),
        ("value", "the password"),
        ("max_price", "--max-price"),
        ("min_gpu_memory", "--min-gpu-memory"),
        ("extendable_to", "--extendable-to"),
        ("shared_budget", "--shared-budget"),
        ("hourly", "--hourly"),
        # These are no options.
        ("command", "command"),
        ("rental", "rental"),
    ],
)
def test_invalid_argument_is_named_by_the_option_that_gives_it(argument: str, shown: str) -> None:
    problem = problem_of(errors.InvalidArgumentError(argument, "gpus must be at least 1"))
    assert problem.message == f"{shown}: gpus must be at least 1"
    assert (problem.exit_code, problem.error, problem.hint) == (2, "InvalidArgumentError", None)


def test_notes_of_an_error_follow_its_message() -> None:
    error = answer()
    error.add_note("3 machines were tried")
    error.add_note("one \x1b[2Jmore")
    assert problem_of(error).message.split("\n") == [
        "POST /v1/rentgpu was refused: taken",
        "3 machines were tried",
        "one \\x1b[2Jmore",
    ]


def test_machine_that_could_not_be_given_back_is_named_with_what_to_do() -> None:
    error = errors.ReleaseError("could not delete container 31", hourly_price=Decimal("0.7"), **RENTAL)
    problem = problem_of(error)
    assert problem.exit_code == 125
    assert problem.text == (
        "could not delete container 31\n"
        "It costs money until it is deleted: run `rentgpu rentals reap`, and see `rentgpu rentals list`."
    )


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (answer(errors.AuthenticationError, status=401), "NETMIND_API_KEY"),
        (errors.NoMachineError("none"), "`rentgpu offers`"),
        (errors.RentalInUseError("in use", **RENTAL), "`rentgpu rentals show`"),
        (
            errors.InsufficientBudgetError(
                "full", budget="lab", limit=Decimal(2), spent=Decimal(2), reserved=Decimal(0), holders=()
            ),
            "`rentgpu budgets list`",
        ),
        (errors.JobNotFoundError("no job", name="train"), "`rentgpu jobs list`"),
    ],
)
def test_error_with_a_remedy_has_it_as_its_hint(error: errors.RentGPUError, part: str) -> None:
    problem = problem_of(error)
    assert problem.hint is not None
    assert part in problem.hint
    assert problem.text == f"{problem.message}\n{problem.hint}"


def test_missing_token_leads_to_the_emulator_and_another_setting_does_not() -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        AsyncRentGPU()
    problem = problem_of(caught.value)
    assert problem.exit_code == 78
    assert problem.hint is not None
    assert "`rentgpu emulator`" in problem.hint
    assert problem_of(errors.ConfigurationError("the URL 'x' is no URL: it holds a token")).hint is None


@pytest.mark.parametrize(
    ("error", "name", "message"),
    [
        (ZeroDivisionError("division by zero"), "ZeroDivisionError", "ZeroDivisionError: division by zero"),
        (KeyError("x"), "KeyError", "KeyError: 'x'"),
        (AssertionError(), "AssertionError", "AssertionError"),
        (errors.ClientStateError("closed"), "ClientStateError", "ClientStateError: closed"),
    ],
)
def test_unknown_error_is_a_bug_that_is_named_by_its_class(error: Exception, name: str, message: str) -> None:
    problem = problem_of(raised(error))
    assert problem == Problem(exit_code=70, error=name, message=message, hint=BUG_HINT)


def test_error_without_a_text_is_shown_by_its_class() -> None:
    assert problem_of(errors.NoMachineError("")).message == "NoMachineError"


@pytest.mark.parametrize(
    "error",
    [
        CommandError(ExitCode.NO, "a\x1b]0;b\x07\u202ec\udcff"),
        errors.SSHError("a\x1b]0;b\x07\u202ec\udcff", stage="name"),
    ],
)
def test_control_characters_of_others_are_spelled_out(error: Exception) -> None:
    assert problem_of(error).message == "a\\x1b]0;b\\x07\\u202ec\\udcff"


def test_unclear_answer_of_a_call_that_only_reads_has_the_code_of_a_call_that_did_nothing() -> None:
    error = errors.APITimeoutError("no answer within 9 s", maybe_processed=True)
    assert [problem_of(error).exit_code, problem_of(error, reads_only=True).exit_code] == [76, 69]
    assert problem_of(error, reads_only=True).maybe_processed is True


def test_problem_has_the_fields_of_the_answer_as_json() -> None:
    assert problem_of(answer()).to_dict() == {
        "exit_code": 1,
        "error": "ConflictError",
        "message": "POST /v1/rentgpu was refused: taken",
        "code": "MACHINE_TAKEN",
        "status": 409,
        "request_id": "req-8",
        "maybe_processed": None,
        "hint": None,
    }


@pytest.mark.parametrize("wanted", ["json", "jsonl"])
def test_error_is_one_line_of_json_if_the_results_are_json(wanted: str) -> None:
    error = answer()
    error.add_note("second line")
    assert json.loads(shown(error, wanted)) == problem_of(error).to_dict()


@pytest.mark.parametrize("wanted", ["table", "csv", "yaml", None])
def test_error_is_a_text_with_the_name_of_the_program_otherwise(wanted: str | None) -> None:
    assert shown(errors.NoMachineError("none of 4"), wanted).startswith("rentgpu: none of 4\nSee `rentgpu offers`")


@pytest.mark.parametrize("character", ["\x7f", "\x9b", "\x1b", "\u202e", "\udc80", '"', "\\"])
def test_error_with_odd_characters_in_the_code_and_id_of_the_service_is_still_json(character: str) -> None:
    line = shown(answer(code=f"a{character}b", request_id=f"c{character}d"), "json")
    found = json.loads(line)
    assert (found["code"][0], found["code"][-1], found["request_id"][0], found["request_id"][-1]) == tuple("abcd")
    assert line.rstrip("\n").isprintable()


def shown(error: Exception, wanted: str | None) -> str:
    """Return the text that is written for an error."""
    reader, writer = os.pipe()
    show(problem_of(error), Notes(writer), wanted)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read().decode()
    assert text.endswith("\n")
    assert wanted not in ("json", "jsonl") or text.count("\n") == 1
    return text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(2, "No such file or directory", "model.pt"), 66),
        (FileNotFoundError(2, "No usable temporary directory found"), 74),
        (PermissionError(13, "Permission denied", "model.pt"), 74),
        (OSError(28, "No space left on device"), 74),
    ],
)
def test_error_of_the_system_is_no_bug(error: OSError, code: int) -> None:
    problem = problem_of(error)
    assert problem.exit_code == code
    assert str(error) in problem.text
    assert problem.hint is None
