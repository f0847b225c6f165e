"""The exit code of each error, of each end of a remote command, and of each signal."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from netmind_rentgpu import errors
from netmind_rentgpu.cli.exit_codes import EXPLANATIONS, ExitCode, code_of_error, code_of_result, code_of_signal

ANSWER: dict[str, Any] = {
    "status": 418,
    "code": None,
    "message": "no",
    "body": None,
    "request_id": None,
    "method": "POST",
    "path": "/v1",
}
SEEN: dict[str, Any] = {"arrived": {}, "pending": {}}
RENTAL: dict[str, Any] = {"name": "rg-7", "container_id": 7}
NOT_SENT: dict[str, Any] = {"maybe_processed": False}
NO_BUDGET: dict[str, Any] = {
    "budget": "lab",
    "limit": Decimal(9),
    "spent": Decimal(8),
    "reserved": Decimal(1),
    "holders": (),
}

# The class, what its constructor takes beside a text, and the code.
CODES: list[tuple[type[errors.RentGPUError], dict[str, Any], int]] = [
    (errors.RentGPUError, {}, 70),
    (errors.ConfigurationError, {}, 78),
    (errors.InvalidArgumentError, {"problem": "too many"}, 2),
    (errors.ClientStateError, {}, 70),
    (errors.TransportError, NOT_SENT, 69),
    (errors.APIConnectionError, NOT_SENT, 69),
    (errors.APITimeoutError, NOT_SENT, 69),
    (errors.APIStatusError, ANSWER, 1),
    (errors.AuthenticationError, ANSWER, 77),
    (errors.PermissionDeniedError, ANSWER, 77),
    (errors.InsufficientBalanceError, ANSWER, 79),
    (errors.NotFoundError, ANSWER, 66),
    (errors.ConflictError, ANSWER, 1),
    (errors.InvalidRequestError, {"fields": (), **ANSWER}, 1),
    (errors._RetryLaterError, {"retry_after": None, **ANSWER}, 1),
    (errors.RateLimitError, {"retry_after": 3.5, **ANSWER}, 75),
    (errors.ServerError, {"retry_after": None, **ANSWER}, 76),
    (errors.UnexpectedResponseError, {"status": 200, "method": "GET", "path": "/v1"}, 76),
    (errors._WaitError, SEEN, 70),
    (errors.WaitTimeoutError, SEEN, 124),
    (errors.ContainerFailedError, {"container": None, **SEEN}, 1),
    (errors.ContainerGoneError, {"container_id": 7, "container": None, **SEEN}, 66),
    (errors.SSHError, {"stage": "connection"}, 74),
    (errors.SSHTimeoutError, {"stage": "command"}, 124),
    (errors.NoMachineError, {}, 75),
    (errors._RentalError, RENTAL, 70),
    (errors.RentalNotFoundError, {}, 66),
    (errors.RentalInUseError, RENTAL, 1),
    (errors.RentalEndedError, RENTAL, 74),
    (errors.RentalExpiredError, RENTAL, 124),
    (errors.RentalIdleError, RENTAL, 124),
    (errors.BudgetExceededError, RENTAL, 124),
    (errors.InsufficientBudgetError, NO_BUDGET, 79),
    (errors.ReleaseError, {"hourly_price": None, **RENTAL}, 125),
    (errors._JobError, {"name": "train"}, 70),
    (errors.JobExistsError, {"name": "train"}, 1),
    (errors.JobNotFoundError, {"name": "train"}, 66),
    (errors.StateFileError, {}, 74),
    (errors.StateFolderError, {}, 74),
]


def tree_of(kind: type[errors.RentGPUError]) -> Iterator[type[errors.RentGPUError]]:
    """Yield a class and all that derive from it in its own module."""
    if kind.__module__ == errors.__name__:
        yield kind
        for derived in kind.__subclasses__():
            yield from tree_of(derived)


def test_table_of_this_test_has_every_error_of_the_tree() -> None:
    assert {kind for kind, _, _ in CODES} == set(tree_of(errors.RentGPUError))


@pytest.mark.parametrize(("kind", "arguments", "code"), CODES, ids=[kind.__name__ for kind, _, _ in CODES])
def test_error_has_its_exit_code(kind: type[errors.RentGPUError], arguments: dict[str, Any], code: int) -> None:
    error = kind("text", **arguments)
    assert code_of_error(error) == code
    # A call that only reads has done nothing, even if its answer is unclear.
    assert code_of_error(error, reads_only=True) == (69 if code == 76 else code)


@pytest.mark.parametrize("kind", [errors.TransportError, errors.APIConnectionError, errors.APITimeoutError])
def test_call_without_an_answer_is_unclear_if_it_may_have_changed_something(kind: type[errors.TransportError]) -> None:
    sent, not_sent = kind("text", maybe_processed=True), kind("text", maybe_processed=False, is_permanent=True)
    assert [code_of_error(sent), code_of_error(sent, reads_only=True)] == [76, 69]
    assert [code_of_error(not_sent), code_of_error(not_sent, reads_only=True)] == [69, 69]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("division by zero"), 70),
        (TimeoutError("of another library"), 70),
        (ValueError("of another library"), 70),
        (OSError(5, "Input/output error"), 70),
        (asyncio.CancelledError(), 70),
    ],
)
def test_error_of_another_library_is_a_bug_and_a_keyboard_interrupt_is_none(error: BaseException, code: int) -> None:
    assert code_of_error(error) == code_of_error(error, reads_only=True) == code


@pytest.mark.parametrize(
    ("status", "signal_name", "code"),
    [
        (0, None, 0),
        (1, None, 1),
        (125, None, 125),
        (255, None, 255),
        (None, None, 74),
        (None, "KILL", 137),
        (None, "SEGV", 139),
        # A signal counts, and not the status that a server reports with it.
        (0, "TERM", 143),
        # Names that are not those of Linux.
        (None, "INFO", 255),
        (None, "", 255),
        (None, "SIGKILL", 255),
    ],
)
def test_result_has_its_status_or_128_and_the_number_of_its_signal(
    status: int | None, signal_name: str | None, code: int
) -> None:
    assert code_of_result(status, signal_name) == code


@pytest.mark.skipif(sys.platform != "linux", reason="the numbers are those of Linux")
@pytest.mark.parametrize("number", [number for number in signal.Signals if number < 32], ids=lambda number: number.name)
def test_signal_of_linux_has_the_number_that_python_knows(number: signal.Signals) -> None:
    assert code_of_result(None, number.name.removeprefix("SIG")) == 128 + number


@pytest.mark.parametrize("code", [ExitCode.HANGUP, ExitCode.INTERRUPTED, ExitCode.TERMINATED])
def test_signal_that_ends_this_program_has_an_exit_code_of_its_own(code: ExitCode) -> None:
    number = {"HANGUP": signal.SIGHUP, "INTERRUPTED": signal.SIGINT, "TERMINATED": signal.SIGTERM}[code.name]
    assert code_of_signal(number) == code


def test_every_exit_code_is_explained_in_its_order() -> None:
    assert list(EXPLANATIONS) == list(ExitCode) == sorted(ExitCode)
    assert all(text.endswith(".") for text in EXPLANATIONS.values())
    assert len(set(EXPLANATIONS.values())) == len(EXPLANATIONS)


def test_exit_codes_fit_in_a_byte() -> None:
    assert all(0 <= code <= 255 for code in ExitCode)
