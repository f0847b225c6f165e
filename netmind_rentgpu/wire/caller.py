"""One call, from its arguments to its model: a slot, a deadline, tries, a log line for each.

The plain loop over `retry`'s decisions. It knows neither aiohttp nor what the calls mean; clock, sleep and randomness come
in from outside.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import random
from typing import Any, NamedTuple, Protocol, TypeVar

from netmind_rentgpu.concurrency.turns import run_in_turns
from netmind_rentgpu.errors import (
    APIStatusError,
    APITimeoutError,
    ClientStateError,
    RateLimitError,
    RentGPUError,
    ServerError,
    TransportError,
    UnexpectedResponseError,
)
from netmind_rentgpu.escaping import escaped
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.settings import DEFAULT, Settings, TimeoutOption, Timeouts, timeouts_for
from netmind_rentgpu.wire.codec import Codec, Model, ShapeError
from netmind_rentgpu.wire.messages import RawResponse, Request
from netmind_rentgpu.wire.paging import ListedItems
from netmind_rentgpu.wire.responses import parsed_body, payload, unexpected
from netmind_rentgpu.wire.retry import delay_before_retry

__all__ = ["Caller", "DecodedResponse"]

Read = TypeVar("Read")

logger: logging.Logger = logging.getLogger("netmind_rentgpu")
logger.addHandler(logging.NullHandler())


class _Escaping(logging.Filter):
    """Makes each message harmless for a terminal: it may hold names and texts of the service."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        shown = escaped(text)
        if shown != text:
            record.msg, record.args = shown, ()
        return True


logger.addFilter(_Escaping())


class Sender(Protocol):
    """What a call needs of a transport."""

    @property
    def connection_limit(self) -> int | None: ...
    def check_usable(self) -> None: ...
    async def send(self, request: Request, timeouts: Timeouts, remaining: float | None) -> RawResponse: ...
    async def close(self) -> None: ...


class DecodedResponse(NamedTuple):
    """A good answer and its parsed body.

    Attributes:
        deadline: when the call has to be over, in seconds on the caller's clock; None without a total timeout.
    """

    response: RawResponse
    payload: Any
    deadline: float | None = None


