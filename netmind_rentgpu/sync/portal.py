"""The way from synchronous code into the event loop and back.

Anyio's `BlockingPortal`, which only this file knows, keeps the loop running; each call enters the loop by
`call_soon_threadsafe`.

One daemon thread with one event loop serves the whole process. It starts at the first call, and `atexit` ends it. The
caller's thread submits a call, waits, and gets the call's result or error object. Meanwhile, three things may happen:

* An interrupt (Ctrl-C, or any error that a signal handler raises) may come. The caller then cancels its task by asyncio's
  own cancellation, so that cleanup may await, and waits for the cleanup. The interrupt may come between any two bytecodes:
  so all locks are written in C and never held across a wait, and each way out of a wait cancels the call.
* The process may fork. The child has neither the thread nor the loop, and must not touch the objects that its parent has
  open, because both share the same sockets and the same epoll. So the child never uses these objects, and starts anew.
* The garbage collector may run in any thread, at any time. So finalizers take no lock and wait for nothing.
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

_LONGEST_CLOSE: Final = 90.0  # seconds, which include the deletion of rentals
_LONGEST_END: Final = 5.0
# The signals that a thread raises by its own fault. They are not blocked, so that faulthandler can report them.
_FAULTS: Final = {getattr(signal, f"SIG{name}", None) for name in ("SEGV", "BUS", "FPE", "ILL", "ABRT")}
# Import it now: otherwise anyio imports it in the loop's thread, and a fork meanwhile leaves its lock locked in the child.
importlib.import_module("anyio._backends._asyncio")


class Closable(Protocol):
    """An object that can be closed, and whose copy has nothing open yet."""

    async def close(self) -> None: ...
    def __copy__(self) -> Any: ...


Value = TypeVar("Value", bound=Closable)


def call(function: Callable[P, Awaitable[R]], /, *arguments: P.args, **keywords: P.kwargs) -> R:
    """Call an asynchronous function in the event loop, and wait for it.

    The function sees the caller's context variables. An error of the function is raised as the same object.

    Raises:
        ClientStateError: this is the loop's own thread, which cannot wait for itself; or the interpreter is exiting.
        ConfigurationError: the event loop cannot be started.
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
        # If two signals come together, the second is raised before the inner `except` has done anything.
        loop.withdraw(submitted, error)
        raise
    if _exiting:
        exit_hooks.park_daemon_thread(_LONGEST_END)
    if submitted.error is None:
        return cast(R, submitted.result)
    try:
        raise submitted.error
    finally:
        del submitted  # break the reference cycle


def iterate(begin: Callable[[], AsyncIterator[R]], unpack: Callable[[R], Iterable[Item]]) -> Generator[Item]:
    """Iterate an asynchronous iterator, with one call for each item.

    Each call is a task of its own, so the iterator must hold no timeout or task group across a `yield`.

    Args:
        begin: a function that creates the iterator, called when the first item is requested. Objects to which it refers
            live as long as the iteration.
        unpack: a function that returns the values to yield for an item.
    """
    generation = _generation
    iterator = begin()
    end = object()
    try:
        while True:
            if generation != _generation:
                raise ClientStateError("cannot continue this iteration: its event loop is gone; start it again")
            item: Any = call(cast("Callable[..., Awaitable[Any]]", anext), iterator, end)
            if item is end:
                return
            yield from unpack(item)
    except GeneratorExit:
        # The iteration was left half way, or collected. asyncio closes the asynchronous generator in its loop.
        if generation != _generation and _inherited is not None:
            # Keep the iterator in a forked child, because its end would close what the parent still uses.
            _inherited.parked.append(iterator)
        raise


