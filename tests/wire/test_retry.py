"""When a call is sent again: a table, and bounds that hold for all inputs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    InvalidRequestError,
    RateLimitError,
    RentGPUError,
    Retries,
    ServerError,
    UnexpectedResponseError,
)
from netmind_rentgpu.wire.retry import delay_before_retry, may_repeat

DETAILS = {"code": None, "message": "", "body": None, "request_id": None, "method": "GET", "path": "/"}


def rate_limit(retry_after: float | None) -> RateLimitError:
    return RateLimitError("", retry_after=retry_after, status=429, **DETAILS)


def server(status: int, retry_after: float | None = None) -> ServerError:
    return ServerError("", retry_after=retry_after, status=status, **DETAILS)


def unexpected(*, truncated: bool) -> UnexpectedResponseError:
    return UnexpectedResponseError("", status=200, method="GET", path="/", truncated=truncated)


@pytest.mark.parametrize(
    ("error", "if_repeatable", "if_not"),
    [
        (APIConnectionError("", maybe_processed=False), True, True),
        (APIConnectionError("", maybe_processed=True), True, False),
        (APITimeoutError("", maybe_processed=False), True, True),
        (APITimeoutError("", maybe_processed=True), True, False),
        (rate_limit(None), True, True),
        (server(500), True, False),
        (server(502), True, False),
        (server(503), True, False),
        (server(504), True, False),
        (server(501), False, False),
        (APIStatusError("", status=408, **DETAILS), True, False),
        (APIStatusError("", status=418, **DETAILS), False, False),
        (InvalidRequestError("", fields=(), status=422, **DETAILS), False, False),
        (unexpected(truncated=True), True, False),
        (unexpected(truncated=False), False, False),
    ],
)
def test_error_is_retried_only_if_that_is_safe(error: RentGPUError, if_repeatable: bool, if_not: bool) -> None:
    assert may_repeat(error, idempotent=True) is if_repeatable
    assert may_repeat(error, idempotent=False) is if_not


def delay(error: RentGPUError, **situation: object) -> float | None:
    defaults = {"idempotent": True, "attempt": 1, "elapsed": 0.0, "remaining": None, "random": 1.0}
    return delay_before_retry(Retries(), error, **{**defaults, **situation})


def test_retry_delay_doubles_up_to_its_limit() -> None:
    assert [
        delay_before_retry(
            Retries(max_attempts=99), server(502), idempotent=True, attempt=n, elapsed=0, remaining=None, random=1
        )
        for n in range(1, 8)
    ] == [0.5, 1, 2, 4, 8, 8, 8]
    assert delay(server(502), random=0.0) == 0
    assert delay(server(502), random=0.5) == 0.25


def test_retry_delay_honours_retry_after() -> None:
    assert delay(rate_limit(5), random=0.0) == 5
    assert delay(rate_limit(5), random=1.0) == 5.5
    assert delay(server(503, 7), random=0.0) == 7
    assert delay(rate_limit(60), random=0.0) == 60
    assert delay(rate_limit(61)) is None
    assert delay(rate_limit(0), random=0.0) == 0


def test_retries_end_with_the_attempts_or_the_time() -> None:
    assert delay(server(502), attempt=3) == 2
    assert delay(server(502), attempt=4) is None
    assert delay(server(502), elapsed=119.4) == 0.5
    assert delay(server(502), elapsed=119.5) == 0.5
    assert delay(server(502), elapsed=119.6) is None
    assert delay(server(502), remaining=0.6) == 0.5
    assert delay(server(502), remaining=0.5) is None
    assert delay(rate_limit(30), remaining=20) is None


numbers = st.floats(min_value=0, max_value=1e9)
retries = st.builds(
    Retries,
    max_attempts=st.integers(1, 10_000),
    base_delay=numbers,
    max_delay=numbers,
    max_retry_after=numbers,
    max_elapsed=numbers,
)
errors = st.one_of(
    st.builds(APIConnectionError, st.just(""), maybe_processed=st.booleans()),
    st.builds(APITimeoutError, st.just(""), maybe_processed=st.booleans()),
    st.builds(rate_limit, st.none() | numbers),
    st.builds(server, st.integers(500, 599), st.none() | numbers),
    st.builds(unexpected, truncated=st.booleans()),
)


@given(
    retries=retries,
    error=errors,
    idempotent=st.booleans(),
    attempt=st.integers(1, 10_000),
    elapsed=numbers,
    remaining=st.none() | numbers,
    random=st.floats(0, 1, exclude_max=True),
)
def test_retry_limits_hold_for_all_inputs(
    retries: Retries,
    error: RentGPUError,
    idempotent: bool,
    attempt: int,
    elapsed: float,
    remaining: float | None,
    random: float,
) -> None:
    found = delay_before_retry(
        retries, error, idempotent=idempotent, attempt=attempt, elapsed=elapsed, remaining=remaining, random=random
    )
    if found is None:
        return
    assert may_repeat(error, idempotent=idempotent)
    assert attempt < retries.max_attempts
    assert elapsed + found <= retries.max_elapsed
    assert remaining is None or found < remaining
    asked = getattr(error, "retry_after", None)
    if asked is None:
        assert 0 <= found <= retries.max_delay
    else:
        assert asked <= found <= asked + retries.base_delay
        assert asked <= retries.max_retry_after
