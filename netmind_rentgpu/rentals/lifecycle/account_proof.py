"""What is on record for another token of the same account: found out by what the service shows, and taken over.

A token that was exchanged for another leaves records behind, and may be exchanged while a rental runs. Whose they are is not
known before the service shows this token the auth that the other one made, or a container by a recorded name. That it shows
neither proves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from netmind_rentgpu.errors import AuthenticationError, RentGPUError
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.container_index import is_container_of, per_attempt_timeouts
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.ledger.store import OtherAccount

__all__ = ["check_token", "join_proven_accounts"]


async def check_token(context: RentalContext) -> None:
    """Raise AuthenticationError if the service refuses the token, which no other failure proves."""
    try:
        await context.containers.list(page_size=1, timeout=per_attempt_timeouts(context.timeouts))
    except AuthenticationError:
        raise
    except RentGPUError:
        pass


async def join_proven_accounts(
    context: RentalContext, *, is_wanted: Callable[[RentalRecord], bool]
) -> list[OtherAccount]:
    """Take over the records of accounts that prove to be this one; return those that may be, and are not proven.

    It costs one GET for each of them that has a password on record, and one walk over the list.

    Args:
        is_wanted: returns True for a record that is worth the walk.

    Raises:
        StateFileError: the state file cannot be used.
    """
    others = await context.ledger.read_other_accounts()
    shown = await asyncio.gather(*(_shows_auth_of(context, account) for account in others))
    proven = [account for account, is_shown in zip(others, shown, strict=True) if is_shown]
    wanted = [account for account in others if account not in proven and any(map(is_wanted, account.records))]
    if wanted:
        listed = await _listed(context)
        proven += [account for account in wanted if _shows_any(account.records, listed)]
    if proven:
        await context.ledger.join(account.name for account in proven)
    return [account for account in others if account not in proven]


async def _shows_auth_of(context: RentalContext, account: OtherAccount) -> bool:
    if account.auth_id is None or account.password is None:
        return False
    return await context.password.is_shown(account.auth_id, account.password, per_attempt_timeouts(context.timeouts))


async def _listed(context: RentalContext) -> tuple[Container, ...]:
    try:
        return (await context.container_index.read()).containers
    except RentGPUError:
        return ()


def _shows_any(records: Iterable[RentalRecord], containers: Iterable[Container]) -> bool:
    found = tuple(containers)
    return any(is_container_of(record, container) for record in records for container in found)
