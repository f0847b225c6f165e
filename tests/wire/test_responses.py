"""The meaning of an answer. The bodies are those of the contract, "Unknown", and those of gateways in front."""

import json
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from turns import run_at_once

from netmind_rentgpu import (
    APIStatusError,
    AuthenticationError,
    ConflictError,
    InsufficientBalanceError,
    InvalidField,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    UnexpectedResponseError,
)
from netmind_rentgpu.wire.messages import RawResponse, Request
from netmind_rentgpu.wire.responses import payload

REQUEST = Request(method="POST", path="/v1/rentgpu/containers/", secrets=('pass"word\\ü',))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def read(status: int, body: Any, *, request: Request = REQUEST, key: str = "detail", **headers: str) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = RawResponse(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw)
    steps = payload(request, answer, validation_errors_key=key, token="the-token", now=lambda: NOW)
    return run_at_once(steps)


BODIES = [
    (
        400,
        {"detail": "balance not enough, please top up"},
        InsufficientBalanceError,
        "balance not enough, please top up",
    ),
    (403, {"error": {"message": "Invalid api token"}}, AuthenticationError, "Invalid api token"),
    (403, {"message": "Invalid API key"}, AuthenticationError, "Invalid API key"),
    (
        403,
        {"code": "INSUFFICIENT_BALANCE", "message": "Insufficient account balance"},
        InsufficientBalanceError,
        "Insufficient account balance",
    ),
    (402, {}, InsufficientBalanceError, ""),
    (402, b"", InsufficientBalanceError, ""),
    (401, {"detail": "whatever"}, AuthenticationError, "whatever"),
    (400, {"error": "Invalid token"}, AuthenticationError, "Invalid token"),
    (403, {"detail": "You may not do this"}, PermissionDeniedError, "You may not do this"),
    (
        403,
        b"<html><head><title>403 Forbidden</title></head></html>",
        PermissionDeniedError,
        "a page of HTML, '403 Forbidden'",
    ),
    (400, {"detail": "node is full"}, InvalidRequestError, "node is full"),
    (404, {"detail": "Not Found"}, NotFoundError, "Not Found"),
    (409, {"detail": "already stopped"}, ConflictError, "already stopped"),
    (409, {"message": "not enough credits"}, InsufficientBalanceError, "not enough credits"),
    (418, {"code": 17}, APIStatusError, "17"),
    (422, {"detail": "wrong"}, InvalidRequestError, "wrong"),
    (429, {"detail": "slow down"}, RateLimitError, "slow down"),
    (500, b"Internal Server Error", ServerError, "Internal Server Error"),
    (502, b"<!DOCTYPE html><html><body>Bad</body></html>", ServerError, "a page of HTML"),
    (503, b"\xff\xfe", ServerError, "\ufffd\ufffd"),
    (504, [], ServerError, ""),
    (400, {"detail": {"code": "E1", "message": "inner"}}, InvalidRequestError, "inner"),
    (
        400,
        {"detail": ["first", {"loc": ["body", "x"], "msg": "second"}, 3]},
        InvalidRequestError,
        "first; body.x: second; ?",
    ),
]


@pytest.mark.parametrize(("status", "body", "kind", "message"), BODIES)
def test_error_class_follows_from_status_and_text(
    status: int, body: Any, kind: type[APIStatusError], message: str
) -> None:
    with pytest.raises(APIStatusError) as caught:
        read(status, body, x_request_id="r-1")
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.message, error.request_id) == (status, message, "r-1")
    assert (error.method, error.path) == ("POST", "/v1/rentgpu/containers/")
    text = str(error)
    assert text.startswith(f"POST /v1/rentgpu/containers/ was answered with {status}")
    assert message in text
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.body) == (kind, text, error.body)


def test_error_says_what_to_do() -> None:
    with pytest.raises(AuthenticationError, match=r"ServiceProfile\.authorization"):
        read(401, {})
    with pytest.raises(InsufficientBalanceError, match="top up"):
        read(402, {})


def test_error_code_is_read_from_every_known_place() -> None:
    for body in ({"code": "X"}, {"error": {"code": "X"}}, {"detail": {"code": "X"}}):
        with pytest.raises(ConflictError) as caught:
            read(409, body)
        assert caught.value.code == "X"
        assert caught.value.message == "X"


V1 = {
    "detail": [{"loc": ["body", "gpu"], "msg": "ensure this value is less than or equal to 12", "type": "v", "ctx": {}}]
}


