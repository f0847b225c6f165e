"""Everything this package raises, in one tree.

    RentGPUError
    ├── ConfigurationError          token, URL, proxy, profile or session cannot be used
    ├── InvalidArgumentError        an argument breaks a documented limit (also a ValueError)
    ├── ClientStateError            the client is closed, or belongs to another event loop
    ├── TransportError              no answer came; `maybe_processed` says whether it may have been acted on
    │   ├── APIConnectionError
    │   └── APITimeoutError         (also a TimeoutError)
    ├── APIStatusError              the service answered with an error
    │   ├── AuthenticationError         the token was not accepted
    │   ├── PermissionDeniedError
    │   ├── InsufficientBalanceError
    │   ├── NotFoundError
    │   ├── ConflictError
    │   ├── InvalidRequestError         `fields` says what was rejected
    │   ├── RateLimitError              `retry_after` says for how long
    │   └── ServerError
    ├── UnexpectedResponseError     an answer that is not what the service documents
    ├── WaitTimeoutError            what was waited for did not come in time (also a TimeoutError)
    ├── ContainerFailedError        a container came to a state that the waiter named a failure
    ├── ContainerGoneError          a container that was waited for does not exist any more
    ├── SSHError                    a shell on a container: `stage` says what failed
    │   └── SSHTimeoutError             (also a TimeoutError)
    ├── NoMachineError              nothing on offer met the needs, or all that did refused: `refusals` says why
    ├── RentalEndedError            a rental is over before its user was done with it
    │   ├── RentalExpiredError          its time was up
    │   └── BudgetExceededError         its budget was spent
    ├── ReleaseError                a rental could not be deleted; it is on record, for `reap`
    └── StateFileError              the state file cannot be used
        └── StateFolderError        nor created where it is to be; also a ConfigurationError

Errors can be pickled, and hold no token or password. This module touches nothing of the package but, for types, the models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs

from netmind_rentgpu.escaping import escaped

if TYPE_CHECKING:
    from decimal import Decimal

    from netmind_rentgpu.models import Container, InvalidField, Machine
    from netmind_rentgpu.results import CommandResult

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AuthenticationError",
    "BudgetExceededError",
    "ClientStateError",
    "ConfigurationError",
    "ConflictError",
    "ContainerFailedError",
    "ContainerGoneError",
    "InsufficientBalanceError",
    "InvalidArgumentError",
    "InvalidRequestError",
    "MachineRefusal",
    "NoMachineError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "ReleaseError",
    "RentGPUError",
    "RentalEndedError",
    "RentalExpiredError",
    "SSHError",
    "SSHStage",
    "SSHTimeoutError",
    "ServerError",
    "StateFileError",
    "StateFolderError",
    "TransportError",
    "UnexpectedResponseError",
    "WaitTimeoutError",
]


class RentGPUError(Exception):
    """The base of all that this package raises.

    `str()` of an error can be shown on a terminal: control characters that a service or a server has sent are written out.
    """

    def __str__(self) -> str:
        return escaped(super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        # The constructors of subclasses take keywords that the default way of unpickling would not pass.
        return _rebuild, (type(self), self.args), self.__dict__


def _rebuild(kind: type[RentGPUError], args: tuple[Any, ...]) -> RentGPUError:
    error = kind.__new__(kind)
    # An OSError takes its arguments from __init__ alone, so they are set here for all.
    error.args = args
    return error


class ConfigurationError(RentGPUError):
    """The client cannot be set up: token, base URL, proxy, profile or session. Nothing was sent."""


class InvalidArgumentError(RentGPUError, ValueError):
    """An argument breaks a limit that the service documents, or cannot be put on the wire. Nothing was sent.

    Attributes:
        argument: the argument's name.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument}: {problem}")
        self.argument = argument


class ClientStateError(RentGPUError):
    """The client is closed, or was first used in another event loop."""


