"""The outcome of a failed create, as its error shows it. Pure."""

from __future__ import annotations

import re
from enum import Enum

from netmind_rentgpu.errors import (
    APIStatusError,
    AuthenticationError,
    InsufficientBalanceError,
    InvalidRequestError,
    PermissionDeniedError,
    RateLimitError,
    RentGPUError,
)
from netmind_rentgpu.wire.retry import may_have_acted

__all__ = ["CreateOutcome", "outcome_of"]


class CreateOutcome(Enum):
    """The outcome of a create that failed."""

    NOT_PROCESSED = "the create was not sent, or the service turned it away before it acted"
    UNCLEAR = "the service may have acted on the create"
    MACHINE_UNAVAILABLE = "the service refused this machine, and may accept another"
    REFUSED = "the service refused the create, and would refuse it for any machine"


_ABOUT_THE_ACCOUNT = (AuthenticationError, InsufficientBalanceError)
_MACHINE = re.compile(r"(?<![a-z])(node|machine|gpu)s?(?![a-z])", re.IGNORECASE)
_OTHER = re.compile(r"(?<![a-z])(auth|image|template|payment|balance|token|name|key)s?(?![a-z])", re.IGNORECASE)


def outcome_of(error: RentGPUError, node_name: str) -> CreateOutcome:
    """Return the outcome of a create that failed with an error.

    The service documents no error but 422. So the words of a refusal decide, if they are about the machine, or clearly about
    something else. Any other refusal counts as about the machine, unless it is a 403.
    """
    if may_have_acted(error):
        return CreateOutcome.UNCLEAR
    if not isinstance(error, APIStatusError) or isinstance(error, RateLimitError):
        return CreateOutcome.NOT_PROCESSED
    if isinstance(error, _ABOUT_THE_ACCOUNT):
        return CreateOutcome.REFUSED
    return CreateOutcome.MACHINE_UNAVAILABLE if _is_about_the_machine(error, node_name) else CreateOutcome.REFUSED


def _is_about_the_machine(error: APIStatusError, node_name: str) -> bool:
    if node_name in error.message:
        return True
    if isinstance(error, InvalidRequestError) and error.fields:
        return any("node_name" in field.loc or "gpu" in field.loc for field in error.fields)
    if _MACHINE.search(error.message):
        return True
    return not isinstance(error, PermissionDeniedError) and not _OTHER.search(error.message)
