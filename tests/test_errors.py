"""The tree of errors."""

import pickle
from decimal import Decimal
from typing import Any

import pytest

import netmind_rentgpu
from netmind_rentgpu import errors
from netmind_rentgpu.models import Container, InvalidField, Machine
from netmind_rentgpu.results import CommandResult

DETAILS: dict[str, Any] = {
    "status": 400,
    "code": "C",
    "message": "m",
    "body": {"a": [1]},
    "request_id": "r",
    "method": "GET",
    "path": "/x",
}
EXAMPLES = [
    errors.ConfigurationError("text"),
    errors.InvalidArgumentError("gpu", "too many"),
    errors.ClientStateError("text"),
    errors.APIConnectionError("text", maybe_processed=True),
    errors.APITimeoutError("text", maybe_processed=False),
    *(
        kind("text", **DETAILS)
        for kind in (
            errors.APIStatusError,
            errors.AuthenticationError,
            errors.PermissionDeniedError,
            errors.InsufficientBalanceError,
            errors.NotFoundError,
            errors.ConflictError,
        )
    ),
    errors.InvalidRequestError("text", fields=(InvalidField(("body",), "m", "t"),), **DETAILS),
    errors.RateLimitError("text", retry_after=1.5, **DETAILS),
    errors.ServerError("text", retry_after=None, **DETAILS),
    errors.UnexpectedResponseError("text", status=200, method="GET", path="/x", json_path="$.a", truncated=True),
    errors.WaitTimeoutError("text", arrived={1: Container(id=1)}, pending={2: None}),
    errors.ContainerFailedError("text", container=Container(id=1), arrived={}, pending={}),
    errors.ContainerGoneError("text", container_id=1, container=None, arrived={}, pending={}),
    errors.SSHError(
        "text", stage="command", result=CommandResult(command="false", exit_status=1, stdout="", stderr="e")
    ),
    errors.SSHTimeoutError("text", stage="connection"),
    errors.NoMachineError("text"),
    errors.RentalNotFoundError("text"),
    errors.RentalInUseError("text", name="rg-1", container_id=1),
    errors.RentalEndedError("text", name="rg-1", container_id=1),
    errors.RentalExpiredError("text", name="rg-1", container_id=1),
    errors.RentalIdleError("text", name="rg-1", container_id=1),
    errors.BudgetExceededError("text", name="rg-1", container_id=1),
    errors.InsufficientBudgetError(
        "text", budget="team", limit=Decimal(5), spent=Decimal(1), reserved=Decimal("4.5"), holders=("rg-1",)
    ),
    errors.ReleaseError("text", name="rg-1", container_id=None, hourly_price=Decimal("0.5")),
    errors.JobExistsError("text", name="train"),
    errors.JobNotFoundError("text", name="train"),
    errors.StateFileError("text"),
    errors.StateFolderError("text"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickling(error: errors.RentGPUError, protocol: int) -> None:
    error.add_note("a note")
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_machine_refusals_survive_pickling_with_their_error() -> None:
    refusal = errors.MachineRefusal(machine=Machine(node_name="node"), error=errors.ConflictError("full", **DETAILS))
    again = pickle.loads(pickle.dumps(errors.NoMachineError("text", refusals=(refusal,))))
    assert [(refusal.machine.node_name, str(refusal.error)) for refusal in again.refusals] == [("node", "full")]


def test_every_public_error_is_in_the_tree_and_has_an_example() -> None:
    public = {
        value
        for name in netmind_rentgpu.__all__
        if isinstance(value := getattr(netmind_rentgpu, name), type) and issubclass(value, BaseException)
    }
    assert all(issubclass(kind, errors.RentGPUError) for kind in public)
    assert {type(error) for error in EXAMPLES} == public - {errors.RentGPUError, errors.TransportError}
    tree = errors.__doc__ or ""
    assert all(kind.__name__ in tree for kind in public)


def test_errors_also_derive_from_builtin_errors() -> None:
    assert issubclass(errors.InvalidArgumentError, ValueError)
    assert issubclass(errors.APITimeoutError, TimeoutError)
    assert issubclass(errors.WaitTimeoutError, TimeoutError)
    assert str(errors.APITimeoutError("text", maybe_processed=True)) == "text"
    assert str(errors.InvalidArgumentError("gpu", "too many")) == "gpu: too many"