class TransportError(RentGPUError):
    """No answer came from the service.

    Attributes:
        maybe_processed: False where the request surely never reached the service; True where it may have acted on it.
    """

    def __init__(self, message: str, *, maybe_processed: bool) -> None:
        super().__init__(message)
        self.maybe_processed = maybe_processed


class APIConnectionError(TransportError):
    """The connection could not be made, or broke before an answer came."""


class APITimeoutError(TransportError, TimeoutError):
    """A timeout passed before an answer came, or before a connection was free."""


class APIStatusError(RentGPUError):
    """The service answered with an error.

    Attributes:
        status: the HTTP status.
        code: the service's own error code, where its body has one.
        message: what the service said, as it said it.
        body: the answer's body, parsed where it is JSON, with passwords masked.
        request_id: the answer's request id, where it has one.
        method, path: the call.
        earlier_attempt_unclear: True where the call was sent more than once and an earlier attempt may have been acted on,
            so that a 404 to a delete may be that attempt's own work.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int,
        code: str | None,
        message: str,
        body: Any,
        request_id: str | None,
        method: str,
        path: str,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.message = message
        self.body = body
        self.earlier_attempt_unclear = False
        self.request_id = request_id
        self.method = method
        self.path = path


class AuthenticationError(APIStatusError):
    """The token was not accepted."""


class PermissionDeniedError(APIStatusError):
    """The token was accepted, the call was not."""


class InsufficientBalanceError(APIStatusError):
    """The balance that the call would be charged to is too low."""


class NotFoundError(APIStatusError):
    """There is no such thing under this account."""


class ConflictError(APIStatusError):
    """The thing is in a state that does not allow the call."""


class InvalidRequestError(APIStatusError):
    """The service refused the request's content.

    Attributes:
        fields: what was rejected, where the service says so (a 422 does).
    """

    def __init__(self, text: str, *, fields: tuple[InvalidField, ...], **details: Any) -> None:
        super().__init__(text, **details)
        self.fields = fields


class _LaterError(APIStatusError):
    """The service may say for how many seconds to wait."""

    def __init__(self, text: str, *, retry_after: float | None, **details: Any) -> None:
        super().__init__(text, **details)
        self.retry_after = retry_after


class RateLimitError(_LaterError):
    """Too many requests.

    Attributes:
        retry_after: seconds the service asks to wait, where it says so.
    """


class ServerError(_LaterError):
    """The service failed (5xx). Whether it acted on the request is not known.

    Attributes:
        retry_after: seconds the service asks to wait, where it says so.
    """


class UnexpectedResponseError(RentGPUError):
    """An answer that is not what the service documents: a redirect, not JSON, cut short, too large, or another shape.

    The service has most likely acted on the request.

    Attributes:
        status: the HTTP status.
        json_path: where in the body the trouble is, as `$[3].id`; `$` for the whole of it.
        truncated: True where the connection broke inside the body.
        request_id: the answer's request id, where it has one.
        method, path: the call.
    """

    def __init__(
        self,
        problem: str,
        *,
        status: int,
        method: str,
        path: str,
        json_path: str = "$",
        truncated: bool = False,
        request_id: str | None = None,
    ) -> None:
        place = "" if json_path == "$" else f" at {json_path}"
        super().__init__(f"{method} {path} was answered with {status}, but{place} {problem}")
        self.status = status
        self.json_path = json_path
        self.truncated = truncated
        self.request_id = request_id
        self.method = method
        self.path = path


class _WaitError(RentGPUError):
    """A wait that ended without what it was for."""

    def __init__(self, text: str, *, arrived: Mapping[int, Container], pending: Mapping[int, Container | None]) -> None:
        super().__init__(text)
        self.arrived = arrived
        self.pending = pending


class WaitTimeoutError(_WaitError, TimeoutError):
    """A wait ended without success in the time allowed. Its cause is the error of the last login, or of the last look at the
    containers, if one failed.

    Attributes:
        arrived: the containers that had come to what was waited for, by id.
        pending: the others, by id, as each was last seen; None for one that was not seen at all.
    """


class ContainerFailedError(_WaitError):
    """A container came to a state that the waiter named a failure.

    Attributes:
        container: that container, as it was seen then.
        arrived, pending: as those of a `WaitTimeoutError`.
    """

    def __init__(self, text: str, *, container: Container, **seen: Any) -> None:
        super().__init__(text, **seen)
        self.container = container


class ContainerGoneError(_WaitError):
    """A container that was waited for does not exist any more, or never did.

    Attributes:
        container_id: its id.
        container: how it was last seen; None if it was not seen at all.
        arrived, pending: as those of a `WaitTimeoutError`.
    """

    def __init__(self, text: str, *, container_id: int, container: Container | None, **seen: Any) -> None:
        super().__init__(text, **seen)
        self.container_id = container_id
        self.container = container


SSHStage: TypeAlias = Literal["name", "connection", "host key", "password", "command", "transfer"]
"""What of a shell failed: finding the host, connecting to it, its identity, logging in, a command, or copying."""


class SSHError(RentGPUError):
    """A shell on a container could not be had, was lost, or did not do what it was asked for.

    Attributes:
        stage: what failed. `name`: the container names no endpoint, or its host's name is not known. `connection`: no SSH
            server answers there, or the connection was lost. `host key`: it is not the server that this container had.
            `password`: it was not let in. `command`: a command failed, or did not end in time. `transfer`: copying.
        result: of a command that ended, what came of it.
    """

    def __init__(self, message: str, *, stage: SSHStage, result: CommandResult | None = None) -> None:
        super().__init__(message)
        self.stage: SSHStage = stage
        self.result = result


class SSHTimeoutError(SSHError, TimeoutError):
    """It took too long."""


@attrs.frozen(kw_only=True)
class MachineRefusal:
    """Why one machine could not be had.

    Attributes:
        machine: which.
        error: how it refused, now or within the last minute; for a create that was never found, how that failed; for a
            container that did not start, why not.
        container_id: that of a container that did not start, and was deleted; else None.
    """

    machine: Machine
    error: RentGPUError
    container_id: int | None = None

    def __str__(self) -> str:
        started = "" if self.container_id is None else f" (container {self.container_id}, gone now)"
        return f"{escaped(self.machine.node_name)}{started}: {self.error}"


class NoMachineError(RentGPUError):
    """Nothing on offer met the needs, or all that did refused, or did not start.

    Attributes:
        refusals: why each machine that was tried, or had refused a moment ago, could not be had; empty where none met the
            needs.
    """

    def __init__(self, message: str, *, refusals: tuple[MachineRefusal, ...] = ()) -> None:
        super().__init__(message)
        self.refusals = refusals


class _RentalError(RentGPUError):
    """Something about one rental."""

    def __init__(self, message: str, *, name: str, container_id: int | None) -> None:
        super().__init__(message)
        self.name = name
        self.container_id = container_id


class RentalEndedError(_RentalError):
    """A rental is over before its user was done with it.

    Attributes:
        name: its container's name.
        container_id: its container's id; None where that is not known.
    """


class RentalExpiredError(RentalEndedError):
    """A rental's time was up, and its deletion was begun."""


class BudgetExceededError(RentalEndedError):
    """A rental's budget was spent, by its listed price, and its deletion was begun."""


class ReleaseError(_RentalError):
    """A rental could not be deleted. **It costs money until it is**; it is on record, for `reap` to delete.

    Attributes:
        name, container_id: as those of a `RentalEndedError`.
        hourly_price: what an hour costs, as it was listed; None where that could not be read.
    """

    def __init__(self, message: str, *, hourly_price: Decimal | None, **rental: Any) -> None:
        super().__init__(message, **rental)
        self.hourly_price = hourly_price


class StateFileError(RentGPUError):
    """The state file cannot be used: it cannot be read or written, is damaged, or is of a newer version."""


class StateFolderError(StateFileError, ConfigurationError):
    """The state file cannot be created or written where it is to be; choose another place, by `state=`."""
