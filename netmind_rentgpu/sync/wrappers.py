"""What a synchronous class has for the methods of an asynchronous one: the same, but for who waits."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from netmind_rentgpu.sync.portal import call, iterate
from netmind_rentgpu.wire.paging import AsyncPager, Identified, Page

__all__ = ["Pager", "sync_handle", "sync_iterator", "sync_method", "sync_pager"]

P = ParamSpec("P")
R = TypeVar("R")
Kind = TypeVar("Kind")
Item = TypeVar("Item", bound=Identified)


def sync_method(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], R]:
    """Make the synchronous method of the same name, arguments, result and errors."""

    def synchronous(self: Any, /, *arguments: P.args, **keywords: P.kwargs) -> R:
        return call(method, self._async, *arguments, **keywords)

    return _copy_signature(synchronous, method)


class Pager(Generic[Item]):
    """A list on the service. Iterate it for every item, or take its `first_page()`, or its `pages()`.

    One page is held at a time. Items that were given once are not given again: lists move while they are walked. A list that
    turns out not to be sorted by id is walked until it was the same twice, since what moves in it can be passed by.
    """

    def __init__(self, begin: Callable[[], AsyncPager[Item]]) -> None:
        begin()  # to check the arguments now and not at the first page
        self._begin = begin

    def __repr__(self) -> str:
        return "<Pager: iterate it for every item, or take its first_page()>"

    def first_page(self) -> Page[Item]:
        """Return the first page, or the one after `marker`."""
        return call(self._begin().first_page)

    def pages(self) -> Iterator[Page[Item]]:
        """Give page after page, each without the items of earlier ones; never an empty one.

        Raises:
            UnexpectedResponseError: a page is not as documented, or, after all that could be reached was given, there may
                be more that cannot be reached.
            RentGPUError: any other of the client's errors.
        """
        return iterate(lambda: self._begin().pages(), lambda page: (page,))

    def __iter__(self) -> Iterator[Item]:
        return iterate(lambda: self._begin().pages(), iter)


def sync_pager(
    method: Callable[Concatenate[Any, P], AsyncPager[Item]],
) -> Callable[Concatenate[Any, P], Pager[Item]]:
    """Make the synchronous method that returns a `Pager`."""

    def synchronous(self: Any, /, *arguments: P.args, **keywords: P.kwargs) -> Pager[Item]:
        return Pager(lambda: method(self._async, *arguments, **keywords))

    returned = inspect.signature(method).return_annotation.replace("AsyncPager", "Pager")
    return _copy_signature(synchronous, method, returned)


def sync_iterator(
    method: Callable[Concatenate[Any, P], AsyncGenerator[R]],
) -> Callable[Concatenate[Any, P], Generator[R]]:
    """Make the synchronous method that gives what an asynchronous generator gives."""

    def synchronous(self: Any, /, *arguments: P.args, **keywords: P.kwargs) -> Generator[R]:
        # Made now and not at the first item, so that the arguments are checked.
        generator = method(self._async, *arguments, **keywords)
        return iterate(lambda: generator, lambda item: (item,))

    returned = inspect.signature(method).return_annotation.replace("AsyncGenerator", "Generator")
    return _copy_signature(synchronous, method, returned)


def sync_handle(
    method: Callable[Concatenate[Any, P], R], kind: Callable[[R, Any], Kind]
) -> Callable[Concatenate[Any, P], Kind]:
    """Make the synchronous method that returns the synchronous pair of what the asynchronous one returns.

    Args:
        kind: makes the pair, of that and of the client that it must not outlive.
    """

    def synchronous(self: Any, /, *arguments: P.args, **keywords: P.kwargs) -> Kind:
        return kind(method(self._async, *arguments, **keywords), self._client)

    returned = inspect.signature(method).return_annotation.removeprefix("Async")
    return _copy_signature(synchronous, method, returned)


def _copy_signature(
    function: Callable[P, R], method: Callable[..., Any], returned: str | None = None
) -> Callable[P, R]:
    """Give a method the name, documentation and signature of the asynchronous one.

    Not by `functools.wraps`: who follows its `__wrapped__` would take the method for a coroutine function.

    Args:
        returned: the annotation of the result, where it is another.
    """
    signature = inspect.signature(method)
    if returned is not None:
        signature = signature.replace(return_annotation=returned)
    function.__name__ = method.__name__
    function.__qualname__ = method.__qualname__.removeprefix("Async")
    function.__doc__ = method.__doc__
    function.__signature__ = signature  # type: ignore[attr-defined]  # what `inspect.signature` looks for
    return function
