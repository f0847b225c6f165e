"""Errors as the command line shows them: the exit code, the text, and what to do. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import attrs

from netmind_rentgpu import errors
from netmind_rentgpu.cli.exit_codes import ExitCode, code_of_error
from netmind_rentgpu.cli.output import OutputClosedError, OutputError
from netmind_rentgpu.escaping import escaped

__all__ = ["CommandError", "Problem", "in_own_words", "problem_of"]


class CommandError(Exception):
    """A command cannot do its work, and no error of the client says so.

    Attributes:
        code: the exit code.
        hint: what the user can do; empty if the message says it.
    """

    def __init__(self, code: ExitCode, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


@attrs.frozen(kw_only=True)
class Problem:
    """An error as it is shown.

    Attributes:
        exit_code: the exit code.
        error: the name of the error's class.
        message: the text.
        code, status, request_id: the service's own error code, the HTTP status and the request's id; None without an answer.
        maybe_processed: True if the service may have acted on the call; None for an error of another kind.
        hint: what the user can do; None if the message says it.
    """

    exit_code: int
    error: str
    message: str
    code: str | None = None
    status: int | None = None
    request_id: str | None = None
    maybe_processed: bool | None = None
    hint: str | None = None

    @property
    def text(self) -> str:
        """The error in a line or a few."""
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for a line of JSON."""
        return attrs.asdict(self)


_HINTS: Final[Mapping[type[BaseException], str]] = {
    errors.AuthenticationError: "Run `rentgpu login`, or set NETMIND_API_KEY to a token of your account.",
    errors.ReleaseError: "It costs money until it is deleted: run `rentgpu rentals reap`, and see `rentgpu rentals list`.",
    errors.NoMachineError: "See `rentgpu offers` for what there is; `--gpu` may be given several times.",
    errors.RentalInUseError: "See `rentgpu rentals show` for the process that uses it.",
    errors.InsufficientBudgetError: "See `rentgpu budgets list`, or set another limit with `rentgpu budgets set`.",
    errors.JobNotFoundError: "See `rentgpu jobs list` for those that there are.",
}
# By the client's argument: the option that gives it.
_OPTIONS: Final[Mapping[str, str]] = {
    "gpu_name": "--gpu",
    "regions": "--region",
    "min_cuda": "--cuda",
    "payment_type": "--balance",
    "grace": "--grace",
    "environment": "--env",
    "gpu": "--gpus",
    "gpu_names": "--gpu",
    "region": "--region",
    "image_type": "--type",
    "auth_id": "--auth",
    "node_name": "--machine",
    "image_template_id": "--image",
    "options": "--options",
    "value": "the password",
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            *(
                "gpus",
                "max_price",
                "min_memory",
                "min_gpu_memory",
                "min_disk",
                "image",
                "exclude",
                "ttl",
                "extendable_to",
            ),
            *("min_price", "max_memory", "max_disk", "currency"),
            *("budget", "shared_budget", "label", "until", "timeout", "tail", "since", "hourly", "per"),
        )
    },
}
_WITHOUT_ACCOUNT: Final = "Or try all this without an account: `rentgpu emulator`."


# The client's errors and warnings speak of its own names.
_REWRITTEN: Final = (
    (re.compile(r"`?(?:gpu\.)?rentals\.reap\(wait=True\)`?"), "`rentgpu rentals reap --wait`"),
    (re.compile(r"`?(?:gpu\.)?rentals\.reap\(by_name=True\)`?"), "`rentgpu rentals reap --by-name`"),
    (re.compile(r"`?(?:gpu\.)?rentals\.reap\(\)`?"), "`rentgpu rentals reap`"),
    (re.compile(r"`?(?:gpu\.)?rentals\.release\([^)]*\)`?"), "`rentgpu rentals release`"),
    (re.compile(r"pass token=\.\.\., or set"), "set"),
    (re.compile(r"pass state=\.\.\., or set"), "give --state, or set"),
)


def in_own_words(text: str) -> str:
    """Return a text of the client with the command line's words for its calls and arguments."""
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    return text


def problem_of(error: BaseException, *, reads_only: bool = False) -> Problem:
    """Return how an error is shown.

    Args:
        reads_only: True if the command changes nothing at the service.
    """
    name, message = type(error).__name__, escaped(str(error)) or type(error).__name__
    if isinstance(error, CommandError):
        name = "UsageError" if error.code is ExitCode.USAGE else name
        return Problem(exit_code=error.code, error=name, message=message, hint=error.hint or None)
    if isinstance(error, OutputError):
        closed = isinstance(error, OutputClosedError)
        return Problem(exit_code=ExitCode.OUTPUT_CLOSED if closed else ExitCode.LOST, error=name, message=message)
    if isinstance(error, errors.InvalidArgumentError):
        # By the option that the user has typed, where there is one.
        message = re.sub(r"^(\w+)", lambda found: _OPTIONS.get(found[1], found[1]), message)
    if isinstance(error, OSError) and not isinstance(error, errors.RentGPUError):
        # One without a name is no file that the user has named.
        is_named = isinstance(error, FileNotFoundError) and error.filename is not None
        code = ExitCode.NOT_FOUND if is_named else ExitCode.LOST
        return Problem(exit_code=code, error=name, message=message)
    message = in_own_words(message)
    notes = [in_own_words(escaped(note)) for note in getattr(error, "__notes__", ())]
    code = code_of_error(error, reads_only=reads_only)
    hint = next((text for kind, text in _HINTS.items() if isinstance(error, kind)), "")
    if isinstance(error, errors.ConfigurationError) and message.startswith("no API token:"):
        hint = _WITHOUT_ACCOUNT
    if code is ExitCode.BUG:
        message = f"{name}: {message}" if str(error) else name
        hint = "This is a bug of rentgpu. With --debug, the same command prints where it happened."
    return Problem(
        exit_code=code,
        error=name,
        message="\n".join([message, *notes]),
        code=_escaped(getattr(error, "code", None)),
        status=getattr(error, "status", None),
        request_id=_escaped(getattr(error, "request_id", None)),
        maybe_processed=getattr(error, "maybe_processed", None),
        hint=hint or None,
    )


def _escaped(text: Any) -> Any:
    # Here, because the writer of notes would escape what stands in JSON, which has no such escapes.
    return escaped(text) if isinstance(text, str) else text
