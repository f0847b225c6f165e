"""`RentGPU` beside `AsyncRentGPU`: the same names, arguments, results and errors; and how it behaves in one process."""

import contextvars
import copy
import inspect
import logging
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import canaries
import pytest

import netmind_rentgpu
from netmind_rentgpu import (
    APIConnectionError,
    AsyncPager,
    AsyncRental,
    AsyncRentGPU,
    AsyncShell,
    Auth,
    ClientStateError,
    ConfigurationError,
    Container,
    ContainerGoneError,
    Image,
    ImageType,
    InvalidArgumentError,
    InvalidRequestError,
    Machine,
    NotFoundError,
    Page,
    Pager,
    PaymentType,
    Rental,
    RentGPU,
    Retries,
    Shell,
    WaitProgress,
    WaitTimeoutError,
    bridge,
    bridged,
    conditions,
    crossing,
    sync,
)
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.rentals.rentals import AsyncRentals
from netmind_rentgpu.resources.auths import AsyncAuths
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.resources.images import AsyncImages
from netmind_rentgpu.resources.machines import AsyncMachines

PAIRS: list[tuple[type[Any], type[Any]]] = [
    (AsyncRentGPU, RentGPU),
    (AsyncMachines, sync.Machines),
    (AsyncAuths, sync.Auths),
    (AsyncImages, sync.Images),
    (AsyncContainers, sync.Containers),
    (AsyncPager, Pager),
    (AsyncShell, Shell),
    (AsyncRental, Rental),
    (AsyncRentals, sync.Rentals),
]
# What the synchronous side has not, and why.
MISSING_ARGUMENTS = {"session": "a session belongs to the event loop that it was made in"}


def public(kind: type[Any]) -> set[str]:
    return {name for name in [*dir(kind), *getattr(kind, "__annotations__", {})] if not name.startswith("_")}


@pytest.fixture
def served(clock: Any) -> Iterator[Emulator]:
    with Emulator(seed=7, boot_seconds=10, token=canaries.TOKEN, clock=clock) as emulator:
        yield emulator


@pytest.fixture
def gpu(served: Emulator) -> Iterator[RentGPU]:
    with RentGPU(served.token, base_url=served.url, retries=Retries(base_delay=0, max_delay=0)) as gpu:
        yield gpu


# Parity


def test_every_asynchronous_name_has_its_pair() -> None:
    exported = {name for name in netmind_rentgpu.__all__ if name.startswith("Async")}
    assert exported <= {one.__name__ for one, _ in PAIRS}
    for one, other in PAIRS:
        assert public(one) == public(other)
        assert one.__name__ == f"Async{other.__name__}"
    assert public(AsyncRentGPU) >= {"machines", "auths", "images", "containers", "request", "close", "profile"}


METHODS = [
    (one, other, name)
    for one, other in PAIRS
    for name in sorted(public(one))
    if callable(inspect.getattr_static(one, name, None))
]


@pytest.mark.parametrize(("one", "other", "name"), [(*pair, "__init__") for pair in PAIRS[:1]] + METHODS)
def test_signatures_and_documentation_are_the_same(one: type[Any], other: type[Any], name: str) -> None:
    theirs, ours = inspect.signature(getattr(one, name)), inspect.signature(getattr(other, name))
    expected = [parameter for parameter in theirs.parameters.values() if parameter.name not in MISSING_ARGUMENTS]
    assert list(ours.parameters.values()) == expected
    returned = theirs.return_annotation.replace("AsyncPager", "Pager")
    for name_of_pair in ("Iterator", "Generator", "Shell", "Rental"):
        returned = returned.replace(f"Async{name_of_pair}", name_of_pair)
    assert ours.return_annotation == returned
    assert getattr(other, name).__name__ == name
    assert getattr(other, name).__qualname__ == f"{other.__name__}.{name}"
    documented = getattr(other, name).__doc__
    if name not in ("__init__", "close"):
        assert documented == getattr(one, name).__doc__
        return
    # Each paragraph on an argument is the same; what differs is said once, in the open.
    lines = {line.strip() for line in getattr(one, name).__doc__.splitlines()}
    extra = [line.strip() for line in documented.splitlines() if line.strip() not in lines]
    assert (
        extra
        == {
            "__init__": [
                f"Of `AsyncRentGPU`'s arguments, `session` is missing: {MISSING_ARGUMENTS['session']}.",
                "ConfigurationError: no token, or a URL, proxy or profile that cannot be used.",
            ],
            "close": ["ClientStateError: this is the thread of the client's own event loop."],
        }[name]
    )


