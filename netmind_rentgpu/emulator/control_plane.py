"""Behind the scenes of an emulated service: what it does, what goes wrong, what came in, and what time it is.

Python reaches it through `Emulator`, other languages through the paths below `PREFIX`, which no path of the service can
meet: the service's own all begin with its version.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import Decimal
from typing import Any, cast

import attrs

from netmind_rentgpu.emulator.billing import Charge, PendingCreate, rented
from netmind_rentgpu.emulator.clock import Clock
from netmind_rentgpu.emulator.faults import Fault, Faults
from netmind_rentgpu.emulator.recording import Recorder
from netmind_rentgpu.emulator.service import Service
from netmind_rentgpu.emulator.validation import Refusal

__all__ = ["PREFIX", "ControlPlane"]

PREFIX = "/_emulator"
_WORD = re.compile(r"[!-~]+")


class ControlPlane:
    """All that an emulator consists of, the port aside.

    Attributes:
        service, faults, recorder, clock: its parts; the service is another one after a reset.
    """

    def __init__(
        self,
        *,
        make: Callable[[], Service],
        seed: int,
        token: str,
        guessable_tokens: bool,
        faults: Iterable[Fault],
        keep: int | None,
        clock: Clock,
    ) -> None:
        """Put the parts together.

        Args:
            make: makes the service, as it is in the beginning.
            token: what is masked wherever it is sent.
            guessable_tokens: True if the tokens that are made up here follow from the account's name.
            faults: that are in force in the beginning.
            keep: how many requests to keep; None for all.
        """
        self._make = make
        self.recorder: Recorder = Recorder(keep, token=token)
        self.clock: Clock = clock
        self.service: Service = make()
        self._tokens_made = 0
        self._guessable_tokens = guessable_tokens
        self.faults: Faults = Faults(seed, faults)

    def reset(self) -> None:
        """Begin again: nothing was ever rented, made or asked. Only the clock goes on."""
        self.service = self._make()
        self.faults.reset()
        self.recorder.clear()

    def add_token(self, account: str, token: str | None = None) -> str:
        """Accept a token from now on, for an account that is there or a new one; return it.

        Args:
            token: made up where it is None.

        Raises:
            ValueError: a text is none of ASCII characters without spaces, or the token is another account's.
        """
        service = self.service
        if token is None:
            self._tokens_made += 1
            word = self._tokens_made if self._guessable_tokens else secrets.token_urlsafe(24)
            token = f"emulator-token-{word}-of-{account}"
        if not (_WORD.fullmatch(account) and _WORD.fullmatch(token)):
            raise ValueError("tokens and names of accounts are ASCII characters without spaces")
        if service.tokens.get(token, account) != account:
            raise ValueError(f"the token is one of account {service.tokens[token]} already")
        self.recorder.mask(token)
        service.at_once(service.accept, token, account)
        return token

    def revoke_token(self, token: str) -> None:
        """Accept a token no more.

        Raises:
            ValueError: it was not accepted.
        """
        if self.service.tokens.pop(token, None) is None:
            raise ValueError("there is no such token")

    def charges(self) -> list[Charge]:
        """Return what each container has cost until now."""
        charges: list[Charge] = self.service.at_once(self.service.charges)
        return charges

    def pending_creates(self) -> list[PendingCreate]:
        """Return the creates that are still to be done."""
        pending_creates: list[PendingCreate] = self.service.at_once(self.service.pending_creates)
        return pending_creates

    def leaked(self, apart_from: Collection[int | Charge | PendingCreate] = ()) -> str | None:
        """Say what is rented and what it costs; None where nothing is, and nothing will be."""
        ids = {one for one in apart_from if isinstance(one, int)}
        numbers = {one.number for one in apart_from if not isinstance(one, int)}
        service = self.service
        charges, pending_creates = service.at_once(lambda: (service.charges(), service.pending_creates()))
        return rented(
            [one for one in charges if one.container_id not in ids and one.number not in numbers],
            [one for one in pending_creates if one.number not in numbers],
        )

    # Over HTTP: each takes the query or the JSON that came, and returns JSON.

    def show_requests(self, query: Mapping[str, str]) -> Any:
        """`GET /_emulator/requests`."""
        unknown = query.keys() - {"call", "method", "path"}
        if unknown:
            raise _refused(f"unknown: {', '.join(sorted(unknown))}; requests are chosen by call, method or path")
        recording = self.recorder.recording()
        try:
            chosen = recording.of(query.get("call"), method=query.get("method"), path=query.get("path"))
        except ValueError as error:
            raise _refused(str(error)) from None
        return {"connections": chosen.connections, "requests": [attrs.asdict(one) for one in chosen]}

    def forget_requests(self) -> Any:
        """`DELETE /_emulator/requests`."""
        self.recorder.clear()
        return self.show_requests({})

    def show_bill(self) -> Any:
        """`GET /_emulator/bill`."""
        charges = self.charges()
        return {
            "spent": str(sum((charge.cost for charge in charges), Decimal(0))),
            "rented": self.leaked(),
            "charges": [
                {**attrs.asdict(charge), "hourly_price": str(charge.hourly_price), "cost": str(charge.cost)}
                for charge in charges
            ],
            "pending_creates": [
                {**attrs.asdict(one), "hourly_price": str(one.hourly_price)} for one in self.pending_creates()
            ],
        }

    def show_clock(self) -> Any:
        """`GET /_emulator/clock`."""
        return {"now": self.clock.now, "scale": self.clock.scale}

    def move_clock(self, body: Any) -> Any:
        """`POST /_emulator/clock`."""
        wanted = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
        if not wanted or wanted.keys() - {"advance", "scale"}:
            raise _refused("give 'advance' (seconds), 'scale', or both")
        for name, value in wanted.items():
            if type(value) not in (int, float):
                raise _refused(f"{name} must be a number")
        try:
            self.clock.advance(wanted.get("advance", 0), scale=wanted.get("scale"))
        except ValueError as error:
            raise _refused(str(error)) from None
        return self.show_clock()

    def show_faults(self) -> Any:
        """`GET /_emulator/faults`."""
        return {
            "faults": [fault.to_mapping() for fault in self.faults],
            "unmet": [fault.to_mapping() for fault in self.faults.unmet],
        }

    def add_fault(self, body: Any) -> Any:
        """`POST /_emulator/faults`."""
        try:
            fault = Fault.from_mapping(body)
        except ValueError as error:
            raise _refused(str(error)) from None
        self.faults.add(fault)
        return self.show_faults()

    def clear_faults(self) -> Any:
        """`DELETE /_emulator/faults`."""
        self.faults.clear()
        return self.show_faults()

    def show_tokens(self) -> Any:
        """`GET /_emulator/tokens`."""
        return {"tokens": [{"token": token, "account": name} for token, name in self.service.tokens.items()]}

    def change_tokens(self, body: Any) -> Any:
        """`POST /_emulator/tokens`: accepts a token of an account, made up if none is given, or revokes one."""
        wanted = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
        words = {name: value for name, value in wanted.items() if type(value) is str and _WORD.fullmatch(value)}
        try:
            if words == wanted and wanted.keys() == {"revoke"}:
                self.revoke_token(wanted["revoke"])
            elif words == wanted and "account" in wanted and wanted.keys() <= {"account", "token"}:
                self.add_token(**wanted)
            else:
                raise _refused("give 'account', and 'token' unless it is to be made up; or 'revoke' alone")
        except ValueError as error:
            raise Refusal(404 if "revoke" in wanted else 409, {"detail": str(error)}) from None
        return self.show_tokens()

    def begin_again(self) -> Any:
        """`POST /_emulator/reset`."""
        self.reset()
        return self.show_clock()


def _refused(message: str) -> Refusal:
    return Refusal(422, {"detail": message})
