"""Outcomes of a failed create. The bodies are the contract's, the emulator's, and other plausible bodies."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from turns import run_at_once

from netmind_rentgpu.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ClientStateError,
    ConfigurationError,
    InsufficientBalanceError,
    InvalidArgumentError,
    RateLimitError,
    RentGPUError,
    UnexpectedResponseError,
)
from netmind_rentgpu.rentals.lifecycle.create_errors import CreateOutcome, outcome_of
from netmind_rentgpu.wire.messages import RawResponse, Request
from netmind_rentgpu.wire.responses import payload

NODE = "node-us-0007"
NOTHING, UNCLEAR = CreateOutcome.NOT_PROCESSED, CreateOutcome.UNCLEAR
MACHINE, HOPELESS = CreateOutcome.MACHINE_UNAVAILABLE, CreateOutcome.REFUSED


def refused(status: int, body: Any) -> RentGPUError:
    """Return the error that the client raises for an answer to a create."""
    request = Request(method="POST", path="/v1/rentgpu/containers/", idempotent=False, avoid_idle_connection=True)
    answer = RawResponse(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode())
    with pytest.raises(RentGPUError) as caught:
        run_at_once(
            payload(request, answer, validation_errors_key="detail", token="t-0", now=lambda: datetime.now(UTC))
        )
    return caught.value


def rejected(*fields: str) -> dict[str, Any]:
    """Return the body of a 422."""
    return {"detail": [{"loc": ["body", name], "msg": "value is not valid", "type": "value_error"} for name in fields]}


def unexpected(*, truncated: bool) -> UnexpectedResponseError:
    return UnexpectedResponseError("", status=200, method="POST", path="/", truncated=truncated)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (APIConnectionError("", maybe_processed=False), NOTHING),
        (APIConnectionError("", maybe_processed=True), UNCLEAR),
        (APITimeoutError("", maybe_processed=False), NOTHING),
        (APITimeoutError("", maybe_processed=True), UNCLEAR),
        (unexpected(truncated=True), UNCLEAR),
        (unexpected(truncated=False), UNCLEAR),
        (ClientStateError("this client is closed"), NOTHING),
        (ConfigurationError("the proxy cannot be used"), NOTHING),
        (InvalidArgumentError("gpu", "must be from 1 to 12"), NOTHING),
    ],
)
def test_error_without_an_answer_is_unclear_only_if_the_service_may_have_acted(
    error: RentGPUError, expected: CreateOutcome
) -> None:
    assert outcome_of(error, NODE) is expected


STOCK_OUT = f"node {NODE} has 0 free GPUs, 1 were asked for"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"Internal Server Error"),
        (500, {"detail": STOCK_OUT}),
        (501, {}),
        (502, b"<html><head><title>502 Bad Gateway</title></head></html>"),
        (503, {"detail": "Service Unavailable"}),
        (504, {"detail": "balance not enough"}),
        (599, {"message": "Invalid API key"}),
        (408, {"detail": "Request Timeout"}),
        (408, {"detail": STOCK_OUT}),
        (302, b""),
        (304, {"detail": STOCK_OUT}),
        (200, b"<html>sign in</html>"),
    ],
)
def test_answer_after_which_a_container_may_exist_is_unclear(status: int, body: Any) -> None:
    assert outcome_of(refused(status, body), NODE) is UNCLEAR


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"detail": STOCK_OUT}),
        (400, {"detail": "node is full"}),
        (400, {"detail": "Out of stock"}),
        (400, {"detail": "sold out"}),
        (400, {"detail": "Insufficient resources"}),
        (400, {"detail": "not enough GPUs"}),
        (400, {"message": "MACHINE OFFLINE"}),
        (400, {"error": {"message": "no capacity"}}),
        (400, {"code": "E1042"}),
        (400, {}),
        (403, {"detail": "this machine is for its owner alone"}),
        (404, {"detail": "Node not found"}),
        (404, {"detail": f"{NODE} is gone"}),
        (409, {"detail": "the GPU is in use"}),
        (409, {"detail": "try another one"}),
        (410, {"detail": "Gone"}),
        (418, b"no"),
        (422, {"detail": "wrong"}),
        (422, rejected("node_name")),
        (422, rejected("gpu")),
        (422, rejected("name", "node_name")),
        # An answer that names the machine is about the machine, with any other words in it.
        (400, {"detail": f"the image cannot be run on {NODE}"}),
        (403, {"detail": f"not allowed: {NODE}"}),
        (422, {"detail": [{"loc": ["body"], "msg": f"{NODE} does not take this image", "type": "v"}]}),
    ],
)
def test_refusal_because_of_the_machine_lets_another_machine_be_tried(status: int, body: Any) -> None:
    assert outcome_of(refused(status, body), NODE) is MACHINE


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"detail": "balance not enough, please top up"}),
        (402, {}),
        (402, {"detail": "Payment required"}),
        (403, {"code": "INSUFFICIENT_BALANCE", "message": "Insufficient account balance"}),
        (401, {"detail": "Not authenticated"}),
        (403, {"error": {"message": "Invalid api token"}}),
        (403, {"message": "Invalid API key"}),
        (403, {"detail": "You may not do this"}),
        (403, b"<html><head><title>403 Forbidden</title></head></html>"),
        (404, {"detail": "Auth not found"}),
        (404, {"detail": "Image not found"}),
        (400, {"detail": "the template was withdrawn"}),
        (409, {"detail": "a container of that name exists"}),
        (422, rejected("auth_id")),
        (422, rejected("name")),
        (422, rejected("image_template_id", "payment_type")),
        # Balance and token belong to the account, so that every machine would refuse.
        (402, {"detail": f"balance too low for {NODE}"}),
        (401, {"detail": f"no access to {NODE}"}),
    ],
)
def test_refusal_that_every_machine_would_repeat_is_hopeless(status: int, body: Any) -> None:
    assert outcome_of(refused(status, body), NODE) is HOPELESS


@pytest.mark.parametrize(
    "text",
    ["auth_id 5 does not exist", "image_template_id 7 does not exist", "payment_type 3 is not supported"],
)
def test_refusal_that_names_a_field_other_than_the_machine_is_hopeless(text: str) -> None:
    assert outcome_of(refused(400, {"detail": text}), NODE) is HOPELESS


@pytest.mark.parametrize("text", ["image 7 is not available", "this payment type is not available"])
def test_refusal_because_an_image_or_payment_is_not_available_is_hopeless(text: str) -> None:
    assert outcome_of(refused(400, {"detail": text}), NODE) is HOPELESS


@pytest.mark.parametrize("text", ["", "slow down", STOCK_OUT])
def test_rate_limited_create_has_done_nothing(text: str) -> None:
    assert outcome_of(refused(429, {"detail": text}), NODE) is NOTHING


words = st.sampled_from(
    [NODE, "node", "GPU", "stock", "image", "auth", "balance not enough", "Invalid token", "name", "é"]
)
details = (
    st.lists(words, max_size=4).map(" ".join)
    | st.text()
    | st.lists(st.fixed_dictionaries({"loc": st.lists(words | st.integers(0, 9)), "msg": words, "type": words}))
)


@given(status=st.integers(500, 599) | st.just(408) | st.integers(300, 399), detail=details)
def test_failure_of_the_service_is_unclear_with_any_words(status: int, detail: Any) -> None:
    assert outcome_of(refused(status, {"detail": detail}), NODE) is UNCLEAR


@given(status=st.integers(400, 499).filter(lambda status: status != 408), detail=details)
def test_refusal_is_never_unclear(status: int, detail: Any) -> None:
    error = refused(status, {"detail": detail})
    outcome = outcome_of(error, NODE)
    assert isinstance(error, APIStatusError)
    if isinstance(error, RateLimitError):
        assert outcome is NOTHING
    elif isinstance(error, (AuthenticationError, InsufficientBalanceError)):
        assert outcome is HOPELESS
    elif NODE in error.message:
        assert outcome is MACHINE
    else:
        # The outcome cannot be NOTHING, because an answered create was sent.
        assert outcome in (MACHINE, HOPELESS)