def test_422_error_lists_its_invalid_fields() -> None:
    with pytest.raises(InvalidRequestError, match=r"body\.gpu: ensure this value") as caught:
        read(422, V1)
    assert caught.value.fields == (InvalidField(("body", "gpu"), "ensure this value is less than or equal to 12", "v"),)
    with pytest.raises(InvalidRequestError) as caught:
        read(422, {"errors": V1["detail"]}, key="errors")
    assert len(caught.value.fields) == 1
    assert "body.gpu: ensure" in str(caught.value)


def test_place_of_an_invalid_field_keeps_positions_as_numbers() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(422, {"detail": [{"loc": ["body", 3, True, None], "msg": "no", "type": "t"}]})
    assert caught.value.fields == (InvalidField(("body", 3, "True", "None"), "no", "t"),)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InsufficientBalanceError),
        (403, InsufficientBalanceError),
        (409, InsufficientBalanceError),
        (422, InsufficientBalanceError),
        (404, NotFoundError),
        (423, APIStatusError),
        (503, ServerError),
    ],
)
def test_text_about_the_balance_counts_only_where_the_status_may_mean_it(status: int, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        read(status, {"detail": "insufficient balance"})
    assert type(caught.value) is kind


@pytest.mark.parametrize("detail", [[None, 3, {}, {"loc": "x"}], {"loc": []}, None, [[]]])
def test_422_of_another_shape_is_an_invalid_request_error(detail: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(422, {"detail": detail})
    assert caught.value.fields == ()


def test_rejected_field_that_mentions_a_balance_is_no_balance_error() -> None:
    body = {"detail": [{"loc": ["body", "name"], "msg": "insufficient balance is no name", "type": "v"}]}
    with pytest.raises(InvalidRequestError):
        read(422, body)


PASSWORD = 'pass"word\\ü'
ECHOES = [
    json.dumps({"detail": [{"loc": ["body", "value"], "msg": "too short", "type": "t", "input": PASSWORD}]}).encode(),
    json.dumps({"detail": [{"loc": ["body"], "msg": "m", "type": "t", "input": {"value": PASSWORD, "x": 1}}]}).encode(),
    json.dumps({"detail": f"'{PASSWORD}' is too short, says the-token"}).encode(),
    json.dumps({"detail": {PASSWORD: [PASSWORD]}, "value": 12345678}, ensure_ascii=False).encode(),
    f"you sent {PASSWORD} with the-token".encode(),
    f"you sent {json.dumps(PASSWORD)}".encode(),
    f"you sent {PASSWORD!r}".encode(),
    b"you sent pass%22word%5C%C3%BC",
    "<p>pass&quot;word\\ü".encode(),
]


@pytest.mark.parametrize("status", [400, 403, 422, 500])
@pytest.mark.parametrize("body", ECHOES)
def test_error_masks_every_echoed_secret(status: int, body: bytes) -> None:
    with pytest.raises(APIStatusError) as caught:
        read(status, body)
    error = caught.value
    shown = f"{error} {error!r} {error.message!r} {error.body!r} {getattr(error, 'fields', '')} {pickle.dumps(error)!r}"
    for secret in ("word", "the-token", "12345678"):
        assert secret not in shown
    assert "***" in shown or "a body that is not JSON" in shown


CUT = json.dumps([{"id": 1, "value": "correct-horse"}, {"id": 2, "value": "battery-staple"}]).encode()


@pytest.mark.parametrize(
    "body", [CUT[:-1], CUT[:50], CUT.replace(b'"', b"'"), b"Traceback: value='correct-horse'", b"token correct-horse"]
)
def test_error_body_that_cannot_be_masked_is_not_shown(body: bytes) -> None:
    request = Request(method="GET", path="/v1/rentgpu/auths/")
    with pytest.raises(ServerError, match="a body that is not JSON") as caught:
        read(500, body, request=request)
    assert b"correct" not in pickle.dumps(caught.value)


def test_html_error_page_is_shown_only_by_its_title() -> None:
    with pytest.raises(ServerError) as caught:
        read(502, b"<html><title>Bad gateway</title>you sent canary</html>")
    assert caught.value.body == "a page of HTML, 'Bad gateway'"


def test_deep_body_is_cut_and_an_impossible_date_is_ignored() -> None:
    for opening, closing in ((b"[", b"]"), (b'{"detail":', b"}")):
        with pytest.raises(ServerError) as caught:
            read(500, opening * 1000 + b"1" + closing * 1000)
        assert "…" in str(caught.value.body)
    with pytest.raises(RateLimitError) as limited:
        read(429, {}, retry_after="Thu, 01 Jan 2026 00:00:30 +99999999999999")
    assert limited.value.retry_after is None


@pytest.mark.parametrize("body", [b"<html>" + b"<title" * 500_000, b"<html>" + b" " * 4_000_000, b"x " * 4_000_000])
def test_large_error_page_is_read_in_linear_time(body: bytes) -> None:
    import time

    began = time.process_time()
    with pytest.raises(ServerError):
        read(502, body)
    # A bound against quadratic time, which would be hours.
    assert time.process_time() - began < 5


def test_error_with_headers_that_are_not_utf_8_can_be_printed() -> None:
    with pytest.raises(UnexpectedResponseError) as caught:
        read(302, b"", location="http://h/\udcff", x_request_id="\udcff")
    assert f"{caught.value} {caught.value.request_id}".encode()


def test_400_about_other_keys_or_credentials_is_no_login_error() -> None:
    for text in ("Unknown key: gpus", "Invalid credentials for docker registry"):
        with pytest.raises(InvalidRequestError):
            read(400, {"detail": text})


@pytest.mark.parametrize("status", [300, 301, 308, 399])
def test_redirect_is_unexpected_whatever_its_body_says(status: int) -> None:
    with pytest.raises(UnexpectedResponseError, match="redirects are not followed"):
        read(status, {"id": 1})


def test_redirect_error_does_not_repeat_the_token() -> None:
    with pytest.raises(UnexpectedResponseError, match=r"to https://x/\*\*\* are not followed"):
        read(302, b"", location="https://x/the-token?q=1")
    with pytest.raises(UnexpectedResponseError, match="redirects are not followed"):
        read(304, b"")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("5", 5),
        ("0.5", 0.5),
        ("-3", 0),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30),
        ("Thu, 01 Jan 2026 00:00:30", 30),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("", None),
    ],
)
def test_retry_after_header_is_read_as_seconds_or_date(header: str, seconds: float | None) -> None:
    for status in (429, 503):
        with pytest.raises((RateLimitError, ServerError)) as caught:
            read(status, {}, retry_after=header)
        assert caught.value.retry_after == seconds
        assert ("it asks to wait" in str(caught.value)) is (seconds is not None)


