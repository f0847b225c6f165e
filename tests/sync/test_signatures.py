"""`RentGPU` beside `AsyncRentGPU`: the same names, arguments, results and documentation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

import netmind_rentgpu
from netmind_rentgpu import (
    AsyncFleet,
    AsyncForward,
    AsyncJob,
    AsyncPager,
    AsyncRental,
    AsyncRentGPU,
    AsyncShell,
    Container,
    Fleet,
    Forward,
    Job,
    Pager,
    Rental,
    RentGPU,
    Shell,
)
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.rentals.rentals_api import AsyncRentals
from netmind_rentgpu.resources.auths import AsyncAuths
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.resources.images import AsyncImages
from netmind_rentgpu.resources.machines import AsyncMachines
from netmind_rentgpu.sync import client
from netmind_rentgpu.sync.wrappers import synchronous_words

PAIRS: list[tuple[type[Any], type[Any]]] = [
    (AsyncRentGPU, RentGPU),
    (AsyncMachines, client.Machines),
    (AsyncAuths, client.Auths),
    (AsyncImages, client.Images),
    (AsyncContainers, client.Containers),
    (AsyncPager, Pager),
    (AsyncShell, Shell),
    (AsyncForward, Forward),
    (AsyncJob, Job),
    (AsyncRental, Rental),
    (AsyncFleet, Fleet),
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


# The methods whose function is a coroutine function on the one side, and a plain one on the other.
TAKES_A_FUNCTION = {"map"}
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
    if name in TAKES_A_FUNCTION:
        expected = [
            parameter.replace(annotation="Callable[[Rental, Item], Result]")
            if parameter.name == "function"
            else parameter
            for parameter in expected
        ]
    assert list(sync_signature.parameters.values()) == expected
    returned = async_signature.return_annotation.replace("AsyncPager", "Pager")
    for name_of_pair in ("Iterator", "Generator", "Shell", "Rental", "Forward", "Job", "Fleet"):
        returned = returned.replace(f"Async{name_of_pair}", name_of_pair)
    assert sync_signature.return_annotation == returned
    assert getattr(sync_class, name).__name__ == name
    assert getattr(sync_class, name).__qualname__ == f"{sync_class.__name__}.{name}"
    documented = getattr(sync_class, name).__doc__
    if name in TAKES_A_FUNCTION:
        assert documented.splitlines()[0] == synchronous_words(getattr(async_class, name).__doc__).splitlines()[0]
        return
    if name not in ("__init__", "close", "open") or (async_class, name) == (AsyncFleet, "open"):
        assert documented == synchronous_words(getattr(async_class, name).__doc__)
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
            "open": [
                "When its time or its budget is up, the rental is deleted.",
                "The next use of it raises `RentalExpiredError` or `BudgetExceededError`.",
                "A rental that is not closed is deleted when it is collected, its client is closed or the program exits.",
            ],
        }[name]
    )


@pytest.mark.parametrize("sync_class", [sync_class for _, sync_class in PAIRS])
def test_documentation_of_a_synchronous_class_speaks_of_what_its_reader_has(sync_class: type[Any]) -> None:
    texts = [sync_class.__doc__ or ""]
    texts += [
        getattr(inspect.getattr_static(sync_class, name, None), "__doc__", None) or "" for name in public(sync_class)
    ]
    # The class names its pair once, for a reader who looks for the other one.
    text = "\n".join(texts).replace("results and errors of `AsyncRentGPU`", "")
    assert re.findall(r"(?:async|await|coroutine|Async[A-Z]\w*|cancelled)\b.*", text) == []


def test_words_of_asyncio_are_replaced_wherever_they_stand() -> None:
    text = "Use `async with x` or async for y in `await z`; an AsyncRental that is cancelled, asyncssh and awaited."
    assert synchronous_words(text) == (
        "Use `with x` or for y in `z`; a Rental that is interrupted, asyncssh and awaited."
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda gpu: gpu.machines.list(gpus=1), r"Machines\.list\(\) got an unexpected keyword argument 'gpus'"),
        (lambda gpu: gpu.machines.list("US"), r"Machines\.list\(\) too many positional arguments"),
        (lambda gpu: gpu.containers.get(), r"Containers\.get\(\) missing a required argument: 'container_id'"),
        (lambda gpu: gpu.containers.list(limit=2), r"Containers\.list\(\) got an unexpected keyword argument 'limit'"),
        (
            lambda gpu: gpu.containers.watch(until=1),
            r"Containers\.watch\(\) got an unexpected keyword argument 'until'",
        ),
        (
            lambda gpu: gpu.containers.create(),
            r"Containers\.create\(\) missing a required (keyword-only )?argument: 'name'",
        ),
        (lambda gpu: gpu.rent(image=1, max_cost=1), r"RentGPU\.rent\(\) got an unexpected keyword argument 'max_cost'"),
        (lambda gpu: gpu.ssh(), r"RentGPU\.ssh\(\) missing a required argument: 'container'"),
    ],
)
def test_error_of_wrong_arguments_names_the_synchronous_method(call: Callable[[RentGPU], object], message: str) -> None:
    with RentGPU("token", base_url="http://127.0.0.1:9") as gpu, pytest.raises(TypeError, match=f"^{message}") as wrong:
        call(gpu)
    assert "Async" not in str(wrong.value)


def test_type_error_of_a_callback_is_raised_as_it_is() -> None:
    def condition(container: Container) -> bool:
        raise TypeError("of the callback")

    with Emulator(seed=7) as emulator, RentGPU(emulator.token, base_url=emulator.url) as gpu:
        machine, *_ = gpu.machines.list()
        auth = gpu.auths.create("a-long-password")
        made = gpu.containers.create(
            name="mine", auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type="USD"
        )
        with pytest.raises(TypeError, match=r"^of the callback$"):
            gpu.containers.wait(made.id, until=condition)
        gpu.containers.delete(made.id)


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
