"""One call, from its request to its model: a slot, a deadline, attempts, and a log line for each attempt.

The loop follows the decisions of `retry`. It knows neither aiohttp nor the meaning of a call. Clock, sleep and randomness
are injected.
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
from netmind_rentgpu.wire.retry import delay_before_retry, may_have_acted

__all__ = ["Caller", "DecodedResponse"]

Read = TypeVar("Read")

logger: logging.Logger = logging.getLogger("netmind_rentgpu")
logger.addHandler(logging.NullHandler())


class _Escaping(logging.Filter):
    """A filter that escapes each message, because a message may hold texts of the service that a terminal would obey."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        shown = escaped(text)
        if shown != text:
            record.msg, record.args = shown, ()
        return True


logger.addFilter(_Escaping())


class Sender(Protocol):
    """The part of a transport that a caller uses."""

    @property
    def connection_limit(self) -> int | None: ...
    def check_usable(self) -> None: ...
    async def send(self, request: Request, timeouts: Timeouts, remaining: float | None) -> RawResponse: ...
    async def close(self) -> None: ...


class DecodedResponse(NamedTuple):
    """A good answer and its parsed body.

    Attributes:
        deadline: the end of the time for the call, in seconds on the caller's clock; None without a total timeout.
    """

    response: RawResponse
    payload: Any
    deadline: float | None = None


class Caller:
    """The calls over one transport, with their slots, deadlines and retries."""

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
        """The client's own timeouts."""
        return self._settings.timeouts

    @property
    def profile(self) -> ServiceProfile:
        """The client's assumptions about the service."""
        return self._profile

    async def one(self, model: type[Model], request: Request, timeout: TimeoutOption = DEFAULT) -> Model:
        """Make a call whose answer is one object.

        Raises:
            RentGPUError: as the client documents.
        """
        decoded = await self.call(request, timeout)
        return self.read(request, decoded, lambda payload: self.codec.one(model, payload))

    async def one_or_none(self, model: type[Model], request: Request, timeout: TimeoutOption = DEFAULT) -> Model | None:
        """Make a call whose answer is one object, null, or empty; return None for null, an empty object or an empty body."""
        decoded = await self.call(request, timeout)
        if decoded.payload is None or decoded.payload == {}:
            return None
        return self.read(request, decoded, lambda payload: self.codec.one(model, payload))

    async def many(self, model: type[Model], request: Request, timeout: TimeoutOption = DEFAULT) -> ListedItems[Model]:
        """Make a call whose answer is a list; log a warning if some items cannot be read."""
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
        """Read a payload step by step, so that the event loop can run other tasks between the steps.

        Raises:
            UnexpectedResponseError: the payload has another shape.
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
            UnexpectedResponseError: the payload has another shape.
        """
        try:
            return read(decoded.payload)
        except ShapeError as error:
            raise _misshapen(request, decoded, error) from error

    async def call(self, request: Request, timeout: TimeoutOption = DEFAULT) -> DecodedResponse:
        """Make a call: wait for a slot, send the request, and retry as `Retries` allows.

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
                return await self._send_once(request, timeouts, started, now, attempt)
            except (TransportError, APIStatusError, UnexpectedResponseError) as error:
                self._mark_unclear(error, unclear=unclear)
                unclear = unclear or may_have_acted(error)
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
        """Lock a `with` block against others of the same kind; wait for the lock at most as long as for a slot.

        Raises:
            APITimeoutError: the lock was not free in time.
        """
        self.check_usable()
        bound = timeouts_for(timeout, self._settings.timeouts).slot
        try:
            async with asyncio.timeout(bound):
                await lock.acquire()
        except TimeoutError as error:
            text = f"not sent within {bound:g} s: an earlier call of the same kind is still under way"
            raise APITimeoutError(text, maybe_processed=False) from error
        try:
            yield
        finally:
            lock.release()

    def when_closed(self, callback: Callable[[], object]) -> None:
        """Register a function that is called when the transport is closed."""
        self._closing.append(callback)

    async def close(self) -> None:
        """Close the transport, and call the registered functions.

        Raises:
            ClientStateError: the transport and the registered functions belong to another event loop.
        """
        refused = False
        try:
            await self._transport.close()
        except ClientStateError:
            refused = True
            raise
        finally:
            if not refused:
                for callback in self._closing:
                    callback()

    async def _send_once(
        self, request: Request, timeouts: Timeouts, started: float, now: float, attempt: int
    ) -> DecodedResponse:
        remaining = timeouts.total if timeouts.total is None or now == started else started + timeouts.total - now
        if remaining is not None and remaining <= 0:
            raise APITimeoutError(
                f"{request.method} {request.path}: no answer within {timeouts.total:g} s", maybe_processed=False
            )
        if request.check is not None:
            request.check()
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
        """Parse the body of an answer although its payload is UNCHANGED."""
        steps = parsed_body(request, decoded.response)
        return decoded._replace(payload=await self._run(steps, request, decoded.deadline))

    async def _run(self, steps: Generator[None, None, Read], request: Request, deadline: float | None) -> Read:
        """Run a computation in turns, until the call's deadline at most."""

        def check() -> None:
            if deadline is not None and self._clock() >= deadline:
                text = f"{request.method} {request.path}: the answer came, and was too large to be read in time"
                raise APITimeoutError(text, maybe_processed=True)

        return await run_in_turns(steps, check)

    async def _wait_for_slot(
        self, request: Request, timeouts: Timeouts, started: float | None, *, unclear: bool
    ) -> None:
        """Wait until the client is not paused and a slot is free, at most as long as the timeouts allow."""
        bound = named = timeouts.slot
        if started is not None and timeouts.total is not None:
            rest = max(0.0, started + timeouts.total - self._clock())
            if bound is None or rest < bound:
                # An error names the whole time, because the rest of it says nothing to the caller.
                bound, named = rest, timeouts.total
        try:
            async with asyncio.timeout(bound):
                while True:
                    if (pause := self._paused_until - self._clock()) > 0:
                        # With a random part, so that the calls that wait for the same moment do not all go on at once.
                        await self._sleep(pause + self._settings.retries.base_delay * self._random())
                    await self._slots.acquire()
                    if self._clock() >= self._paused_until:
                        break
                    self._slots.release()
        except TimeoutError as error:
            paused = self._clock() < self._paused_until
            reason = "the service asked for a pause (429)" if paused else "none of the client's connections was free"
            raise APITimeoutError(
                f"{request.method} {request.path}: not sent within {named:g} s: {reason}", maybe_processed=unclear
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
        """Mark an error if the service may have acted on an earlier attempt of the call, because the caller has to know."""
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


def _misshapen(request: Request, decoded: DecodedResponse, error: ShapeError) -> UnexpectedResponseError:
    problem = f"the body {error.problem}" if error.json_path == "$" else error.problem
    return unexpected(request, decoded.response, problem, json_path=error.json_path)
