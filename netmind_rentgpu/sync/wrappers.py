"""Wrappers that make asynchronous methods blocking."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from netmind_rentgpu.sync.portal import call, iterate
from netmind_rentgpu.wire.paging import AsyncPager, Identified, Page

__all__ = [
    "Pager",
    "sync_handle",
    "sync_iterator",
    "sync_method",
    "sync_opener",
    "sync_pager",
    "synchronous_words",
    "with_own_names",
]

P = ParamSpec("P")
R = TypeVar("R")
Kind = TypeVar("Kind")
Item = TypeVar("Item", bound=Identified)


def sync_method(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
    *,
    check: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Callable[Concatenate[Any, P], R]:
    """Make the blocking method with the same name, arguments, result and errors.

    Args:
        check: raises an error for keyword arguments that only the asynchronous method can use.
    """

    def synchronous(self: Any, /, *arguments: P.args, **keywords: P.kwargs) -> R:
        check(keywords)
        try:
            return call(method, self._async, *arguments, **keywords)
        except TypeError:
            _check_arguments(synchronous, arguments, keywords)
            raise

    return _copy_signature(synchronous, method)


class Pager(Generic[Item]):
    """A list on the service. Iterate it for every item, or call `first_page()` or `pages()`.

    The pager holds one page at a time. It yields no item twice, although items may move in the list meanwhile. If the list
    turns out not to be sorted by id, the pager walks over it until two walks agree, five times at most, because one walk may
    miss an item that moves.
    """

    def __init__(self, begin: Callable[[], AsyncPager[Item]]) -> None:
        begin()  # check the arguments now, not at the first page
        self._begin = begin

    def __repr__(self) -> str:
        return "<Pager: iterate it for every item, or take its first_page()>"

    def first_page(self) -> Page[Item]:
        """Return the first page, or the one after `marker`; of several lists, the first page that is not empty."""
        return call(self._begin().first_page)

    def pages(self) -> Iterator[Page[Item]]:
        """Yield page after page, each without the items of earlier pages, and no empty page.

        Raises:
            UnexpectedResponseError: a page is not as documented; or, after all items that could be reached, the list may
                hold more that cannot be reached.
            RentGPUError: any other of the client's errors.
        """
        return iterate(lambda: self._begin().pages(), lambda page: (page,))

    def __iter__(self) -> Iterator[Item]:
        return iterate(lambda: self._begin().pages(), iter)


def sync_pager(
    method: Callable[Concatenate[Any, P], AsyncPager[Item]],
) -> Callable[Concatenate[Any, P], Pager[Item]]:
    """Make the blocking method that returns a `Pager`."""

    def synchronous(self: Any, /, *arguments: P.args, **keywords: P.kwargs) -> Pager[Item]:
        try:
            return Pager(lambda: method(self._async, *arguments, **keywords))
        except TypeError:
            _check_arguments(synchronous, arguments, keywords)
            raise

    returned = inspect.signature(method).return_annotation.replace("AsyncPager", "Pager")
    return _copy_signature(synchronous, method, returned)


def sync_iterator(
    method: Callable[Concatenate[Any, P], AsyncGenerator[R]],
) -> Callable[Concatenate[Any, P], Generator[R]]:
    """Make the blocking method that yields the items of an asynchronous generator."""

    def synchronous(self: Any, /, *arguments: P.args, **keywords: P.kwargs) -> Generator[R]:
        # Create the generator now, and not at the first item, to check the arguments.
        try:
            generator = method(self._async, *arguments, **keywords)
        except TypeError:
            _check_arguments(synchronous, arguments, keywords)
            raise
        return iterate(lambda: generator, lambda item: (item,))

    returned = inspect.signature(method).return_annotation.replace("AsyncGenerator", "Generator")
    return _copy_signature(synchronous, method, returned)


def sync_handle(
    method: Callable[Concatenate[Any, P], R], kind: Callable[[R, Any], Kind]
) -> Callable[Concatenate[Any, P], Kind]:
    """Make the method that returns the synchronous form of the asynchronous method's result.

    Args:
        kind: creates the synchronous form, from the asynchronous result and from the client that it needs.
    """

    def synchronous(self: Any, /, *arguments: P.args, **keywords: P.kwargs) -> Kind:
        try:
            return kind(method(self._async, *arguments, **keywords), self._client)
        except TypeError:
            _check_arguments(synchronous, arguments, keywords)
            raise

    returned = inspect.signature(method).return_annotation.removeprefix("Async")
    return _copy_signature(synchronous, method, returned)


def sync_opener(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], kind: Callable[[R, Any], Kind]
) -> Callable[Concatenate[Any, P], Kind]:
    """Make the blocking method that returns the synchronous form of what the asynchronous method opens.

    Args:
        kind: creates the synchronous form, from the asynchronous result and from the object whose method it is.
    """

    def synchronous(self: Any, /, *arguments: P.args, **keywords: P.kwargs) -> Kind:
        try:
            return kind(call(method, self._async, *arguments, **keywords), self)
        except TypeError:
            _check_arguments(synchronous, arguments, keywords)
            raise

    returned = re.sub(r"\bAsync(?=[A-Z])", "", inspect.signature(method).return_annotation)
    return _copy_signature(synchronous, method, returned)


def with_own_names(kind: type[Kind]) -> type[Kind]:
    """Name the methods of a class after it, also those whose asynchronous pairs are methods of a base class."""
    for name, member in vars(kind).items():
        if inspect.isfunction(member):
            member.__qualname__ = f"{kind.__qualname__}.{name}"
    return kind


_WORDS = (
    (r"\basync (with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\b(a)n Async(?=[A-Z])", r"\1 "),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\b(is|or) cancelled\b", r"\1 interrupted"),
)


def synchronous_words(text: str) -> str:
    """Return the documentation of an asynchronous method in the words of a synchronous program."""
    for pattern, replacement in _WORDS:
        text = re.sub(pattern, replacement, text)
    return text


def _check_arguments(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Raise a TypeError that names the method as its caller knows it, if the arguments do not suit it."""
    try:
        inspect.signature(function).bind(None, *arguments, **keywords)
    except TypeError as problem:
        raise TypeError(f"{function.__qualname__}() {problem}") from None


def _copy_signature(
    function: Callable[P, R], method: Callable[..., Any], returned: str | None = None
) -> Callable[P, R]:
    """Copy the name, signature and documentation of an asynchronous method, in a synchronous program's words.

    `functools.wraps` is not used, because code that follows its `__wrapped__` would find a coroutine function there.

    Args:
        returned: the annotation of the result; None for that of the asynchronous method.
    """
    signature = inspect.signature(method)
    if returned is not None:
        signature = signature.replace(return_annotation=returned)
    function.__name__ = method.__name__
    function.__qualname__ = method.__qualname__.removeprefix("Async")
    function.__doc__ = synchronous_words(method.__doc__ or "")
    function.__signature__ = signature  # type: ignore[attr-defined]  # `inspect.signature` reads it
    return function
