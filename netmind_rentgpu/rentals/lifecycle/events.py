"""Events of a rental: a value and a sentence for each, logged at INFO, and handed to the caller's function."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, TypeAlias

import attrs

from netmind_rentgpu import arguments
from netmind_rentgpu.conversion import plain_values
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.rentals.context import RentalContext
from netmind_rentgpu.rentals.ledger.past_rentals import cost_of
from netmind_rentgpu.rentals.ledger.records import EndCause, RentalRecord, amount_text

__all__ = ["RELEASE_REASONS", "EventKind", "EventOptions", "OnRentalEvent", "RentalEvent", "RentalEvents"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

EventKind: TypeAlias = Literal[
    "out_of_stock",
    "asking",
    "refused",
    "created",
    "waiting",
    "ready",
    "failed",
    "extended",
    "expiring",
    "releasing",
    "released",
]


@attrs.frozen(kw_only=True)
class RentalEvent:
    """A step of a rental. Its `str` is a sentence for people.

    A rental that tries several machines has a name for each, so that the name changes from one `asking` to the next.

    Attributes:
        kind: `out_of_stock` (no machine is available, and the rental waits for one), `asking` (the create is about to be
            sent), `refused` (the machine is not available), `created`, `waiting` (the container starts), `ready` (the login
            has worked), `failed` (the machine did not start), `extended`, `expiring` (the end is near), `releasing` (the
            deletion begins), or `released` (the container is gone).
        at: the time of the event, in UTC.
        name: the container's name; None as long as no machine was asked.
        label: the user's own name for the rental; None if it has none.
        container_id: the container's id; None as long as the service has not shown it.
        node_name, gpu_name, region: the machine, as it was listed; None as long as none was asked.
        gpus: the number of its GPUs; None likewise.
        hourly_price: the listed price of an hour; None if it could not be read.
        currency: the currency of prices and costs, such as USD; None if it is not known.
        intended_at, created_at, ready_at, expires_at, extendable_to: the moments of the rental, as in its `RentalRecord`;
            None likewise.
        max_cost, max_cost_at_ceiling: the most that the rental can cost until `expires_at`, and until `extendable_to`, if
            only `rentals.reap(by_name=True)` is left to end it; None if it is not known.
        spent: the estimated cost so far of this machine; None if it is not known.
        reason: the cause of a lack of stock, of a refusal, of a failure or of the release; what the service shows of a
            container that starts; or since when a machine is idle that is about to end. None for other kinds.
        next_step: the step that follows a lack of stock or a failure; None for other kinds.
    """

    kind: EventKind
    at: datetime
    name: str | None = None
    label: str | None = None
    container_id: int | None = None
    node_name: str | None = None
    gpu_name: str | None = None
    region: str | None = None
    gpus: int | None = None
    hourly_price: Decimal | None = None
    currency: str | None = None
    intended_at: datetime | None = None
    created_at: datetime | None = None
    ready_at: datetime | None = None
    expires_at: datetime | None = None
    extendable_to: datetime | None = None
    max_cost: Decimal | None = None
    max_cost_at_ceiling: Decimal | None = None
    spent: Decimal | None = None
    reason: str | None = None
    next_step: str | None = None

    @classmethod
    def of(
        cls,
        kind: EventKind,
        record: RentalRecord,
        *,
        at: datetime,
        spent: Decimal | None,
        reason: str | None = None,
        next_step: str | None = None,
    ) -> RentalEvent:
        """Return an event of a rental on record."""
        shared = {name: getattr(record, name) for name in _OF_RECORD}
        return cls(kind=kind, at=at, spent=spent, reason=reason, next_step=next_step, **shared)

    def to_dict(self, *, secrets: bool = False, json: bool = False) -> dict[str, Any]:
        """Return the fields as plain values, as for a line of JSON.

        Args:
            secrets: without effect, because an event has none.
            json: True to return only what JSON can hold: prices become texts, and times become texts in ISO 8601.
        """
        del secrets
        return plain_values({name: getattr(self, name) for name in _FIELDS}, json=json)

    def __str__(self) -> str:
        sentence = _SENTENCES[self.kind](self)
        return sentence if self.name is None else f"{self.name}: {sentence}"


OnRentalEvent: TypeAlias = Callable[[RentalEvent], object]
"""A function that takes each event of a rental; it may be a coroutine function."""

_FIELDS: Final = tuple(field.name for field in attrs.fields(RentalEvent))
_OWN: Final = ("kind", "at", "spent", "reason", "next_step")
_OF_RECORD: Final = tuple(name for name in _FIELDS if name not in _OWN)


def _check_notice(_: object, __: object, notice: timedelta | None) -> None:
    if notice is not None and (not isinstance(notice, timedelta) or notice < timedelta(0)):
        shown = arguments.shown_value(notice)
        raise InvalidArgumentError("notice", f"must be a timedelta of at least 0, or None, not {shown}")


def _check_on_event(_: object, __: object, on_event: OnRentalEvent | None) -> None:
    if on_event is not None and not callable(on_event):
        raise InvalidArgumentError("on_event", f"must be a function, not {type(on_event).__name__}")


@attrs.frozen(kw_only=True)
class EventOptions:
    """A caller's wishes for the events of a rental, with checked arguments.

    Attributes:
        notice: the time before the rental's end at which an event says that it expires; None for no such event.
        on_event: takes each event; None to log the events only.
    """

    notice: timedelta | None = attrs.field(default=None, validator=_check_notice)
    on_event: OnRentalEvent | None = attrs.field(default=None, validator=_check_on_event)


def _price(event: RentalEvent) -> str:
    return f"at {amount_text(event.hourly_price, event.currency)} an hour"


def _end(event: RentalEvent) -> str:
    return "no end" if event.expires_at is None else f"{event.expires_at:%Y-%m-%d %H:%M:%S} UTC"


def _most(event: RentalEvent) -> str:
    if event.max_cost is None:
        return "an unknown amount"
    ceiling = amount_text(event.max_cost_at_ceiling, event.currency)
    return f"at most {amount_text(event.max_cost, event.currency)}, or {ceiling} if only reap(by_name=True) ends it"


def _out_of_stock(event: RentalEvent) -> str:
    return f"no machine is available: {event.reason}; {event.next_step}"


def _asking(event: RentalEvent) -> str:
    return f"asking {event.node_name} for {event.gpus} x {event.gpu_name or 'an unnamed GPU'} {_price(event)}"


def _refused(event: RentalEvent) -> str:
    return f"{event.node_name} refused: {event.reason}"


def _created(event: RentalEvent) -> str:
    return f"created on {event.node_name} as container {event.container_id}, {_price(event)}"


def _waiting(event: RentalEvent) -> str:
    return f"waiting for container {event.container_id}: {event.reason}"


def _ready(event: RentalEvent) -> str:
    took = (event.ready_at or event.at) - (event.intended_at or event.at)
    since = f"{took.total_seconds():.1f} s after its create"
    return f"ready on {event.node_name}, {since}; container {event.container_id}, {_price(event)}"


def _failed(event: RentalEvent) -> str:
    return f"{event.node_name} did not start: {event.reason}; {event.next_step}"


def _extended(event: RentalEvent) -> str:
    return f"extended until {_end(event)}; it costs {_most(event)}"


def _expiring(event: RentalEvent) -> str:
    if event.reason is not None:
        return event.reason
    return f"expires at {_end(event)}, and container {event.container_id} is deleted then, unless it is extended"


def _releasing(event: RentalEvent) -> str:
    return f"releasing container {event.container_id} on {event.node_name}: {event.reason}"


def _released(event: RentalEvent) -> str:
    cost = amount_text(event.spent, event.currency)
    return f"released container {event.container_id} on {event.node_name}; it cost about {cost}"


_SENTENCES: Final[Mapping[EventKind, Callable[[RentalEvent], str]]] = {
    "out_of_stock": _out_of_stock,
    "asking": _asking,
    "refused": _refused,
    "created": _created,
    "waiting": _waiting,
    "ready": _ready,
    "failed": _failed,
    "extended": _extended,
    "expiring": _expiring,
    "releasing": _releasing,
    "released": _released,
}


RELEASE_REASONS: Final[Mapping[EndCause, str]] = {
    "released": "its user has ended it",
    "expired": "its time is up",
    "budget": "its budget is spent",
    "failed": "it did not start",
    "reaped": "its process has ended",
    "gone": "it seems to be gone",
    "kept": "its user keeps it",
    "idle": "it was idle for too long",
}
"""The reasons of `releasing` events, by the cause of the end."""


class RentalEvents:
    """The events of one rental, in their order.

    Attributes:
        options: the caller's wishes.
    """

    def __init__(self, context: RentalContext, options: EventOptions) -> None:
        self.options: EventOptions = options
        self._context = context
        self._untold: deque[RentalEvent] = deque()
        self._telling: asyncio.Task[None] | None = None
        self._is_awaited = False

    def emit(
        self, kind: EventKind, record: RentalRecord, *, reason: str | None = None, next_step: str | None = None
    ) -> None:
        """Log an event of a rental on record, and hand it to the caller's function soon.

        No error is raised, because the caller may be about to delete a container. The user's function runs in a task of its
        own, so that no error of it, and no interrupt that comes meanwhile, reaches the tasks that rent and delete.
        """
        self._send(lambda: self._of_record(kind, record, reason, next_step), f"{record.name} is {kind}")

    def tell_of_stock(self, label: str | None, *, reason: str, left: timedelta) -> None:
        """Log that no machine is available, and hand that to the caller's function soon.

        Args:
            left: the time for which the rental waits for one.
        """
        at = self._context.clock().wall
        next_step = f"the machines are listed again and again until {at + left:%Y-%m-%d %H:%M:%S} UTC"
        self._send(
            lambda: RentalEvent(kind="out_of_stock", at=at, label=label, reason=reason, next_step=next_step),
            "no machine is available",
        )

    def _of_record(
        self, kind: EventKind, record: RentalRecord, reason: str | None, next_step: str | None
    ) -> RentalEvent:
        clocks = self._context.clock()
        spent = cost_of(record, record.ended_at or record.present(clocks))
        return RentalEvent.of(kind, record, at=clocks.wall, spent=spent, reason=reason, next_step=next_step)

    def _send(self, make: Callable[[], RentalEvent], fact: str) -> None:
        try:
            event = make()
            logger.info("%s", event)
        except Exception:
            logger.exception("could not send the event that %s", fact)
            return
        if self.options.on_event is None:
            return
        self._untold.append(event)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell(self.options.on_event))

    async def _tell(self, on_event: OnRentalEvent) -> None:
        """Run the caller's function for each event, and await what it returns, one event after the other."""
        while self._untold:
            event = self._untold.popleft()
            try:
                result = on_event(event)
                if inspect.isawaitable(result):
                    await result
            except asyncio.CancelledError as error:
                if (current := asyncio.current_task()) is not None and current.cancelling():
                    raise
                _log_error(event, error)
            except BaseException as error:
                # In the main thread, it may be an interrupt of the program, which the event loop handles.
                if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                    raise
                _log_error(event, error)

    async def let_begin(self) -> None:
        """Run the caller's function for the events so far, without waiting for what it returns."""
        if self._untold:
            await asyncio.sleep(0)

    def note_ending(self) -> None:
        """Record who ends the rental: if the caller's own function does, the end must not wait for it."""
        self._is_awaited = self._is_awaited or (self._telling is not None and asyncio.current_task() is self._telling)

    async def let_end(self) -> None:
        """Wait until the caller's function has got all events, but not for long; cancel it then."""
        telling, longest = self._telling, self._context.limits.callbacks
        if telling is None or telling.done() or self._is_awaited:
            return
        await asyncio.wait({telling}, timeout=longest)
        if not telling.done():
            self._untold.clear()
            telling.cancel()
            logger.warning("on_event did not return within %g s of the rental's end, and was cancelled", longest)


def _log_error(event: RentalEvent, error: BaseException) -> None:
    logger.error("on_event raised an error, which changes nothing, at the event %r", str(event), exc_info=error)