def test_long_error_text_is_cut() -> None:
    with pytest.raises(ServerError) as caught:
        read(500, b"x" * 10_000)
    assert len(caught.value.message) == 501


def test_short_secret_is_masked_without_garbling_the_structure() -> None:
    request = Request(method="POST", path="/x", secrets=("t",))
    with pytest.raises(InvalidRequestError) as caught:
        read(422, {"detail": [{"loc": ["body", "gpu"], "msg": "not that", "type": "value"}]}, request=request)
    assert caught.value.fields == (InvalidField(("body", "gpu"), "no*** ***ha***", "value"),)


def test_secret_at_the_cut_of_a_text_is_masked_whole() -> None:
    request = Request(method="POST", path="/x", secrets=("canary-password",))
    for text in ("x" * 490 + "canary-password", "a canary-password" * 40):
        with pytest.raises(ServerError) as caught:
            read(500, {"detail": text}, request=request)
        assert "canary" not in f"{caught.value} {caught.value.message} {caught.value.body}"


def test_successful_response_is_decoded() -> None:
    assert read(200, {"a": 1}) == {"a": 1}
    assert read(201, [1]) == [1]
    assert read(299, {"a": 1}) == {"a": 1}
    assert read(204, b"") is None
    assert read(200, b'{"a": 1e400, "b": 1e40, "c": NaN}') == {"a": "1e400", "b": 1e40, "c": "NaN"}
    assert read(200, b"") is None


def test_html_instead_of_json_is_unexpected_and_not_repeated() -> None:
    with pytest.raises(UnexpectedResponseError, match="looks like a page of HTML") as caught:
        read(200, b"<html>the-token</html>")
    assert not caught.value.truncated
    assert "the-token" not in repr(caught.value)


def test_secret_that_is_a_common_word_changes_no_classification() -> None:
    request = Request(method="POST", path="/x", secrets=("balance", "token"))
    with pytest.raises(InsufficientBalanceError) as caught:
        read(403, {"message": "Insufficient account balance"}, request=request)
    assert caught.value.message == "Insufficient account ***"
    with pytest.raises(AuthenticationError):
        read(403, {"message": "Invalid api token"}, request=request)
