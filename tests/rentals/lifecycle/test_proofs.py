"""The proof that an answer to a deletion calls for, as a table, and properties of every answer."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from netmind_rentgpu.errors import (
    APIConnectionError,
    AuthenticationError,
    ClientStateError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RentGPUError,
    ServerError,
)
from netmind_rentgpu.rentals.lifecycle.deletion import Proof, proof_needed

DETAILS: dict[str, Any] = {
    "code": None,
    "message": "",
    "body": None,
    "request_id": None,
    "method": "DELETE",
    "path": "/v1/rentgpu/containers/7/",
}
GONE = [
    NotFoundError("", status=404, **DETAILS),
    ConflictError("", status=409, **DETAILS),
    InvalidRequestError("", status=422, fields=(), **DETAILS),
]
FINAL = [
    AuthenticationError("", status=401, **DETAILS),
    PermissionDeniedError("", status=403, **DETAILS),
    ClientStateError("the client is closed"),
]
PASSING = [
    ServerError("", status=503, retry_after=None, **DETAILS),
    RateLimitError("", status=429, retry_after=None, **DETAILS),
    APIConnectionError("lost", maybe_processed=True),
]
ANSWERS: list[RentGPUError | None] = [None, *GONE, *FINAL, *PASSING]


@pytest.mark.parametrize(
    ("answers", "is_known", "stay_listed", "acknowledged", "denials", "proof"),
    [
        ([None], True, False, 1, 0, Proof.GET),
        ([None], False, False, 1, 0, Proof.GET),
        ([None], True, True, 1, 0, Proof.NONE),
        (GONE, True, False, 0, 1, Proof.GET_AND_LIST),
        # The service may not list it yet.
        (GONE, False, False, 0, 1, Proof.RETRY),
        (GONE, False, True, 1, 1, Proof.RETRY),
        # Nothing misses a deleted container, so that a second answer has to say the same.
        (GONE, True, True, 0, 1, Proof.RETRY),
        (GONE, True, True, 0, 2, Proof.NONE),
        (GONE, True, True, 1, 1, Proof.NONE),
        (FINAL, True, False, 0, 0, Proof.GIVE_UP),
        (FINAL, False, True, 1, 2, Proof.GIVE_UP),
        (PASSING, True, False, 1, 1, Proof.RETRY),
    ],
)
def test_proof_follows_from_the_answer(
    answers: list[RentGPUError | None],
    is_known: bool,
    stay_listed: bool,
    acknowledged: int,
    denials: int,
    proof: Proof,
) -> None:
    for answer in answers:
        found = proof_needed(
            answer, is_known=is_known, deleted_stay_listed=stay_listed, acknowledged=acknowledged, denials=denials
        )
        assert found is proof, answer


def test_no_single_answer_proves_that_a_container_is_gone_unless_the_service_shows_deleted_ones() -> None:
    for answer, is_known, acknowledged, denials in product(ANSWERS, (False, True), range(3), range(3)):
        found = proof_needed(
            answer, is_known=is_known, deleted_stay_listed=False, acknowledged=acknowledged, denials=denials
        )
        assert found is not Proof.NONE
