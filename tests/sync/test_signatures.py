"""`RentGPU` beside `AsyncRentGPU`: the same names, arguments, results and documentation."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import netmind_rentgpu
from netmind_rentgpu import AsyncPager, AsyncRental, AsyncRentGPU, AsyncShell, Pager, Rental, RentGPU, Shell
from netmind_rentgpu.rentals.rentals_api import AsyncRentals
from netmind_rentgpu.resources.auths import AsyncAuths
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.resources.images import AsyncImages
from netmind_rentgpu.resources.machines import AsyncMachines
from netmind_rentgpu.sync import client

PAIRS: list[tuple[type[Any], type[Any]]] = [
    (AsyncRentGPU, RentGPU),
    (AsyncMachines, client.Machines),
    (AsyncAuths, client.Auths),
    (AsyncImages, client.Images),
    (AsyncContainers, client.Containers),
    (AsyncPager, Pager),
    (AsyncShell, Shell),
    (AsyncRental, Rental),
    (AsyncRentals, client.Rentals),
]
# The arguments that the synchronous client lacks, each with the cause.
MISSING_ARGUMENTS = {"session": "a session belongs to the event loop that created it"}


def public(kind: type[Any]) -> set[str]:
    """Return the public names of a class."""
    return {name for name in [*dir(kind), *getattr(kind, "__annotations__", {})] if not name.startswith("_")}


def test_every_async_class_has_a_synchronous_pair_with_the_same_names() -> None:
    exported = {name for name in netmind_rentgpu.__all__ if name.startswith("Async")}
    assert exported <= {async_class.__name__ for async_class, _ in PAIRS}
    for async_class, sync_class in PAIRS:
        assert public(async_class) == public(sync_class)
        assert async_class.__name__ == f"Async{sync_class.__name__}"
    assert public(AsyncRentGPU) >= {"machines", "auths", "images", "containers", "request", "close", "profile"}


METHODS = [
    (async_class, sync_class, name)
    for async_class, sync_class in PAIRS
    for name in sorted(public(async_class))
    if callable(inspect.getattr_static(async_class, name, None))
]


@pytest.mark.parametrize(("async_class", "sync_class", "name"), [(*pair, "__init__") for pair in PAIRS[:1]] + METHODS)
def test_synchronous_method_has_the_signature_and_documentation_of_its_async_pair(
    async_class: type[Any], sync_class: type[Any], name: str
) -> None:
    async_signature = inspect.signature(getattr(async_class, name))
    sync_signature = inspect.signature(getattr(sync_class, name))
    expected = [
        parameter for parameter in async_signature.parameters.values() if parameter.name not in MISSING_ARGUMENTS
    ]
    assert list(sync_signature.parameters.values()) == expected
    returned = async_signature.return_annotation.replace("AsyncPager", "Pager")
    for name_of_pair in ("Iterator", "Generator", "Shell", "Rental"):
        returned = returned.replace(f"Async{name_of_pair}", name_of_pair)
    assert sync_signature.return_annotation == returned
    assert getattr(sync_class, name).__name__ == name
    assert getattr(sync_class, name).__qualname__ == f"{sync_class.__name__}.{name}"
    documented = getattr(sync_class, name).__doc__
    if name not in ("__init__", "close"):
        assert documented == getattr(async_class, name).__doc__
        return
    # Each paragraph on an argument is the same; these are the only lines that differ.
    lines = {line.strip() for line in getattr(async_class, name).__doc__.splitlines()}
    only_synchronous = [line.strip() for line in documented.splitlines() if line.strip() not in lines]
    assert (
        only_synchronous
        == {
            "__init__": [
                f"`AsyncRentGPU`'s argument `session` is missing here, because {MISSING_ARGUMENTS['session']}.",
                "ConfigurationError: no token, or a URL, proxy or profile that cannot be used.",
            ],
            "close": ["ClientStateError: this is the thread of the client's own event loop."],
        }[name]
    )


@pytest.mark.parametrize(("async_class", "sync_class", "name"), METHODS)
def test_synchronous_method_is_no_coroutine_function(async_class: type[Any], sync_class: type[Any], name: str) -> None:
    method = getattr(sync_class, name)
    assert not inspect.iscoroutinefunction(method)
    assert not inspect.isasyncgenfunction(method)
    assert not hasattr(method, "__wrapped__")


def test_synchronous_class_has_no_method_of_an_async_protocol() -> None:
    for _, sync_class in PAIRS:
        for name in ("__await__", "__aiter__", "__anext__", "__aenter__", "__aexit__"):
            assert not hasattr(sync_class, name)