@pytest.mark.parametrize(("one", "other", "name"), METHODS)
def test_nothing_synchronous_is_a_coroutine_function(one: type[Any], other: type[Any], name: str) -> None:
    method = getattr(other, name)
    assert not inspect.iscoroutinefunction(method)
    assert not inspect.isasyncgenfunction(method)
    assert not hasattr(method, "__wrapped__")


def test_no_class_can_be_used_asynchronously() -> None:
    for _, other in PAIRS:
        for name in ("__await__", "__aiter__", "__anext__", "__aenter__", "__aexit__"):
            assert not hasattr(other, name)


# The thirteen calls


def test_the_whole_service(gpu: RentGPU, served: Emulator, clock: Any) -> None:
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
    assert [charge.name for charge in served.running] == ["n"]
    clock.advance(60)
    assert gpu.containers.get(container.id).ssh_endpoint is not None
    assert [item.id for item in gpu.containers.list()] == [container.id]
    gpu.containers.stop(container.id)
    gpu.containers.restart(container.id)
    gpu.containers.delete(container.id)
    assert gpu.containers.delete(container.id, missing_ok=True) is None
    assert served.running == []
    assert isinstance(gpu.request("GET", "machines", params={"gpu": 1}), list)


def test_no_result_is_asynchronous(gpu: RentGPU) -> None:
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


def test_a_pager_gives_items_pages_and_the_first_page(gpu: RentGPU) -> None:
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
        gpu.images.list(page_size=0)  # now, and not at the first page
    assert repr(pager) == "<Pager: iterate it for every item, or take its first_page()>"


def test_an_iteration_that_is_left_can_be_begun_again(gpu: RentGPU) -> None:
    pager = gpu.images.list(page_size=2)
    for _ in range(3):
        next(iter(pager))
        pages = pager.pages()
        next(pages)
        pages.close()  # type: ignore[attr-defined]
    assert len(list(pager)) > 2


# Errors


def test_errors_are_the_asynchronous_ones(gpu: RentGPU) -> None:
    with pytest.raises(NotFoundError) as caught:
        gpu.containers.get(999)
    assert (caught.value.status, caught.value.method) == (404, "GET")
    assert caught.value.path.endswith("/containers/999")
    with pytest.raises(InvalidRequestError) as refused:
        gpu.request("POST", "auths/", json={})
    assert refused.value.fields
    assert type(pickle.loads(pickle.dumps(caught.value))) is NotFoundError


def _ours(error: BaseException) -> list[str]:
    files = (bridge.__file__, bridged.__file__, crossing.__file__, sync.__file__)
    return [frame.name for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]


@pytest.mark.parametrize("what", ["call", "create", "page", "item", "pages", "request"])
def test_at_most_two_frames_are_added_to_a_traceback(what: str) -> None:
    with RentGPU("token", base_url="http://127.0.0.1:1", retries=0) as gpu:
        call = {
            "call": lambda: gpu.containers.get(1),
            "create": lambda: gpu.auths.create("long-enough"),
            "page": lambda: gpu.images.list().first_page(),
            "item": lambda: next(iter(gpu.images.list())),
            "pages": lambda: next(gpu.images.list().pages()),
            "request": lambda: gpu.request("GET", "machines"),
        }[what]
        for _ in range(2):
            with pytest.raises(APIConnectionError) as caught:
                call()
            assert 1 <= len(_ours(caught.value)) <= 2
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__context__ is None