class OwnedHandle(Generic[Value]):
    """The owner of the asynchronous object behind synchronous ones.

    The asynchronous object is closed when the last synchronous one is collected, or when the interpreter exits. If its loop
    is gone, as in a forked child, a copy takes its place.
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
        """True if the object was closed."""
        return self._closed

    @property
    def value(self) -> Value:
        """The object, for the current event loop.

        Raises:
            ClientStateError: the object was closed.
        """
        if self._closed:
            raise ClientStateError(f"this {self._what} is closed; make a new one")
        if self._generation != _generation:
            with _lock:
                new, key = copy(self._value), self._key
                # Another thread, or a call by a signal handler, may have been first. These lines must contain no call,
                # because a signal handler could run in it.
                if self._generation != _generation:
                    self._value = _open[key] = new
                    self._generation = _generation
        return self._value

    def close(self) -> None:
        """Close the object. A second call does nothing."""
        value = _open.get(self._key)
        if value is not None and _loop is not None:
            call(value.close)
        self._closed = True
        _open.pop(self._key, None)


def _close_later(key: object) -> None:
    # The loop's thread removes and closes the object, because no interrupt reaches it. At worst, it is closed at exit.
    if _loop is None:
        _open.pop(key, None)
    elif key in _open:
        _loop.post(partial(_close_now, key))


async def _close_now(key: object) -> None:
    if (value := _open.pop(key, None)) is not None:
        await value.close()


class _LoopThread:
    """A daemon thread, and the event loop that it runs."""

    def __init__(self) -> None:
        self.ident: int | None = None
        self._starter = 0
        # A forked child never collects these objects, because the thread's frames hold `self` and are never unwound there.
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
        """Start the thread, unless it is being started already.

        `Thread.start` waits for the thread, and an interrupt of this wait breaks its locks. So a helper thread, which no
        signal reaches, calls `Thread.start`; one call into C starts the helper.
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
            raise ConfigurationError(f"the event loop cannot be started: {self._failure}") from self._failure

    def submit(self, pending: PendingCall) -> None:
        self._calls.add(pending)
        self._soon(pending, pending.start, self._calls)

    def withdraw(self, pending: PendingCall, interrupt: BaseException) -> None:
        """Cancel a call and wait until it has cleaned up. An interrupt of this wait cancels the call again.

        Raises:
            BaseException: the last interrupt, if it is not the first and does not rank below the first.
        """
        while not pending.finished:
            try:
                self._soon(pending, pending.cancel)
                pending.wait()
            except BaseException as another:  # noqa: BLE001  # raised once the call has ended
                if isinstance(interrupt, Exception) or not isinstance(another, Exception):
                    interrupt = another
        self._calls.discard(pending)
        try:
            if interrupt is not sys.exception():
                raise interrupt
        finally:
            del interrupt

    def post(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run a function in the event loop later, without waiting for it."""
        with suppress(RuntimeError):
            self._call_soon(self._begin, function)

    def stop(self) -> None:
        """Close all open objects and end the loop, in a limited time. After an interrupt, the caller may call it again."""
        if self._portal is not None:
            self.post(self._portal.stop)
            if not self._has_closed:
                self._not_closed.acquire(timeout=_LONGEST_CLOSE)
            self._thread.join(_LONGEST_END)

    def _soon(self, pending: PendingCall, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            self._call_soon(callback, *arguments)
        except RuntimeError:
            pending.abandon()

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
        # Return if another helper was first, because an interrupt can make `start` start two.
        if not self._launching.acquire(blocking=False):
            return
        try:
            self._thread.start()
        except Exception as error:  # noqa: BLE001  # the waiting callers raise it
            self._failure = error
            self._finish()

    def _run(self) -> None:
        if threading.get_native_id() == self._starter:
            self._failure = RuntimeError(_NO_THREAD)
            self._finish()
            return
        self.ident = threading.get_ident()
        # Block signals, because the kernel may deliver a signal to any thread, and here it would not end the main thread's
        # wait. Code that starts a subprocess from this thread has to unblock its signals.
        if sys.platform != "win32" and hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
        try:
            anyio.run(self._serve, backend="asyncio", backend_options={"loop_factory": self._factory})
        except BaseException as error:  # noqa: BLE001  # no code above could handle it
            self._failure = error
        finally:
            self._finish()

    def _finish(self) -> None:
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
                # These tasks also close objects that were collected a moment ago.
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
"""The number of the current loop. Objects that belong to an earlier loop cannot be used any more."""
_open: dict[object, Closable] = {}
"""The objects that may be open in the current loop. They are kept here, so that none is collected before it is closed."""


def _running_loop() -> _LoopThread:
    global _loop  # noqa: PLW0603  # one for the whole process
    if _exiting:
        exit_hooks.park_daemon_thread(_LONGEST_END)
        raise ClientStateError("the call was not started: the interpreter is exiting")
    loop = _loop
    if loop is None or not loop.came_up:
        with _lock:
            if _loop is None:
                new = _LoopThread()
                # A signal handler may have made a call meanwhile. So the lock is reentrant, and this test is repeated.
                if _loop is None:
                    _loop = new
                    exit_hooks.at_exit_of_a_worker(_at_exit)
            loop = _loop
            loop.start()
    loop.check_usable()
    return loop


def _discard_loop(loop: _LoopThread) -> None:
    """Drop a loop that has ended, with its open objects; the next call starts another loop."""
    global _loop, _generation  # noqa: PLW0603  # one for the whole process
    with _lock:
        if _loop is loop:
            _loop = None
            _open.clear()
            _generation += 1


_inherited: _LoopThread | None = None


def _after_fork() -> None:
    global _lock, _loop, _generation, _inherited  # noqa: PLW0603  # one for the whole process
    _lock = threading.RLock()
    inherited, _loop = _loop, None
    if inherited is not None:
        inherited.parked.append(_inherited)
        _inherited = inherited
        inherited.parked.extend(_open.values())
    _open.clear()
    _generation += 1


def _at_exit() -> None:
    global _exiting  # noqa: PLW0603  # one for the whole process
    _exiting = True
    if _loop is not None:
        exit_hooks.wait_despite_interrupts(_loop.stop)


# This is registered at the first import, and so runs after the functions that a program with a client registers.
exit_hooks.at_exit(_at_exit)
at_fork_in_child(_after_fork)
