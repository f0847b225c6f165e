"""The error that leaving a rental raises, as a table and for every combination; the phases and the reasons of its end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from itertools import product

import pytest

from netmind_rentgpu import (
    BudgetExceededError,
    ClientStateError,
    Container,
    Machine,
    ReleaseError,
    RentalEndedError,
    RentalExpiredError,
    RentalRecord,
)
from netmind_rentgpu.rentals.lifecycle.attempt import ProvisionedRental
from netmind_rentgpu.rentals.lifecycle.state import EndReason, Phase, RentalState, end_error, what_to_raise

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PROVISIONED = ProvisionedRental(
    record=RentalRecord(
        name="rg-0",
        stage="ready",
        container_id=7,
        node_name="node",
        gpus=1,
        hourly_price=Decimal("0.5"),
        intended_at=NOW,
        expires_at=NOW,
        certain_at=NOW,
        budget=Decimal(2),
        currency="USD",
    ),
    container=Container(id=7),
    machine=Machine(node_name="node"),
)
SPENT = (
    "the budget of rg-0 is spent since 2026-03-01 12:00:00 UTC: 2 USD, at a listed 0.5 an hour;"
    " the deletion of container 7 has begun"
)
BODY, CANCELLED = ZeroDivisionError("the block's own"), asyncio.CancelledError()
WHILE_DELETING, PROBLEM = (
    asyncio.CancelledError("while it is deleted"),
    ReleaseError("x", name="rg-0", container_id=7, hourly_price=None),
)
ENDED = RentalEndedError("the reason's", name="rg-0", container_id=7)


@pytest.mark.parametrize(
    ("body_error", "cancellation", "was_cut_short", "reason", "problem", "raised"),
    [
        # The block ends by itself.
        (None, None, False, EndReason.LEFT, None, None),
        (BODY, None, False, EndReason.LEFT, None, BODY),
        (None, None, False, EndReason.LEFT, PROBLEM, PROBLEM),
        (BODY, None, False, EndReason.LEFT, PROBLEM, BODY),
        # The caller cancels it, before or while its container is deleted.
        (CANCELLED, None, False, EndReason.LEFT, PROBLEM, CANCELLED),
        (None, WHILE_DELETING, False, EndReason.LEFT, PROBLEM, WHILE_DELETING),
        (BODY, WHILE_DELETING, False, EndReason.LEFT, None, WHILE_DELETING),
        # Its deadline passes: while it runs, as it ends, and while it fails.
        (CANCELLED, None, True, EndReason.EXPIRED, None, ENDED),
        (None, None, False, EndReason.EXPIRED, None, ENDED),
        (None, None, False, EndReason.BUDGET_SPENT, PROBLEM, ENDED),
        (None, WHILE_DELETING, True, EndReason.EXPIRED, None, ENDED),
        (BODY, None, True, EndReason.EXPIRED, None, BODY),
        # The caller cancels it, too.
        (CANCELLED, None, False, EndReason.EXPIRED, None, CANCELLED),
        # It is closed by another task while it is entered.
        (CANCELLED, None, True, EndReason.CLOSED, None, ENDED),
        # The call that found out that its container is gone has raised that.
        (None, None, False, EndReason.GONE, None, None),
        (CANCELLED, None, True, EndReason.GONE, None, ENDED),
        (None, None, False, EndReason.DETACHED, None, None),
    ],
)
def test_leaving_raises_the_error_that_the_caller_has_to_know(
    body_error: BaseException | None,
    cancellation: asyncio.CancelledError | None,
    was_cut_short: bool,
    reason: EndReason,
    problem: ReleaseError | None,
    raised: BaseException | None,
) -> None:
    found = what_to_raise(
        body_error=body_error,
        cancellation=cancellation,
        was_cut_short=was_cut_short,
        reason=reason,
        reason_error=ENDED,
        problem=problem,
    )
    assert found is raised


def test_no_error_of_the_block_and_no_cancellation_by_the_caller_is_ever_swallowed() -> None:
    for body_error, cancellation, was_cut_short, reason, problem in product(
        (None, BODY, CANCELLED), (None, WHILE_DELETING), (False, True), EndReason, (None, PROBLEM)
    ):
        found = what_to_raise(
            body_error=body_error,
            cancellation=cancellation,
            was_cut_short=was_cut_short,
            reason=reason,
            reason_error=ENDED,
            problem=problem,
        )
        if body_error is BODY and cancellation is None:
            assert found is BODY
        if not was_cut_short and (cancellation or body_error) is not None:
            assert found is (cancellation or body_error)
        if found is None:
            assert (body_error, cancellation, problem, was_cut_short) == (None, None, None, False)
        # A cancellation of our own never reaches the caller.
        if was_cut_short and isinstance(cancellation or body_error, asyncio.CancelledError):
            assert found is ENDED


@pytest.mark.parametrize(
    ("reason", "kind", "text"),
    [
        (
            EndReason.EXPIRED,
            RentalExpiredError,
            "the time of rg-0 is up since 2026-03-01 12:00:00 UTC; the deletion of container 7 has begun",
        ),
        (EndReason.BUDGET_SPENT, BudgetExceededError, SPENT),
        (EndReason.GONE, RentalEndedError, "the container of rg-0, 7, is gone"),
        (EndReason.LEFT, ClientStateError, "this rental cannot be used: it was left"),
        (EndReason.CLOSED, ClientStateError, "this rental cannot be used: it was closed"),
        (EndReason.DETACHED, ClientStateError, "this rental cannot be used: it was detached"),
        (
            None,
            ClientStateError,
            "this rental cannot be used: it was not entered yet; enter its `with` block, or call its open(), first",
        ),
    ],
)
def test_each_reason_has_its_error(reason: EndReason | None, kind: type[Exception], text: str) -> None:
    error = end_error(reason, PROVISIONED)
    assert (type(error), str(error)) == (kind, text)
    if isinstance(error, RentalEndedError):
        assert (error.name, error.container_id) == ("rg-0", 7)
    # Without a container, every reason is one of the client's state.
    assert type(end_error(reason, None)) is ClientStateError


def test_first_reason_stays_and_no_phase_comes_back() -> None:
    state = RentalState()
    state.end(EndReason.CLOSED)
    state.end(EndReason.EXPIRED)
    assert state.reason is EndReason.CLOSED
    state.advance(Phase.ENDING)
    for phase in Phase:
        state.advance(phase)
        assert state.phase in (Phase.ENDING, Phase.ENDED)
