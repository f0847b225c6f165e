"""Proofs that records of another token belong to this account, which then takes them over.

A token that was exchanged for another leaves records behind, and may be exchanged while a rental runs. These records are
proven to be this account's once the service shows this token the auth that was created with the other token, or a container
with a recorded name. If the service shows neither, that proves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import attrs

from netmind_rentgpu.concurrency.backoff import backoff
from netmind_rentgpu.errors import AuthenticationError, NotFoundError, PermissionDeniedError, RentGPUError
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.container_index import matching, per_attempt_timeouts
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.ledger.store import OtherAccount

__all__ = ["UnprovenAccount", "check_token", "join_proven_accounts"]


@attrs.frozen
class UnprovenAccount:
    """An account that may be this one, without a proof.

    Attributes:
        account: the account.
        wanted: the account's records that the caller wants.
        error: the reason why the service could not be asked; None if it has shown neither the auth nor a container.
    """

    account: OtherAccount
    wanted: tuple[RentalRecord, ...]
    error: RentGPUError | None = None


async def check_token(context: RentalContext) -> None:
    """Raise AuthenticationError if the service refuses the token. Any other error is ignored, because it proves nothing."""
    try:
        await context.containers.list(page_size=1, timeout=per_attempt_timeouts(context.timeouts))
    except AuthenticationError:
        raise
    except RentGPUError:
        pass


async def join_proven_accounts(
    context: RentalContext, *, is_wanted: Callable[[RentalRecord], bool], wait: bool = False
) -> list[UnprovenAccount]:
    """Join the accounts that are proven to be this one; return the accounts that may be, without a proof.

    This costs one GET for each account whose password is on record, and a walk over the list if that leaves a record that
    the caller wants.

    Args:
        is_wanted: returns True for a record that is worth the walk.
        wait: True to repeat the walk until the containers of wanted records would be listed.

    Raises:
        StateFileError: the state file cannot be used.
    """
    others = await context.ledger.read_other_accounts()
    asked = await asyncio.gather(*(_ask_for_auth(context, account) for account in others))
    proven = [account.name for account, answer in zip(others, asked, strict=True) if answer is True]
    unproven = [
        UnprovenAccount(
            account,
            tuple(filter(is_wanted, account.records)),
            answer if isinstance(answer, RentGPUError) else None,
        )
        for account, answer in zip(others, asked, strict=True)
        if answer is not True
    ]
    not_found = await _search(context, [candidate for candidate in unproven if candidate.wanted], wait=wait)
    left = {candidate.account.name for candidate in not_found}
    proven += [
        candidate.account.name for candidate in unproven if candidate.wanted and candidate.account.name not in left
    ]
    if proven:
        await context.ledger.join(proven)
    return [*not_found, *(candidate for candidate in unproven if not candidate.wanted)]


async def _ask_for_auth(context: RentalContext, account: OtherAccount) -> bool | RentGPUError:
    """Return True if the service shows the auth of an account's password, and the error if it could not be asked."""
    if account.auth_id is None or account.password is None:
        return False
    try:
        shown = await context.password.shown(account.auth_id, per_attempt_timeouts(context.timeouts))
    except (NotFoundError, PermissionDeniedError):
        return False
    except RentGPUError as error:
        return error
    return shown == account.password


async def _search(context: RentalContext, unproven: list[UnprovenAccount], *, wait: bool) -> list[UnprovenAccount]:
    """Search the list for containers with the recorded names; return the accounts that have none there."""
    pauses = backoff()
    while unproven:
        looked_at = context.clock()
        unproven = await _not_listed(context, unproven)
        late = [
            record
            for candidate in unproven
            for record in candidate.wanted
            if _may_be_listed_later(context, record, looked_at)
        ]
        if not (wait and late):
            break
        await asyncio.sleep(next(pauses))
    return unproven


async def _not_listed(context: RentalContext, unproven: list[UnprovenAccount]) -> list[UnprovenAccount]:
    try:
        listed = await context.container_index.read()
    except RentGPUError as error:
        return [attrs.evolve(candidate, error=error) for candidate in unproven]
    left: list[UnprovenAccount] = []
    for candidate in unproven:
        problem = None
        for record in candidate.wanted:
            try:
                if matching(record, listed):
                    break
            except RentGPUError as error:
                problem = error
        else:
            # Keep the error of the auth's GET, because the account may still be this one.
            left.append(attrs.evolve(candidate, error=problem or candidate.error))
    return left


def _may_be_listed_later(context: RentalContext, record: RentalRecord, looked_at: ClockReading) -> bool:
    listed_at = record.intended_at + context.profile.list_lag
    return bool(record.time_to_certainty(looked_at)) or record.present(looked_at) < listed_at
