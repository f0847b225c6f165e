"""From synchronous code to the event loop and back: the only file that knows `BlockingPortal`.

One daemon thread with one loop serves the whole process. It starts at the first call and is ended by `atexit`. A call is
submitted by hand, and its result, or its very error, comes back to the thread that waits. What can happen meanwhile:

* An interrupted caller (Ctrl-C, or whatever a signal handler raises) cancels its task natively, so that cleanup may await,
  and waits for that. It may be interrupted between any two bytecodes: so locks are C's own, never held across a wait, and
  nothing is awaited that is not cancelled on every way out.
* A forked child has neither thread nor loop. It must not touch what its parent has open, for they share the same sockets
  and the same epoll. So it leaves all that alone for ever, and starts anew.
* Garbage is collected in any thread, at any time, so what happens then takes no lock and waits for nothing.
"""

from __future__ import annotations

import _thread
import asyncio
import importlib
import signal
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from contextlib import suppress
from copy import copy
from functools import partial
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar, cast

import anyio
from anyio.from_thread import BlockingPortal

from netmind_rentgpu.concurrency import exit_hooks
from netmind_rentgpu.concurrency.event_loops import loop_factory
from netmind_rentgpu.concurrency.forks import at_fork_in_child
from netmind_rentgpu.errors import ClientStateError, ConfigurationError, RentGPUError
from netmind_rentgpu.sync.pending_call import PendingCall

__all__ = ["OwnedHandle", "call", "iterate"]

P = ParamSpec("P")
R = TypeVar("R")
Item = TypeVar("Item")

_LONGEST_CLOSE: Final = 90.0  # of which a rental's deletion takes its part
_LONGEST_END: Final = 5.0
# Raised by what a thread itself does, and for faulthandler to report.
_FAULTS: Final = {getattr(signal, f"SIG{name}", None) for name in ("SEGV", "BUS", "FPE", "ILL", "ABRT")}
# Else anyio imports it in the loop's thread, and a fork during that leaves its lock locked in the child.
importlib.import_module("anyio._backends._asyncio")


class Closable(Protocol):
    """What can be closed, and copied into one that has nothing open yet."""

    async def close(self) -> None: ...
    def __copy__(self) -> Any: ...


Value = TypeVar("Value", bound=Closable)


def call(function: Callable[P, Awaitable[R]], /, *arguments: P.args, **keywords: P.kwargs) -> R:
    """Call an asynchronous function in the loop and wait for it.

    It sees the caller's context variables. Its error is raised as it is.

    Raises:
        ClientStateError: this is the loop's own thread, which cannot wait for itself; or the interpreter is exiting.
        ConfigurationError: the loop that was asked for cannot be had.
    """
    loop = _running_loop()
    submitted = PendingCall(function, arguments, keywords)
    try:
        try:
            loop.submit(submitted)
            submitted.wait()
        except BaseException as error:
            loop.withdraw(submitted, error)
            raise
    except BaseException as error:
        # Where two signals come together, the second is raised before the first has had anything done.
        loop.withdraw(submitted, error)
        raise
    if _exiting:
        exit_hooks.park_daemon_thread(_LONGEST_END)
    if submitted.error is None:
        return cast(R, submitted.result)
    try:
        raise submitted.error
    finally:
        # The error's traceback holds this frame, which must not hold the error.
        del submitted


def iterate(begin: Callable[[], AsyncIterator[R]], each: Callable[[R], Iterable[Item]]) -> Generator[Item]:
    """Iterate an asynchronous iterator, whose items are fetched by a call each.

    So each comes from another task, and the iterator must hold no timeout or task group across a `yield`.

    Args:
        begin: makes the iterator; called when the first item is asked for. What it refers to is kept as long.
        each: what to give for an item.
    """
    generation = _generation
    iterator = begin()
    end = object()
    try:
        while True:
            if generation != _generation:
                raise ClientStateError("the event loop that this iteration was begun in is gone; begin it again")
            item: Any = call(cast("Callable[..., Awaitable[Any]]", anext), iterator, end)
            if item is end:
                return
            yield from each(item)
    except GeneratorExit:
        # It was left halfway, or collected. asyncio closes the asynchronous generator in its loop.
        if generation != _generation and _inherited is not None:
            # A fork brought it along, and its end would be the parent's loss.
            _inherited.parked.append(iterator)
        raise