def test_it_is_the_very_same_error_and_nothing_holds_it() -> None:
    error = ZeroDivisionError("of the call")
    error.__cause__ = cause = KeyError("why")

    async def fails() -> None:
        raise error

    with pytest.raises(ZeroDivisionError) as caught:
        bridge.call(fails)
    assert caught.value is error
    assert caught.value.__cause__ is cause
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    assert [frame.f_code.co_name for frame in frames][-2:] == ["call", "fails"]
    assert not any(error in frame.f_locals.values() for frame in frames if frame.f_code.co_name == "call")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_comes_out_and_leaves_the_loop_running(kind: type[BaseException]) -> None:
    async def fails() -> None:
        raise kind

    with pytest.raises(kind):
        bridge.call(fails)

    async def works() -> int:
        return 1

    assert bridge.call(works) == 1


def test_wrong_arguments_are_the_callers_error(gpu: RentGPU) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        gpu.containers.get(1, nonsense=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing"):
        gpu.containers.get()  # type: ignore[call-arg]


# State


def test_after_close_every_call_is_refused(served: Emulator) -> None:
    gpu = RentGPU(served.token, base_url=served.url)
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


def test_the_resources_keep_their_client_open(served: Emulator) -> None:
    assert RentGPU(served.token, base_url=served.url).machines.list()
    images = RentGPU(served.token, base_url=served.url).images.list()
    assert list(images)


def test_a_client_says_what_it_is_and_cannot_be_pickled() -> None:
    gpu = RentGPU(canaries.TOKEN, base_url="http://127.0.0.1:1")
    assert repr(gpu) == "RentGPU(base_url='http://127.0.0.1:1')"
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            copied(gpu)  # type: ignore[operator]
    with pytest.raises(ConfigurationError):
        RentGPU()
    with pytest.raises(TypeError, match="session"):
        RentGPU("token", session=None)  # type: ignore[call-arg]


async def test_a_copy_of_an_asynchronous_client_has_connections_of_its_own(emulator: Emulator) -> None:
    async with AsyncRentGPU(emulator.token, base_url=emulator.url, timeout=7) as gpu:
        other = copy.copy(gpu)
        assert other._settings == gpu._settings
        await other.machines.list()
        await other.close()
        assert await gpu.machines.list()


# Where it is called


async def test_it_works_inside_a_running_loop() -> None:
    with Emulator(seed=7) as emulator, RentGPU(emulator.token, base_url=emulator.url) as gpu:
        assert gpu.machines.list()
        assert list(gpu.images.list())


class Reacting(logging.Handler):
    """Calls the client where its own log lines are written: in the loop's thread."""

    def __init__(self, calls: list[Any]) -> None:
        super().__init__(logging.DEBUG)
        self.calls = calls
        self.errors: list[Exception] = []
        self.seen: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        if threading.current_thread() is threading.main_thread():
            return
        self.seen.append(TASTE.get())
        for call in self.calls:
            try:
                call()
            except Exception as error:  # noqa: BLE001
                self.errors.append(error)


TASTE = contextvars.ContextVar("taste", default="none")


def test_from_the_loops_own_thread_it_says_what_to_do_and_sees_the_callers_context(gpu: RentGPU) -> None:
    iterator = iter(gpu.images.list())
    calls = [lambda: gpu.containers.get(1), gpu.images.list().first_page, lambda: next(iterator), gpu.close]
    handler = Reacting(calls)
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
    assert handler.seen == ["sweet"]
    assert gpu.machines.list()


def test_a_client_that_is_dropped_in_the_loops_own_thread_is_closed(served: Emulator) -> None:
    box = [RentGPU(served.token, base_url=served.url)]
    box[0].machines.list()
    inside = box[0]._async

    async def drop() -> None:
        box.clear()

    bridge.call(drop)

    async def closed() -> None:
        while not inside._caller._transport._closed:  # type: ignore[attr-defined]
            await bridge.asyncio.sleep(0)

    bridge.call(bridge.asyncio.wait_for, closed(), 10)


def test_secrets_stay_hidden(gpu: RentGPU) -> None:
    auth = gpu.auths.create(canaries.PASSWORD)
    assert isinstance(auth, Auth)
    for thing in (gpu, gpu.auths, gpu.auths.list(), auth, gpu.auths.list().first_page()):
        assert canaries.PASSWORD not in repr(thing)
        assert canaries.TOKEN not in repr(thing)


# Waiting


def rented(gpu: RentGPU, name: str = "mine") -> Container:
    auth = gpu.auths.ensure(canaries.PASSWORD)
    machine = max(gpu.machines.list(), key=lambda machine: machine.gpu_count or 0)
    return gpu.containers.create(
        name=name, auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type=PaymentType.USD
    )


def once(ready: Callable[[], bool], then: Callable[[], object]) -> threading.Thread:
    """Do something as soon as something else is so."""

    def run() -> None:
        while not ready():
            time.sleep(0.002)
        then()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def once_asked(served: Emulator, count: int, then: Callable[[], object]) -> threading.Thread:
    """Do something as soon as so many more requests have come."""
    wanted = len(served.requests) + count
    return once(lambda: len(served.requests) >= wanted, then)


def test_it_waits(gpu: RentGPU, served: Emulator) -> None:
    ids = [rented(gpu, f"mine-{number}").id for number in range(3)]
    progress: list[WaitProgress] = []
    served.clock.advance(60)
    found = gpu.containers.wait_all(ids, until=conditions.has_ssh, timeout=60, on_progress=progress.append)
    assert [one.id for one in found] == ids
    assert (progress[0].arrived, progress[-1].arrived, progress[-1].pending) == (0, 3, 0)
    assert gpu.containers.wait(ids[0], until=conditions.has_ssh, timeout=60) == found[0]
    with pytest.raises(WaitTimeoutError):
        gpu.containers.wait(ids[0], until=conditions.negate(conditions.has_ssh), timeout=0.05)
    with pytest.raises(WaitTimeoutError, match="no SSH server answered"):
        gpu.containers.wait_reachable(ids[0], timeout=0.3)
    gpu.containers.delete(ids[1])
    with pytest.raises(ContainerGoneError):
        gpu.containers.wait_all(ids, until=conditions.has_ssh, timeout=60)


def test_it_watches_and_what_is_abandoned_is_closed(gpu: RentGPU, served: Emulator) -> None:
    container = rented(gpu)
    changes = gpu.containers.watch([container.id])
    later = once_asked(served, 2, lambda: served.clock.advance(60))
    change = next(changes)
    later.join()
    assert change.container_id == container.id
    assert change.before is not None
    assert change.after is not None
    assert (change.before.ssh_endpoint is None, change.after.ssh_endpoint is None) == (True, False)
    sweep = gpu._async.containers._sweep
    assert not sweep._snapshots.nobody

    def unwatched() -> None:
        # It is closed in the loop's thread.
        deadline = time.monotonic() + 60
        while not sweep._snapshots.nobody:
            assert time.monotonic() < deadline
            time.sleep(0.002)

    changes.close()
    unwatched()
    for _ in gpu.containers.watch([]):
        pytest.fail("nothing is watched")
    abandoned = gpu.containers.watch([container.id])
    gpu.containers.delete(container.id)
    for change in abandoned:
        assert change.after is None
    assert sweep._snapshots.nobody
    other = rented(gpu, "other")

    def first_look_over() -> bool:
        # What changes before that is no change to who watches.
        snapshots = sweep._snapshots
        return not snapshots.nobody and not snapshots.base_wanted

    later = once(first_look_over, lambda: served.clock.advance(60))
    for change in gpu.containers.watch():
        assert change.container_id == other.id
        break
    later.join()
    unwatched()


def test_threads_wait_together(gpu: RentGPU, served: Emulator) -> None:
    ids = [rented(gpu, f"mine-{number}").id for number in range(4)]
    before = len(served.requests)
    later = once_asked(served, 4, lambda: served.clock.advance(60))
    with ThreadPoolExecutor(20) as pool:
        waits = [pool.submit(gpu.containers.wait, one, until=conditions.has_ssh, timeout=60) for one in ids * 5]
        assert [wait.result(60).id for wait in waits] == ids * 5
    later.join()
    # Fewer than one for each, though each waited through several looks.
    assert len(served.requests) - before < 20


def test_ctrl_c_ends_a_wait(gpu: RentGPU, served: Emulator) -> None:
    container = rented(gpu)
    main = threading.main_thread().ident
    assert main is not None
    later = once_asked(served, 2, lambda: signal.pthread_kill(main, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        gpu.containers.wait(container.id, until=conditions.has_ssh, timeout=60)
    later.join()
    assert gpu._async.containers._sweep._snapshots.nobody
