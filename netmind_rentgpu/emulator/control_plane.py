"""The controls of an emulator: its service, faults, recorded requests, bill, tokens and clock.

Python programs use them through `Emulator`. Programs in other languages use the HTTP paths below `CONTROLS`, which cannot
collide with the service's paths, because those begin with `/v1/`.
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

__all__ = ["CONTROLS", "ControlPlane"]

CONTROLS = "/_emulator"
_WORD = re.compile(r"[!-~]+")


class ControlPlane:
    """All parts of an emulator except its HTTP server.

    Attributes:
        service, faults, recorder, clock: the parts. A reset replaces the service.
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
        """Create the parts.

        Args:
            make: creates the service in its initial state.
            seed: the seed of the faults with a probability.
            token: the first token, which recorded requests show masked.
            guessable_tokens: True to derive a new token from a counter and the account's name, False to draw it at random.
            faults: the faults in force in the beginning.
            keep: the number of requests to keep; None for all.
            clock: the emulator's clock.
        """
        self._make = make
        self.recorder: Recorder = Recorder(keep, token=token)
        self.clock: Clock = clock
        self.service: Service = make()
        self._tokens_made = 0
        self._guessable_tokens = guessable_tokens
        self.faults: Faults = Faults(seed, faults)

    def reset(self) -> None:
        """Restore the initial state: no containers, auths, own images or recorded requests. The clock goes on."""
        self.service = self._make()
        self.faults.reset()
        self.recorder.clear()

    def add_token(self, account: str, token: str | None = None) -> str:
        """Accept a token from now on, and return it.

        Args:
            account: the name of the token's account, which is opened if it does not exist.
            token: the token; None to generate it.

        Raises:
            ValueError: the token belongs to another account, or the token or the account's name has spaces or characters
                that are not ASCII.
        """
        service = self.service
        if token is None:
            self._tokens_made += 1
            word = self._tokens_made if self._guessable_tokens else secrets.token_urlsafe(24)
            token = f"emulator-token-{word}-of-{account}"
        if not (_WORD.fullmatch(account) and _WORD.fullmatch(token)):
            raise ValueError("tokens and names of accounts must be ASCII characters without spaces")
        if service.tokens.get(token, account) != account:
            raise ValueError(f"the token already belongs to account {service.tokens[token]}")
        self.recorder.mask(token)
        service.at_once(service.accept, token, account)
        return token

    def revoke_token(self, token: str) -> None:
        """Refuse a token from now on.

        Raises:
            ValueError: the token was not accepted before.
        """
        if self.service.tokens.pop(token, None) is None:
            raise ValueError("there is no such token")

    def set_gpu_use(self, container_id: int, percent: int) -> None:
        """Set the use of each of a container's GPUs, as `nvidia-smi` reports it there.

        Raises:
            ValueError: the use is not from 0 to 100, or there is no such container with an SSH server.
        """
        if not _is_percentage(percent):
            raise ValueError(f"the use of a GPU must be a whole number from 0 to 100, not {percent!r}")
        if not self.service.at_once(self.service.set_gpu_use, container_id, percent):
            raise ValueError(f"there is no container {container_id!r} with an SSH server")

    def charges(self) -> list[Charge]:
        """Return the charge of each container until now."""
        charges: list[Charge] = self.service.at_once(self.service.charges)
        return charges

    def pending_creates(self) -> list[PendingCreate]:
        """Return the creates that the service will still do."""
        pending_creates: list[PendingCreate] = self.service.at_once(self.service.pending_creates)
        return pending_creates

    def leaked(self, apart_from: Collection[int | Charge | PendingCreate] = ()) -> str | None:
        """Describe what is rented or will be, with its cost; None if there is nothing.

        Args:
            apart_from: ids of containers, charges and pending creates to leave out.
        """
        ids = {item for item in apart_from if isinstance(item, int)}
        numbers = {item.number for item in apart_from if not isinstance(item, int)}
        service = self.service
        charges, pending_creates = service.at_once(lambda: (service.charges(), service.pending_creates()))
        return rented(
            [charge for charge in charges if charge.container_id not in ids and charge.number not in numbers],
            [create for create in pending_creates if create.number not in numbers],
        )

    # The HTTP controls: each method receives the query or the parsed JSON, and returns a value to send as JSON.

    def show_requests(self, query: Mapping[str, str]) -> Any:
        """`GET /_emulator/requests`."""
        unknown = query.keys() - {"call", "method", "path"}
        if unknown:
            raise _refused(f"unknown: {', '.join(sorted(unknown))}; choose requests by call, method or path")
        recording = self.recorder.recording()
        try:
            chosen = recording.of(query.get("call"), method=query.get("method"), path=query.get("path"))
        except ValueError as error:
            raise _refused(str(error)) from None
        return {"connections": chosen.connections, "requests": [attrs.asdict(request) for request in chosen]}

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
                {**attrs.asdict(create), "hourly_price": str(create.hourly_price)} for create in self.pending_creates()
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
        """`POST /_emulator/tokens`: accept an account's token, which is generated if none is sent, or revoke a token."""
        wanted = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
        words = {name: value for name, value in wanted.items() if type(value) is str and _WORD.fullmatch(value)}
        try:
            if words == wanted and wanted.keys() == {"revoke"}:
                self.revoke_token(wanted["revoke"])
            elif words == wanted and "account" in wanted and wanted.keys() <= {"account", "token"}:
                self.add_token(**wanted)
            else:
                raise _refused("give 'account', and 'token' unless it is to be generated; or 'revoke' alone")
        except ValueError as error:
            raise Refusal(404 if "revoke" in wanted else 409, {"detail": str(error)}) from None
        return self.show_tokens()

    def change_gpu_use(self, body: Any) -> Any:
        """`POST /_emulator/gpus`."""
        wanted = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
        # In JSON, 5.0 is a whole number, too.
        wanted = {name: int(value) if _is_whole(value) else value for name, value in wanted.items()}
        if wanted.keys() != {"container_id", "percent"} or type(wanted["container_id"]) is not int:
            raise _refused("give 'container_id' and 'percent'")
        try:
            self.set_gpu_use(**wanted)
        except ValueError as error:
            raise Refusal(404 if _is_percentage(wanted["percent"]) else 422, {"detail": str(error)}) from None
        return wanted

    def begin_again(self) -> Any:
        """`POST /_emulator/reset`."""
        self.reset()
        return self.show_clock()


def _is_percentage(value: object) -> bool:
    return type(value) is int and 0 <= value <= 100


def _is_whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer()


def _refused(message: str) -> Refusal:
    return Refusal(422, {"detail": message})
