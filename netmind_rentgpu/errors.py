"""All errors of this package, in one tree.

    RentGPUError
    ├── ConfigurationError          token, URL, proxy, profile or session cannot be used
    ├── InvalidArgumentError        an argument breaks a documented limit (also a ValueError)
    ├── ClientStateError            the client is closed, or belongs to another event loop
    ├── TransportError              no answer came; `maybe_processed` is True if the service may have acted
    │   ├── APIConnectionError
    │   └── APITimeoutError         (also a TimeoutError)
    ├── APIStatusError              the service answered with an error
    │   ├── AuthenticationError         the service did not accept the token
    │   ├── PermissionDeniedError
    │   ├── InsufficientBalanceError
    │   ├── NotFoundError
    │   ├── ConflictError
    │   ├── InvalidRequestError         `fields` lists what the service rejected
    │   ├── RateLimitError              `retry_after` is the seconds to wait
    │   └── ServerError
    ├── UnexpectedResponseError     the answer is not what the service documents
    ├── WaitTimeoutError            a wait did not succeed in time (also a TimeoutError)
    ├── ContainerFailedError        a container met the `fail` condition of a wait
    ├── ContainerGoneError          a container that the caller waits for does not exist any more
    ├── SSHError                    a shell on a container failed; `stage` says at which step
    │   └── SSHTimeoutError             (also a TimeoutError)
    ├── NoMachineError              no machine could be rented; `refusals` says why
    ├── RentalNotFoundError         no such rental is on record
    ├── RentalInUseError            a process uses the rental
    ├── RentalEndedError            a rental ended before its user was done with it
    │   ├── RentalExpiredError          its time was up
    │   ├── RentalIdleError             its machine was idle for too long
    │   └── BudgetExceededError         its budget was spent
    ├── InsufficientBudgetError     a shared budget has no room for a rental
    ├── JobExistsError              the container has a job of that name already
    ├── JobNotFoundError            the container has no such job
    ├── ReleaseError                a rental's container could not be deleted; it is on record, for `reap`
    └── StateFileError              the state file cannot be used
        └── StateFolderError        it cannot be created or written in its place (also a ConfigurationError)

Errors can be pickled, and hold no token or password. This module imports only `escaping` from the package, and types.
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
    "InsufficientBudgetError",
    "InvalidArgumentError",
    "InvalidRequestError",
    "JobExistsError",
    "JobNotFoundError",
    "MachineRefusal",
    "NoMachineError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "ReleaseError",
    "RentGPUError",
    "RentalEndedError",
    "RentalExpiredError",
    "RentalIdleError",
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
    """The base class of all errors that this package raises.

    `str()` of an error is safe to show on a terminal, because it spells out control characters that a server has sent.
    """

    def __str__(self) -> str:
        return escaped(super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        # The constructors of subclasses have keyword arguments, which the default way of unpickling would not pass.
        return _rebuild, (type(self), self.args), self.__dict__


def _rebuild(kind: type[RentGPUError], args: tuple[Any, ...]) -> RentGPUError:
    error = kind.__new__(kind)
    # Set here for all classes, because a TimeoutError, as an OSError, gets its arguments from __init__ alone.
    error.args = args
    return error


class ConfigurationError(RentGPUError):
    """The client's token, base URL, proxy, profile or session cannot be used. Nothing was sent."""


class InvalidArgumentError(RentGPUError, ValueError):
    """An argument breaks a limit that the service documents, or cannot be sent at all. Nothing was sent.

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
        maybe_processed: True if the service may have acted on the request; False if the request certainly never reached it.
        is_permanent: True if another attempt would fail in the same way, as after a certificate that cannot be verified.
    """

    def __init__(self, message: str, *, maybe_processed: bool, is_permanent: bool = False) -> None:
        super().__init__(message)
        self.maybe_processed = maybe_processed
        self.is_permanent = is_permanent


class APIConnectionError(TransportError):
    """The client could not connect, or the connection broke before an answer came."""


class APITimeoutError(TransportError, TimeoutError):
    """A timeout passed before the client had read the answer, or before it could send the request."""


