"""The calls, pagers and states of the synchronous client, within one process."""

from __future__ import annotations

import contextvars
import copy
import inspect
import logging
import pickle
import threading
from typing import Any

import canaries
import pytest
from served import UNSERVED
from until import until

from netmind_rentgpu import (
    AsyncRentGPU,
    Auth,
    ClientStateError,
    ConfigurationError,
    Container,
    Image,
    ImageType,
    InvalidArgumentError,
    Machine,
    Page,
    Pager,
    PaymentType,
    RentGPU,
)
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.sync import portal


def test_synchronous_client_makes_every_call_of_the_service(gpu: RentGPU, sync_emulator: Emulator, clock: Any) -> None:
    machines = gpu.machines.list(gpu_names=["NVIDIA_GeForce_RTX_4090"])
    assert machines
    assert {type(machine) for machine in machines} == {Machine}
    auth = gpu.auths.create(canaries.PASSWORD)
    assert gpu.auths.get(auth.id) == auth == gpu.auths.ensure(canaries.PASSWORD)
    assert list(gpu.auths.list()) == [auth]
    image = gpu.images.create(name="n", image_name="i", image_tag="t", image_label="l")
    assert gpu.images.ensure(name="n", image_name="i", image_tag="t", image_label="l") == image
    assert isinstance(gpu.images.get(image.id), Image)
    official = gpu.images.list(image_type=ImageType.OFFICIAL, page_size=2)
    assert len(list(official)) == len(list(official)) > 2
    container = gpu.containers.create(
        name="n",
        auth_id=auth.id,
        node_name=machines[0].node_name,
        image_template_id=image.id,
        payment_type=PaymentType.USD,
    )
    assert isinstance(container, Container)
    assert [charge.name for charge in sync_emulator.running] == ["n"]
    clock.advance(60)
    assert gpu.containers.get(container.id).ssh_endpoint is not None
    assert [item.id for item in gpu.containers.list()] == [container.id]
    gpu.containers.stop(container.id)
    gpu.containers.restart(container.id)
    gpu.containers.delete(container.id)
    assert gpu.containers.delete(container.id, missing_ok=True) is None
    assert sync_emulator.running == []
    assert isinstance(gpu.request("GET", "machines", params={"gpu": 1}), list)


def test_result_of_a_synchronous_call_is_not_asynchronous(gpu: RentGPU) -> None:
    results = [
        gpu.machines.list(),
        gpu.images.list(),
        gpu.images.list().pages(),
        iter(gpu.images.list()),
        gpu.images.list().first_page(),
        gpu.auths.create("long-enough"),
        gpu.request("GET", "machines"),
        gpu.profile,
        gpu.close(),
    ]
    for result in results:
        assert not inspect.isawaitable(result)
        assert not hasattr(result, "__aiter__")
        assert not hasattr(result, "__aenter__")


def test_pager_gives_items_pages_and_the_first_page(gpu: RentGPU) -> None:
    pager = gpu.images.list(page_size=2)
    assert isinstance(pager, Pager)
    page = pager.first_page()
    assert isinstance(page, Page)
    assert len(page) == 2
    pages = list(pager.pages())
    assert [image for page in pages for image in page] == list(pager)
    assert page.items == pages[0].items
    assert list(gpu.images.list(marker=page.next_marker)) == list(pager)[2:]
    with pytest.raises(InvalidArgumentError):
        gpu.images.list(page_size=0)  # raised by the call itself, not at the first page
    assert repr(pager) == "<Pager: iterate it for every item, or take its first_page()>"


def test_iteration_left_halfway_can_be_begun_again(gpu: RentGPU) -> None:
    pager = gpu.images.list(page_size=2)
    for _ in range(3):
        next(iter(pager))
        pages = pager.pages()
        next(pages)
        pages.close()  # type: ignore[attr-defined]  # it is annotated as an iterator
    assert len(list(pager)) > 2


