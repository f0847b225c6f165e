"""Each error body of the contract, through the whole client: one exact answer, one exception."""

from typing import Any

import pytest

from netmind_rentgpu import (
    APIStatusError,
    AsyncRentGPU,
    AuthenticationError,
    InsufficientBalanceError,
    InvalidField,
    InvalidRequestError,
    PaymentType,
    RateLimitError,
    Retries,
)

URL = "https://api.netmind.ai/v1/rentgpu/containers/"
WANTED: dict[str, Any] = {
    "name": "mine",
    "auth_id": 1,
    "node_name": "node",
    "image_template_id": 1,
    "payment_type": PaymentType.USD,
}


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, {"detail": "balance not enough..."}, InsufficientBalanceError, "balance not enough..."),
        (403, {"error": {"message": "Invalid api token"}}, AuthenticationError, "Invalid api token"),
        (403, {"message": "Invalid API key"}, AuthenticationError, "Invalid API key"),
        (
            403,
            {"code": "INSUFFICIENT_BALANCE", "message": "Insufficient account balance"},
            InsufficientBalanceError,
            "Insufficient account balance",
        ),
        (402, {}, InsufficientBalanceError, ""),
        (402, {"detail": "Payment required"}, InsufficientBalanceError, "Payment required"),
    ],
)
async def test_seen_error_body_becomes_its_error(
    responses: Any, status: int, body: Any, kind: type[APIStatusError], message: str
) -> None:
    responses.post(URL, status=status, payload=body)
    async with AsyncRentGPU("canary-1") as gpu:
        with pytest.raises(kind) as caught:
            await gpu.containers.create(**WANTED)
    error = caught.value
    assert (error.status, error.message, error.body) == (status, message, body)
    assert (error.method, error.path) == ("POST", "/v1/rentgpu/containers/")


async def test_422_in_the_inferred_form_names_its_fields(responses: Any) -> None:
    detail = [{"loc": ["body", "gpu"], "msg": "ensure this value is less than or equal to 12", "type": "value_error"}]
    responses.post(URL, status=422, payload={"detail": detail})
    async with AsyncRentGPU("canary-1") as gpu:
        with pytest.raises(InvalidRequestError) as caught:
            await gpu.containers.create(**WANTED)
    assert caught.value.fields == (
        InvalidField(("body", "gpu"), "ensure this value is less than or equal to 12", "value_error"),
    )


async def test_429_with_retry_after_raises_rate_limit_error(responses: Any) -> None:
    responses.post(URL, status=429, headers={"Retry-After": "7"}, repeat=True)
    async with AsyncRentGPU("canary-1", retries=0) as gpu:
        with pytest.raises(RateLimitError, match="asks to wait 7 s") as caught:
            await gpu.containers.create(**WANTED)
    assert caught.value.retry_after == 7


async def test_create_refused_with_429_is_sent_again(responses: Any) -> None:
    responses.post(URL, status=429)
    responses.post(URL, payload={"id": 5})
    async with AsyncRentGPU("canary-1", retries=Retries(base_delay=0)) as gpu:
        assert (await gpu.containers.create(**WANTED)).id == 5