class APIStatusError(RentGPUError):
    """The service answered with an error.

    Attributes:
        status: the HTTP status.
        code: the service's own error code; None if the body has none.
        message: the service's own message, with passwords masked.
        body: the answer's body, parsed if it is JSON, with passwords masked.
        request_id: the answer's request id; None if it has none.
        method, path: the call's.
        earlier_attempt_unclear: True if the call was sent more than once and the service may have acted on an earlier
            attempt. A 404 to a delete may then mean that the earlier attempt has deleted the container.
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
    """The service did not accept the token."""


class PermissionDeniedError(APIStatusError):
    """The service accepted the token, but not the call."""


class InsufficientBalanceError(APIStatusError):
    """The balance that the call would charge is too low."""


class NotFoundError(APIStatusError):
    """The account has no such resource."""


class ConflictError(APIStatusError):
    """The resource is in a state that does not allow the call."""


class InvalidRequestError(APIStatusError):
    """The service refused the request's content.

    Attributes:
        fields: the rejected fields, if the service names them (a 422 does).
    """

    def __init__(self, text: str, *, fields: tuple[InvalidField, ...], **details: Any) -> None:
        super().__init__(text, **details)
        self.fields = fields


class _RetryLaterError(APIStatusError):
    """An error with which the service may ask the client to wait."""

    def __init__(self, text: str, *, retry_after: float | None, **details: Any) -> None:
        super().__init__(text, **details)
        self.retry_after = retry_after


class RateLimitError(_RetryLaterError):
    """The service refused the call because of too many requests (429).

    Attributes:
        retry_after: the seconds that the service asks to wait; None if it does not say.
    """


class ServerError(_RetryLaterError):
    """The service failed (5xx). It may have acted on the request.

    Attributes:
        retry_after: the seconds that the service asks to wait; None if it does not say.
    """


class UnexpectedResponseError(RentGPUError):
    """The answer is not what the service documents: a redirect, not JSON, cut short, too large, or of another shape.

    The service has most likely acted on the request.

    Attributes:
        status: the HTTP status.
        json_path: the faulty place in the body, such as `$[3].id`; `$` for the whole body.
        truncated: True if the connection broke inside the body.
        request_id: the answer's request id; None if it has none.
        method, path: the call's.
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
        place = "" if json_path == "$" else f" {json_path}"
        super().__init__(f"{method} {path} was answered with {status}, but{place} {problem}")
        self.status = status
        self.json_path = json_path
        self.truncated = truncated
        self.request_id = request_id
        self.method = method
        self.path = path


class _WaitError(RentGPUError):
    """A wait ended without success."""

    def __init__(self, text: str, *, arrived: Mapping[int, Container], pending: Mapping[int, Container | None]) -> None:
        super().__init__(text)
        self.arrived = arrived
        self.pending = pending


class WaitTimeoutError(_WaitError, TimeoutError):
    """A wait did not succeed in the time allowed.

    The error's `__cause__` is the error of the last login, or of the last poll of the containers, if one of them failed.

    Attributes:
        arrived: the containers for which the wait succeeded, by id.
        pending: the other containers by id, each as it was last seen; None for a container that was never seen.
    """


class ContainerFailedError(_WaitError):
    """A container met the `fail` condition of a wait.

    Attributes:
        container: the container, as it was when it met the condition.
        arrived, pending: as those of a `WaitTimeoutError`.
    """

    def __init__(self, text: str, *, container: Container, **seen: Any) -> None:
        super().__init__(text, **seen)
        self.container = container


class ContainerGoneError(_WaitError):
    """A container that the caller waits for does not exist any more, or never did.

    Attributes:
        container_id: the container's id.
        container: the container as it was last seen; None if it was never seen.
        arrived, pending: as those of a `WaitTimeoutError`.
    """

    def __init__(self, text: str, *, container_id: int, container: Container | None, **seen: Any) -> None:
        super().__init__(text, **seen)
        self.container_id = container_id
        self.container = container


SSHStage: TypeAlias = Literal["name", "connection", "host key", "password", "command", "transfer"]
"""A step at which a shell can fail: finding the host, connecting to it, checking its key, logging in, a command, copying."""