def test_call_after_close_is_refused(sync_emulator: Emulator) -> None:
    gpu = RentGPU(sync_emulator.token, base_url=sync_emulator.url)
    pager = gpu.images.list()
    iterator = gpu.images.list(page_size=2).pages()
    next(iterator)
    gpu.close()
    gpu.close()
    for call in (
        gpu.machines.list,
        gpu.images.list,
        lambda: gpu.containers.get(1),
        pager.first_page,
        lambda: next(iterator),
    ):
        with pytest.raises(ClientStateError, match="closed"):
            call()


def test_resource_keeps_its_client_open(sync_emulator: Emulator) -> None:
    assert RentGPU(sync_emulator.token, base_url=sync_emulator.url).machines.list()
    images = RentGPU(sync_emulator.token, base_url=sync_emulator.url).images.list()
    assert list(images)


def test_client_shows_its_url_in_its_repr_and_cannot_be_pickled_or_copied() -> None:
    gpu = RentGPU(canaries.TOKEN, base_url=UNSERVED)
    assert repr(gpu) == "RentGPU(base_url='http://127.0.0.1:1')"
    for copy_client in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            copy_client(gpu)  # type: ignore[operator]  # mypy joins the functions to object
    with pytest.raises(ConfigurationError):
        RentGPU()
    with pytest.raises(TypeError, match="session"):
        RentGPU("token", session=None)  # type: ignore[call-arg]  # the mistake under test


async def test_copy_of_an_async_client_has_connections_of_its_own(emulator: Emulator) -> None:
    async with AsyncRentGPU(emulator.token, base_url=emulator.url, timeout=7) as gpu:
        copied = copy.copy(gpu)
        assert copied._parts.settings == gpu._parts.settings
        await copied.machines.list()
        await copied.close()
        assert await gpu.machines.list()


async def test_synchronous_client_works_inside_a_running_event_loop() -> None:
    with Emulator(seed=7) as emulator, RentGPU(emulator.token, base_url=emulator.url) as gpu:
        assert gpu.machines.list()
        assert list(gpu.images.list())


class CallingHandler(logging.Handler):
    """A log handler that calls the client in the loop's thread, where the client's own log lines are written."""

    def __init__(self, calls: list[Any]) -> None:
        super().__init__(logging.DEBUG)
        self.calls = calls
        self.errors: list[Exception] = []
        self.tastes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if threading.current_thread() is threading.main_thread():
            return
        self.tastes.append(TASTE.get())
        for call in self.calls:
            try:
                call()
            except Exception as error:  # noqa: BLE001  # the test looks at each error
                self.errors.append(error)


TASTE = contextvars.ContextVar("taste", default="none")


def test_call_from_the_loop_thread_is_refused_and_sees_the_context_of_the_caller(gpu: RentGPU) -> None:
    iterator = iter(gpu.images.list())
    calls = [lambda: gpu.containers.get(1), gpu.images.list().first_page, lambda: next(iterator), gpu.close]
    handler = CallingHandler(calls)
    logger = logging.getLogger("netmind_rentgpu")
    logger.addHandler(handler)
    token = TASTE.set("sweet")
    try:
        gpu.machines.list()
    finally:
        TASTE.reset(token)
        logger.removeHandler(handler)
    assert [type(error) for error in handler.errors] == [ClientStateError] * 4
    assert all("AsyncRentGPU" in str(error) for error in handler.errors)
    assert handler.tastes == ["sweet"]
    assert gpu.machines.list()


def test_client_dropped_in_the_loop_thread_is_closed(sync_emulator: Emulator) -> None:
    box = [RentGPU(sync_emulator.token, base_url=sync_emulator.url)]
    box[0].machines.list()
    inside = box[0]._async  # holds no reference to the synchronous client

    async def drop() -> None:
        box.clear()

    portal.call(drop)

    portal.call(until, lambda: inside._caller._transport._use.is_closed)  # type: ignore[attr-defined]  # no public name tells


def test_repr_of_synchronous_objects_hides_secrets(gpu: RentGPU) -> None:
    auth = gpu.auths.create(canaries.PASSWORD)
    assert isinstance(auth, Auth)
    for shown in (gpu, gpu.auths, gpu.auths.list(), auth, gpu.auths.list().first_page()):
        assert canaries.PASSWORD not in repr(shown)
        assert canaries.TOKEN not in repr(shown)
