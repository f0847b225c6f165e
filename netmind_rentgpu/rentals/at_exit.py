"""Deletion of the rentals that are still open when the interpreter exits, even if their event loop has ended.

The event loop of the synchronous client still runs then, and deletes its own rentals.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cache, partial

from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.concurrency.event_loops import loop_factory, our_own
from netmind_rentgpu.concurrency.exit_hooks import (
    at_exit,
    at_exit_of_a_worker,
    report_given_up,
    report_problem,
    wait_despite_interrupts,
)
from netmind_rentgpu.rentals.context import RentalContext, contexts_of_ended_loops, contexts_of_running_loops, disown
from netmind_rentgpu.rentals.ledger.process_identity import this_process
from netmind_rentgpu.rentals.lifecycle.reaper import reap

__all__ = ["release_at_exit", "release_elsewhere"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_LONGEST_RELEASE = 90.0


def release_at_exit() -> None:
    """Register the deletion at exit for this process."""
    _register(os.getpid())


@cache
def _register(process_id: int) -> None:
    del process_id  # only the cache's key, because a forked child registers for itself
    at_exit(_release)
    at_exit_of_a_worker(_release)


def _release() -> None:
    deadline = time.monotonic() + _LONGEST_RELEASE
    # These are the loops of daemon threads, which the interpreter is about to end.
    ending = [
        asyncio.run_coroutine_threadsafe(context.release_all(), context.loop)
        for context in contexts_of_running_loops()
        if context.loop is not None and context.loop not in our_own
    ]
    for release in ending:
        _reporting_errors(partial(wait_despite_interrupts, partial(_wait_until, release, deadline)))
    release_elsewhere(contexts_of_ended_loops())


def release_elsewhere(contexts: Sequence[RentalContext]) -> None:
    """Delete the rentals of contexts whose event loop does not run, in an event loop of their own."""
    if contexts:
        disown(contexts)
        _reporting_errors(partial(wait_despite_interrupts, partial(_run, contexts)))


def _wait_until(release: Future[None], deadline: float) -> None:
    release.result(max(0.0, deadline - time.monotonic()))


def _reporting_errors(act: Callable[[], object]) -> None:
    try:
        act()
    except Exception as error:  # noqa: BLE001  # no caller is left to raise it to
        report_problem(
            f"what is still rented could not be deleted; it is on record: {str(error) or type(error).__name__}"
        )


def _run(contexts: Sequence[RentalContext]) -> None:
    began, released = threading.Event(), threading.Event()
    try:
        # Not asyncio's own loop, because its threads cannot be started any longer.
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_release_all(contexts, began, released))
    except KeyboardInterrupt:
        if not began.is_set():
            raise
        # The first interrupt is raised only at the end of the deletions.
        if not released.is_set():
            report_given_up()


async def _release_all(contexts: Sequence[RentalContext], began: threading.Event, released: threading.Event) -> None:
    began.set()
    releasing = asyncio.gather(*(_release_one(context) for context in contexts))
    try:
        await wait_shielded(releasing)
    finally:
        if releasing.done():
            released.set()


async def _release_one(context: RentalContext) -> None:
    try:
        async with asyncio.timeout(_LONGEST_RELEASE), context.elsewhere() as other:
            for name in tuple(context.attaching):
                await other.ledger.return_detached(name, this_process())
            report = await reap(other, names=frozenset(context.names))
    except Exception as error:  # noqa: BLE001  # the others are to be released all the same
        report_problem(
            f"what is still rented could not be deleted; it is on record: {str(error) or type(error).__name__}"
        )
        return
    if report.deleted:
        logger.warning(
            "the event loop had ended with %s still rented in it; it was deleted now", ", ".join(report.deleted)
        )
    for name, problem in report.failed:
        report_problem(
            f"rental {name} could not be deleted, and costs until it is; it is on record, for reap: {problem}"
        )
    for record in report.doubtful:
        report_problem(f"rental {record.name} may still come to exist on {record.node_name}; it is on record, for reap")