class SSHError(RentGPUError):
    """A shell on a container could not be opened, lost its connection, or failed at what it was asked to do.

    Attributes:
        stage: the step that failed. `name`: the container names no endpoint, or its host's name is not known. `connection`:
            no SSH server answers there, or the connection was lost. `host key`: the server has another key than this
            container had. `password`: the login failed. `command`: a command failed, or did not end in time. `transfer`:
            copying failed.
        result: the result of a command that failed, or did not end in time; else None.
    """

    def __init__(self, message: str, *, stage: SSHStage, result: CommandResult | None = None) -> None:
        super().__init__(message)
        self.stage: SSHStage = stage
        self.result = result


class SSHTimeoutError(SSHError, TimeoutError):
    """A login, a command or a transfer did not end in time."""


@attrs.frozen(kw_only=True)
class MachineRefusal:
    """The reason why a rental did not get one machine.

    Attributes:
        machine: the machine.
        error: the machine's refusal, which came now or within the last minute; or the error of a create whose container was
            never found; or the error with which the machine's container did not start.
        container_id: the id of a container that did not start and was deleted; else None.
    """

    machine: Machine
    error: RentGPUError
    container_id: int | None = None

    def __str__(self) -> str:
        started = "" if self.container_id is None else f" (container {self.container_id}, deleted)"
        return f"{escaped(self.machine.node_name)}{started}: {self.error}"


class NoMachineError(RentGPUError):
    """No machine on offer met the requirements, or all that did refused the create or did not start.

    Attributes:
        refusals: the reason for each machine that was tried, or had refused within the last minute; empty if no machine met
            the requirements.
    """

    def __init__(self, message: str, *, refusals: tuple[MachineRefusal, ...] = ()) -> None:
        super().__init__(message)
        self.refusals = refusals


class _RentalError(RentGPUError):
    """An error of one rental."""

    def __init__(self, message: str, *, name: str, container_id: int | None) -> None:
        super().__init__(message)
        self.name = name
        self.container_id = container_id


class RentalNotFoundError(RentGPUError):
    """No rental that the caller means is on record in the state file."""


class RentalInUseError(_RentalError):
    """Another process or client holds a rental, or this one does, so that it is not attached to or released.

    Attributes:
        name, container_id: as those of a `RentalEndedError`.
    """


class RentalEndedError(_RentalError):
    """A rental ended before its user was done with it.

    Attributes:
        name: the name of the rental's container.
        container_id: the id of the rental's container; None if it is not known.
    """


class RentalExpiredError(RentalEndedError):
    """A rental's time was up, and the deletion of its container was begun."""


class RentalIdleError(RentalEndedError):
    """A rental's machine was idle for its `idle_timeout`, and the deletion of its container was begun."""


class BudgetExceededError(RentalEndedError):
    """A rental's listed price used up its budget, and the deletion of its container was begun."""


class InsufficientBudgetError(RentGPUError):
    """A shared budget has no room for a rental, or for its extension. No create was sent for it.

    Attributes:
        budget: the budget's name.
        limit: the limit that has no room: of a period, or of an hour.
        spent: the cost of rentals that are over, in that period.
        reserved: the cost that open rentals may come to in that period; for the limit of an hour, the price of what runs.
        holders: the names of the open rentals.
    """

    def __init__(
        self, message: str, *, budget: str, limit: Decimal, spent: Decimal, reserved: Decimal, holders: tuple[str, ...]
    ) -> None:
        super().__init__(message)
        self.budget = budget
        self.limit = limit
        self.spent = spent
        self.reserved = reserved
        self.holders = holders


class ReleaseError(_RentalError):
    """A rental's container could not be deleted. **It costs money until it is deleted**; it stays on record, for `reap`.

    Attributes:
        name, container_id: as those of a `RentalEndedError`.
        hourly_price: the listed price of one hour; None if that could not be read.
    """

    def __init__(self, message: str, *, hourly_price: Decimal | None, **rental: Any) -> None:
        super().__init__(message, **rental)
        self.hourly_price = hourly_price


class _JobError(RentGPUError):
    """A problem with a job that has a name on its container."""

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


class JobExistsError(_JobError):
    """The container has another job of that name already.

    Attributes:
        name: the name.
    """


class JobNotFoundError(_JobError):
    """The container has no such job: it was removed, or never started there.

    Attributes:
        name: the name of the job.
    """


class StateFileError(RentGPUError):
    """The state file cannot be read or written, is damaged, or was written by a newer version of this package."""


class StateFolderError(StateFileError, ConfigurationError):
    """The state file cannot be created or written in its place; choose another place with `state=`."""