class OwnedHandle(Generic[Value]):
    """The asynchronous object behind synchronous ones.

    It is closed when the last of those is collected, or when the interpreter exits. Where its loop is gone, as in a forked
    child, a copy takes its place.
    """

    def __init__(self, value: Value, what: str = "client") -> None:
        self._value = value
        self._what = what
        self._generation = _generation
        self._closed = False
        self._key = object()
        _open[self._key] = value
        weakref.finalize(self, _close_later, self._key).atexit = False

    @property
    def closed(self) -> bool:
        """It was closed."""
        return self._closed

    @property
    def value(self) -> Value:
        """The object, for the loop of now.

        Raises:
            ClientStateError: it was closed.
        """
        if self._closed:
            raise ClientStateError(f"this {self._what} is closed; make a new one")
        if self._generation != _generation:
            with _lock:
                new, key = copy(self._value), self._key
                # Another thread, or a signal handler's own call, may have been first. No call may stand between these lines,
                # for there a handler could come in.
                if self._generation != _generation:
                    self._value = _open[key] = new
                    self._generation = _generation
        return self._value

    def close(self) -> None:
        """Close the object. Closing twice is closing once."""
        value = _open.get(self._key)
        if value is not None and _loop is not None:
            call(value.close)
        self._closed = True
        _open.pop(self._key, None)


def _close_later(key: object) -> None:
    # It stays open until the loop's thread has it, which no interrupt reaches: at worst, it is closed at exit.
    if _loop is None:
        _open.pop(key, None)
    elif key in _open:
        _loop.post(partial(_close_now, key))


async def _close_now(key: object) -> None:
    if (value := _open.pop(key, None)) is not None:
        await value.close()


