"""The errors that synchronous calls raise, and their tracebacks."""

from __future__ import annotations

import pickle
import traceback

import pytest
from served import UNSERVED

from netmind_rentgpu import APIConnectionError, InvalidRequestError, NotFoundError, RentGPU
from netmind_rentgpu.sync import client, pending_call, portal, wrappers


def test_synchronous_call_raises_the_same_errors_as_the_async_client(gpu: RentGPU) -> None:
    with pytest.raises(NotFoundError) as caught:
        gpu.containers.get(999)
    assert (caught.value.status, caught.value.method) == (404, "GET")
    assert caught.value.path.endswith("/containers/999")
    with pytest.raises(InvalidRequestError) as refused:
        gpu.request("POST", "auths/", json={})
    assert refused.value.fields
    assert type(pickle.loads(pickle.dumps(caught.value))) is NotFoundError


def _wrapper_frames(error: BaseException) -> list[str]:
    """Return the functions of the wrappers that an error's traceback shows."""
    files = (portal.__file__, wrappers.__file__, pending_call.__file__, client.__file__)
    return [frame.name for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]


@pytest.mark.parametrize("kind", ["call", "create", "page", "item", "pages", "request"])
def test_traceback_of_a_failed_call_has_at_most_two_frames_of_the_wrappers(kind: str) -> None:
    with RentGPU("token", base_url=UNSERVED, retries=0) as gpu:
        call = {
            "call": lambda: gpu.containers.get(1),
            "create": lambda: gpu.auths.create("long-enough"),
            "page": lambda: gpu.images.list().first_page(),
            "item": lambda: next(iter(gpu.images.list())),
            "pages": lambda: next(gpu.images.list().pages()),
            "request": lambda: gpu.request("GET", "machines"),
        }[kind]
        for _ in range(2):
            with pytest.raises(APIConnectionError) as caught:
                call()
            assert 1 <= len(_wrapper_frames(caught.value)) <= 2
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__context__ is None


def test_error_of_a_call_is_raised_unchanged_and_held_by_no_frame() -> None:
    error = ZeroDivisionError("of the call")
    error.__cause__ = cause = KeyError("why")

    async def fail() -> None:
        raise error

    with pytest.raises(ZeroDivisionError) as caught:
        portal.call(fail)
    assert caught.value is error
    assert caught.value.__cause__ is cause
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    assert [frame.f_code.co_name for frame in frames][-2:] == ["call", "fail"]
    assert not any(error in frame.f_locals.values() for frame in frames if frame.f_code.co_name == "call")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_base_exception_of_a_call_reaches_the_caller_and_the_loop_keeps_running(kind: type[BaseException]) -> None:
    async def fail() -> None:
        raise kind

    with pytest.raises(kind):
        portal.call(fail)

    async def work() -> int:
        return 1

    assert portal.call(work) == 1


def test_call_with_wrong_arguments_raises_type_error(gpu: RentGPU) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        gpu.containers.get(1, nonsense=2)  # type: ignore[call-arg]  # the mistake under test
    with pytest.raises(TypeError, match="missing"):
        gpu.containers.get()  # type: ignore[call-arg]  # the mistake under test
