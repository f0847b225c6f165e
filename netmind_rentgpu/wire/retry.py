"""The decision whether, and after how many seconds, a failed call is retried. Pure; `Retries` documents the rules.

A create is not idempotent. It is sent again only if it was certainly not sent, or was refused with a 429: here, within one
call of `wire/caller.py`, which waits for `delay_before_retry`. A rental's create that has failed for good is never repeated.
If the machine has refused it, or a search has not found its container, another attempt follows under another name
(`rentals/lifecycle/provisioner.py`); otherwise the error is raised.
"""

from __future__ import annotations

from netmind_rentgpu.concurrency.backoff import backoff_delay
from netmind_rentgpu.errors import RateLimitError, RentGPUError, ServerError, TransportError, UnexpectedResponseError
from netmind_rentgpu.settings import Retries

__all__ = ["delay_before_retry", "may_have_acted", "may_repeat"]

_REQUEST_TIMEOUT = 408
_PASSING_STATUSES = frozenset({_REQUEST_TIMEOUT, 500, 502, 503, 504})


def may_have_acted(error: RentGPUError) -> bool:
    """Return True if the service may have acted on a request that failed with this error."""
    if isinstance(error, TransportError):
        return error.maybe_processed
    is_timeout = getattr(error, "status", None) == _REQUEST_TIMEOUT
    return is_timeout or isinstance(error, (ServerError, UnexpectedResponseError))


def may_repeat(error: RentGPUError, *, idempotent: bool) -> bool:
    """Return True if a request that failed with an error may be sent again.

    Args:
        idempotent: True if sending the request twice has the effect of sending it once.
    """
    if isinstance(error, TransportError):
        return not error.is_permanent and (idempotent or not error.maybe_processed)
    if isinstance(error, RateLimitError):
        return True
    if isinstance(error, UnexpectedResponseError):
        return idempotent and error.truncated
    return idempotent and getattr(error, "status", None) in _PASSING_STATUSES


def delay_before_retry(
    retries: Retries,
    error: RentGPUError,
    *,
    idempotent: bool,
    attempt: int,
    elapsed: float,
    remaining: float | None,
    random: float,
) -> float | None:
    """Return how many seconds to wait before the next attempt, or None to give up.

    Args:
        attempt: the number of attempts so far, the failed one included.
        elapsed: seconds since the call first got a slot among `max_connections`.
        remaining: seconds until the call's total timeout; None without one.
        random: a random number from 0 up to 1.
    """
    if attempt >= retries.max_attempts or not may_repeat(error, idempotent=idempotent):
        return None
    delay = backoff_delay(attempt - 1, first=retries.base_delay, longest=retries.max_delay, factor=2) * random
    asked = error.retry_after if isinstance(error, (RateLimitError, ServerError)) else None
    if asked is not None:
        if asked > retries.max_retry_after:
            return None
        # With a random part, so that calls with the same `Retry-After` do not all come back at once.
        delay = asked + min(delay, retries.base_delay)
    if elapsed + delay > retries.max_elapsed or (remaining is not None and delay >= remaining):
        return None
    return delay
