"""What is on record for another token of the same account: found out by what the service shows, and taken over.

A token that was exchanged for another leaves records behind, and may be exchanged while a rental runs. Whose they are is not
known before the service shows this token the auth that the other one made, or a container by a recorded name. That it shows
neither proves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import attrs

from netmind_rentgpu.errors import AuthenticationError, NotFoundError, PermissionDeniedError, RentGPUError
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.clocks import ClockReading, read_clocks
from netmind_rentgpu.rentals.ledger.container_index import matching, per_attempt_timeouts
from netmind_rentgpu.rentals.ledger.records import RentalRecord, may_turn_up
from netmind_rentgpu.rentals.ledger.store import OtherAccount

__all__ = ["UnprovenAccount", "check_token", "join_proven_accounts"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0


@attrs.frozen
class UnprovenAccount:
    """An account that may be this one, or not.

    Attributes:
        wanted: those of its records that were asked for.
        error: why the service could not be asked; None where it was, and has shown neither the auth nor a container.
    """

    account: OtherAccount
    wanted: tuple[RentalRecord, ...]
    error: RentGPUError | None = None


async def check_token(context: RentalContext) -> None:
    """Raise AuthenticationError if the service refuses the token, which no other failure proves."""
    try:
        await context.containers.list(page_size=1, timeout=per_attempt_timeouts(context.timeouts))
    except AuthenticationError:
        raise
    except RentGPUError:
        pass


async def join_proven_accounts(
    context: RentalContext, *, is_wanted: Callable[[RentalRecord], bool], wait: bool = False
) -> list[UnprovenAccount]:
    """Take over the records of accounts that prove to be this one; return those that may be, and are not proven.

    It costs one GET for each of them that has a password on record, and one walk over the list.

    Args:
        is_wanted: returns True for a record that is worth the walk.
        wait: look until what is wanted would be listed.

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
    looked_for = await _look(context, [each for each in unproven if each.wanted], wait=wait)
    left = {each.account.name for each in looked_for}
    proven += [each.account.name for each in unproven if each.wanted and each.account.name not in left]
    if proven:
        await context.ledger.join(proven)
    return [*looked_for, *(each for each in unproven if not each.wanted)]


async def _ask_for_auth(context: RentalContext, account: OtherAccount) -> bool | RentGPUError:
    """Return True if the service shows the auth of an account's password; an error where it could not be asked."""
    if account.auth_id is None or account.password is None:
        return False
    try:
        shown = await context.password.shown(account.auth_id, per_attempt_timeouts(context.timeouts))
    except (NotFoundError, PermissionDeniedError):
        return False
    except RentGPUError as error:
        return error
    return shown == account.password


async def _look(context: RentalContext, unproven: list[UnprovenAccount], *, wait: bool) -> list[UnprovenAccount]:
    """Look for the containers of accounts by their recorded names; return the accounts of which none is listed."""
    pause = _FIRST_PAUSE
    while unproven:
        looked_at = read_clocks()
        unproven = await _not_listed(context, unproven)
        late = [
            record for each in unproven for record in each.wanted if _may_be_listed_later(context, record, looked_at)
        ]
        if not (wait and late):
            break
        await asyncio.sleep(pause)
        pause = min(_LONGEST_PAUSE, pause * 1.5)
    return unproven


async def _not_listed(context: RentalContext, unproven: list[UnprovenAccount]) -> list[UnprovenAccount]:
    try:
        listed = await context.container_index.read()
    except RentGPUError as error:
        return [attrs.evolve(each, error=error) for each in unproven]
    left: list[UnprovenAccount] = []
    for each in unproven:
        problem = None
        for record in each.wanted:
            try:
                if matching(record, listed):
                    break
            except RentGPUError as error:
                problem = error
        else:
            # An auth that could not be asked for may still be ours.
            left.append(attrs.evolve(each, error=problem or each.error))
    return left


def _may_be_listed_later(context: RentalContext, record: RentalRecord, looked_at: ClockReading) -> bool:
    listed_at = record.intended_at + context.profile.list_lag
    return may_turn_up(record, looked_at=looked_at) or record.present(looked_at) < listed_at
