"""What came of a create that failed, and what to do then. Pure."""

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
    ServerError,
    TransportError,
    UnexpectedResponseError,
)

__all__ = ["CreateOutcome", "outcome_of"]


class CreateOutcome(Enum):
    """What came of a create that failed."""

    NOT_PROCESSED = "it was not sent, or turned away before anything was done"
    UNCLEAR = "the service may have acted on it"
    MACHINE_UNAVAILABLE = "this machine cannot be had; another may"
    REFUSED = "it was refused, and no other machine would cure that"


_ABOUT_THE_ACCOUNT = (AuthenticationError, InsufficientBalanceError)
_MACHINE = re.compile(r"(?<![a-z])(node|machine|gpu)s?(?![a-z])", re.IGNORECASE)
_OTHER = re.compile(r"(?<![a-z])(auth|image|template|payment|balance|token|name|key)s?(?![a-z])", re.IGNORECASE)
_REQUEST_TIMEOUT = 408


def outcome_of(error: RentGPUError, node_name: str) -> CreateOutcome:
    """Judge a create's error.

    The service documents no error but 422, so its words count where they are about the machine, or clearly about something
    else. A refusal that says neither may be the machine's.
    """
    if _may_have_acted(error):
        return CreateOutcome.UNCLEAR
    if not isinstance(error, APIStatusError) or isinstance(error, RateLimitError):
        return CreateOutcome.NOT_PROCESSED
    if isinstance(error, _ABOUT_THE_ACCOUNT):
        return CreateOutcome.REFUSED
    return CreateOutcome.MACHINE_UNAVAILABLE if _is_about_the_machine(error, node_name) else CreateOutcome.REFUSED


def _may_have_acted(error: RentGPUError) -> bool:
    if isinstance(error, TransportError):
        return error.maybe_processed
    if isinstance(error, APIStatusError) and error.status == _REQUEST_TIMEOUT:
        return True
    return isinstance(error, (ServerError, UnexpectedResponseError))


def _is_about_the_machine(error: APIStatusError, node_name: str) -> bool:
    if node_name in error.message:
        return True
    if isinstance(error, InvalidRequestError) and error.fields:
        return any("node_name" in field.loc or "gpu" in field.loc for field in error.fields)
    if _MACHINE.search(error.message):
        return True
    return not isinstance(error, PermissionDeniedError) and not _OTHER.search(error.message)