class Caller:
    """Makes calls over one transport."""

    def __init__(
        self,
        transport: Sender,
        settings: Settings,
        profile: ServiceProfile,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = random,
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._profile = profile
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._slots = asyncio.Semaphore(min(settings.max_connections, transport.connection_limit or 2**31))
        self._paused_until = 0.0
        self._closing: list[Callable[[], object]] = []
        self.codec: Codec = Codec(profile)

    @property
    def timeouts(self) -> Timeouts:
        """The client's own."""
        return self._settings.timeouts

    @property
    def profile(self) -> ServiceProfile:
        """What is assumed of the service."""
        return self._profile

    async def one(self, model: type[Model], request: Request, timeout: TimeoutOption = DEFAULT) -> Model:
        """Make a call that answers with one object.

        Raises:
            RentGPUError: as the client documents.
        """
        decoded = await self.call(request, timeout)
        return self.read(request, decoded, lambda payload: self.codec.one(model, payload))

    async def one_or_none(self, model: type[Model], request: Request, timeout: TimeoutOption = DEFAULT) -> Model | None:
        """Make a call that answers with one object, with null, or with nothing."""
        decoded = await self.call(request, timeout)
        if decoded.payload is None or decoded.payload == {}:
            return None
        return self.read(request, decoded, lambda payload: self.codec.one(model, payload))

    async def many(self, model: type[Model], request: Request, timeout: TimeoutOption = DEFAULT) -> ListedItems[Model]:
        """Make a call that answers with a list."""
        decoded = await self.call(request, timeout)
        found = await self.read_in_turns(request, decoded, lambda payload: self.codec.many(model, payload))
        if found.unreadable_count:
            logger.warning(
                "%s %s left out %d items that cannot be read; the first: %s",
                request.method,
                request.path,
                found.unreadable_count,
                found.unreadable[0],
            )
        errors = tuple(_misshapen(request, decoded, problem) for problem in found.unreadable)
        return ListedItems(found.items, errors, found.unreadable_count)

    async def read_in_turns(
        self, request: Request, decoded: DecodedResponse, read: Callable[[Any], Generator[None, None, Read]]
    ) -> Read:
        """Read a payload step by step, with turns of the event loop between.

        Raises:
            UnexpectedResponseError: it has another shape.
            APITimeoutError: the call's total timeout has passed.
        """
        try:
            return await self._run(read(decoded.payload), request, decoded.deadline)
        except ShapeError as error:
            raise _misshapen(request, decoded, error) from error

    @staticmethod
    def read(request: Request, decoded: DecodedResponse, read: Callable[[Any], Read]) -> Read:
        """Read a payload.

        Raises:
            UnexpectedResponseError: it has another shape.
        """
        try:
            return read(decoded.payload)
        except ShapeError as error:
            raise _misshapen(request, decoded, error) from error

    async def call(self, request: Request, timeout: TimeoutOption = DEFAULT) -> DecodedResponse:
        """Make a call: wait for a slot, send, and send again where `Retries` allows it.

        Raises:
            RentGPUError: as the client documents.
        """
        self._transport.check_usable()
        timeouts = timeouts_for(timeout, self._settings.timeouts)
        attempt = 0
        started: float | None = None
        unclear = False
        while True:
            attempt += 1
            now = self._clock()
            waited = now < self._paused_until or self._slots.locked()
            if waited:
                await self._wait_for_slot(request, timeouts, started, unclear=unclear)
                now = self._clock()
            else:
                await self._slots.acquire()
            if started is None:
                started = now
            try:
                if waited or attempt > 1:
                    self._transport.check_usable()
                return await self._attempt(request, timeouts, started, now, attempt)
            except (TransportError, APIStatusError, UnexpectedResponseError) as error:
                self._mark_unclear(error, unclear=unclear)
                unclear = unclear or _may_have_acted(error)
                delay = self._delay(request, timeouts, error, attempt, started)
                if delay is None:
                    if attempt > 1:
                        error.add_note(f"sent {attempt} times over {self._clock() - started:.3g} s")
                    raise
            finally:
                self._slots.release()
            await self._sleep(delay)

    def check_usable(self) -> None:
        """Raise ClientStateError if the client is closed or belongs to another event loop."""
        self._transport.check_usable()

    @asynccontextmanager
    async def one_at_a_time(self, lock: asyncio.Lock, timeout: TimeoutOption) -> AsyncGenerator[None]:
        """Hold a lock that several calls share, which is waited for at most as long as for a slot.

        Raises:
            APITimeoutError: it was not free in time.
        """
        self.check_usable()
        bound = timeouts_for(timeout, self._settings.timeouts).slot
        try:
            async with asyncio.timeout(bound):
                await lock.acquire()
        except TimeoutError as error:
            text = f"not sent within {bound:g} s: an earlier call of the same kind is not done"
            raise APITimeoutError(text, maybe_processed=False) from error
        try:
            yield
        finally:
            lock.release()

    def when_closed(self, tell: Callable[[], object]) -> None:
        """Have somebody told when the transport is closed."""
        self._closing.append(tell)

    async def close(self) -> None:
        """Close the transport.

        Raises:
            ClientStateError: it belongs to another event loop, and so do those who would be told.
        """
        refused = False
        try:
            await self._transport.close()
        except ClientStateError:
            refused = True
            raise
        finally:
            if not refused:
                for tell in self._closing:
                    tell()

    async def _attempt(
        self, request: Request, timeouts: Timeouts, started: float, now: float, attempt: int
    ) -> DecodedResponse:
        remaining = timeouts.total if timeouts.total is None or now == started else started + timeouts.total - now
        if remaining is not None and remaining <= 0:
            raise APITimeoutError(
                f"{request.method} {request.path}: no answer within {timeouts.total:g} s", maybe_processed=False
            )
        try:
            response = await self._transport.send(request, timeouts, remaining)
        except RentGPUError as error:
            if logger.isEnabledFor(logging.DEBUG):
                self._log(request, type(error).__name__, attempt, now, getattr(error, "request_id", None))
            raise
        if logger.isEnabledFor(logging.DEBUG):
            self._log(request, response.status, attempt, now, response.request_id)
        deadline = None if timeouts.total is None else started + timeouts.total
        steps = payload(
            request,
            response,
            validation_errors_key=self._profile.validation_errors_key,
            token=self._settings.token,
            now=_now,
        )
        return DecodedResponse(response, await self._run(steps, request, deadline), deadline)

    async def parse_again(self, request: Request, decoded: DecodedResponse) -> DecodedResponse:
        """Parse the body of an answer whose payload is UNCHANGED."""
        steps = parsed_body(request, decoded.response)
        return decoded._replace(payload=await self._run(steps, request, decoded.deadline))

    async def _run(self, steps: Generator[None, None, Read], request: Request, deadline: float | None) -> Read:
        """Run a computation in turns, until the call's deadline."""

        def check() -> None:
            if deadline is not None and self._clock() >= deadline:
                text = f"{request.method} {request.path}: the answer came, and was too large to be read in time"
                raise APITimeoutError(text, maybe_processed=True)

        return await run_in_turns(steps, check)

    async def _wait_for_slot(
        self, request: Request, timeouts: Timeouts, started: float | None, *, unclear: bool
    ) -> None:
        """Wait until the client is not paused and a connection may be used, at most as long as the timeouts allow."""
        bounds = [timeouts.slot]
        if started is not None and timeouts.total is not None:
            bounds.append(max(0.0, started + timeouts.total - self._clock()))
        bound = min((bound for bound in bounds if bound is not None), default=None)
        try:
            async with asyncio.timeout(bound):
                while True:
                    if (pause := self._paused_until - self._clock()) > 0:
                        # Those who waited for the same end must not all go on at once.
                        await self._sleep(pause + self._settings.retries.base_delay * self._random())
                    await self._slots.acquire()
                    if self._clock() >= self._paused_until:
                        break
                    self._slots.release()
        except TimeoutError as error:
            paused = self._clock() < self._paused_until
            reason = "the service asked for a pause (429)" if paused else "none of the client's connections was free"
            raise APITimeoutError(
                f"{request.method} {request.path}: not sent within {bound:g} s: {reason}", maybe_processed=unclear
            ) from error

    def _delay(
        self, request: Request, timeouts: Timeouts, error: RentGPUError, attempt: int, started: float
    ) -> float | None:
        now = self._clock()
        retries = self._settings.retries
        delay = delay_before_retry(
            retries,
            error,
            idempotent=request.idempotent,
            attempt=attempt,
            elapsed=now - started,
            remaining=None if timeouts.total is None else started + timeouts.total - now,
            random=self._random(),
        )
        if isinstance(error, RateLimitError):
            asked = error.retry_after
            if asked is not None and asked <= retries.max_retry_after:
                self._paused_until = max(self._paused_until, now + asked)
            elif asked is None and delay is not None:
                self._paused_until = max(self._paused_until, now + delay)
        return delay

    @staticmethod
    def _mark_unclear(error: RentGPUError, *, unclear: bool) -> None:
        """Let an error know of earlier attempts: what they may have done counts, whatever the last one met."""
        if not unclear:
            return
        if isinstance(error, TransportError):
            error.maybe_processed = True
        elif isinstance(error, APIStatusError):
            error.earlier_attempt_unclear = True

    def _log(self, request: Request, result: int | str, attempt: int, began: float, request_id: str | None) -> None:
        logger.debug(
            "%s %s -> %s, attempt %d, %.1f ms, request id %s",
            request.method,
            request.path,
            result,
            attempt,
            (self._clock() - began) * 1000,
            request_id or "-",
        )


def _now() -> datetime:
    return datetime.now(UTC)


def _may_have_acted(error: RentGPUError) -> bool:
    if isinstance(error, TransportError):
        return error.maybe_processed
    return isinstance(error, (ServerError, UnexpectedResponseError)) or getattr(error, "status", None) == 408


def _misshapen(request: Request, decoded: DecodedResponse, error: ShapeError) -> UnexpectedResponseError:
    return unexpected(request, decoded.response, error.problem, json_path=error.json_path)