class _LoopThread:
    """A daemon thread, and the event loop in it."""

    def __init__(self) -> None:
        self.ident: int | None = None
        self._starter = 0
        # The thread's frames hold `self`, and in a forked child nothing ever unwinds those: what is parked is immortal.
        self.parked: list[object] = []
        self.came_up = self._has_closed = False
        self._launched = False
        self._launching = threading.Lock()
        self._call_soon: Callable[..., object] = _not_running
        self._portal: BlockingPortal | None = None
        self._failure: BaseException | None = None
        self._calls: set[PendingCall] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._not_ready, self._not_closed = threading.Lock(), threading.Lock()
        self._not_ready.acquire()
        self._not_closed.acquire()
        self._factory = loop_factory()
        self._thread = threading.Thread(target=self._run, name="netmind_rentgpu", daemon=True)

    def start(self) -> None:
        """Start the thread, or see that it is being started.

        `Thread.start` waits for the thread, and an interrupt during that breaks its locks. So another thread calls it, which
        no signal reaches, and which is itself started by one call into C.
        """
        if not self._launched:
            self._starter = threading.get_native_id()
            try:
                _thread.start_new_thread(self._launch, ())
            except RuntimeError as error:
                raise ClientStateError(f"the event loop's thread cannot be started: {error}") from error
            self._launched = True

    def check_usable(self) -> None:
        if not self.came_up:
            with self._not_ready:
                pass
        if threading.get_ident() == self.ident:
            raise ClientStateError(
                "a synchronous client was called from the event loop that serves it, which cannot wait for itself;"
                " use AsyncRentGPU there, or call from another thread"
            )
        if self._failure is not None and not self.came_up:
            raise ConfigurationError(f"no event loop can be had: {self._failure}") from self._failure

    def submit(self, call: PendingCall) -> None:
        self._calls.add(call)
        self._soon(call, call.start, self._calls)

    def withdraw(self, call: PendingCall, interrupt: BaseException) -> None:
        """Cancel a call and wait until it has cleaned up; whatever interrupts that cancels again.

        Raises:
            BaseException: the last interrupt, if it was another and does not rank below the first.
        """
        while not call.finished:
            try:
                self._soon(call, call.cancel)
                call.wait()
            except BaseException as another:  # noqa: BLE001  # raised when the call has ended
                if isinstance(interrupt, Exception) or not isinstance(another, Exception):
                    interrupt = another
        self._calls.discard(call)
        try:
            if interrupt is not sys.exception():
                raise interrupt
        finally:
            del interrupt

    def post(self, function: Callable[[], Awaitable[None]]) -> None:
        """Have something done, by and by, that nobody waits for."""
        with suppress(RuntimeError):
            self._call_soon(self._begin, function)

    def stop(self) -> None:
        """Close what is open and end, within a bound. May be interrupted, and called again then."""
        if self._portal is not None:
            self.post(self._portal.stop)
            if not self._has_closed:
                self._not_closed.acquire(timeout=_LONGEST_CLOSE)
            self._thread.join(_LONGEST_END)

    def _soon(self, call: PendingCall, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            self._call_soon(callback, *arguments)
        except RuntimeError:
            call.abandon()

    def _begin(self, function: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            try:
                await function()
            except RentGPUError as error:
                if _exiting:
                    exit_hooks.warn_on_stderr_once(str(error))

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _launch(self) -> None:
        # An interrupt can make `start` begin twice.
        if not self._launching.acquire(blocking=False):
            return
        try:
            self._thread.start()
        except Exception as error:  # noqa: BLE001  # those who wait for the thread are told
            self._failure = error
            self._over()

    def _run(self) -> None:
        if threading.get_native_id() == self._starter:
            self._failure = RuntimeError(_NO_THREAD)
            self._over()
            return
        self.ident = threading.get_ident()
        # The kernel gives a signal to any thread that takes it, and one that this thread takes does not end the main one's
        # wait. A subprocess that is started from here has to be given its signals back.
        if sys.platform != "win32" and hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
        try:
            anyio.run(self._serve, backend="asyncio", backend_options={"loop_factory": self._factory})
        except BaseException as error:  # noqa: BLE001  # there is nobody above to tell
            self._failure = error
        finally:
            self._over()

    def _over(self) -> None:
        if not self.came_up:
            self._not_ready.release()
        _discard_loop(self)
        for call in tuple(self._calls):
            call.abandon()

    async def _serve(self) -> None:
        async with BlockingPortal() as portal:
            self._portal = portal
            self._call_soon = asyncio.get_running_loop().call_soon_threadsafe
            self.came_up = True
            self._not_ready.release()
            try:
                await portal.sleep_until_stopped()
            finally:
                for value in tuple(_open.values()):
                    self._begin(value.close)
                # With those that were collected a moment ago.
                await asyncio.gather(*self._tasks, return_exceptions=True)
                self._has_closed = True
                self._not_closed.release()


_NO_THREAD = (
    "threads are not native here, as under gevent: call gevent.monkey.patch_all(thread=False) or use AsyncRentGPU"
)


def _not_running(*_: object) -> None:
    raise RuntimeError("the event loop does not run yet")


_lock = threading.RLock()
_loop: _LoopThread | None = None
_exiting = False
_generation = 0
"""Which loop it is: what belongs to an earlier one is of no use any more."""
_open: dict[object, Closable] = {}
"""What may have something open in the loop of now. Kept here, so that it cannot be collected before it is closed."""


def _running_loop() -> _LoopThread:
    global _loop  # noqa: PLW0603  # there is one for the process
    if _exiting:
        exit_hooks.park_daemon_thread(_LONGEST_END)
        raise ClientStateError("the interpreter is exiting; nothing more can be called")
    loop = _loop
    if loop is None or not loop.came_up:
        with _lock:
            if _loop is None:
                new = _LoopThread()
                # A signal handler may have made a call of its own meanwhile: hence a lock that lets it in, and this.
                if _loop is None:
                    _loop = new
                    exit_hooks.at_exit_of_a_worker(_at_exit)
            loop = _loop
            loop.start()
    loop.check_usable()
    return loop


def _discard_loop(loop: _LoopThread) -> None:
    """Take in that a loop has ended; the next call starts another."""
    global _loop, _generation  # noqa: PLW0603  # there is one for the process
    with _lock:
        if _loop is loop:
            _loop = None
            _open.clear()
            _generation += 1


_inherited: _LoopThread | None = None


def _after_fork() -> None:
    global _lock, _loop, _generation, _inherited  # noqa: PLW0603  # there is one for the process
    _lock = threading.RLock()
    inherited, _loop = _loop, None
    if inherited is not None:
        inherited.parked.append(_inherited)
        _inherited = inherited
        inherited.parked.extend(_open.values())
    _open.clear()
    _generation += 1


def _at_exit() -> None:
    global _exiting  # noqa: PLW0603  # there is one for the process
    _exiting = True
    if _loop is not None:
        exit_hooks.wait_despite_interrupts(_loop.stop)


# Registered when this is first imported, and so run after whatever the program registers once it has a client.
exit_hooks.at_exit(_at_exit)
at_fork_in_child(_after_fork)
