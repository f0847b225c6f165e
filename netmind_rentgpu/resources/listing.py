"""The lists that come in pages, all asked for in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from netmind_rentgpu.errors import InvalidArgumentError, UnexpectedResponseError
from netmind_rentgpu.models import Auth, Container, Image
from netmind_rentgpu.resources import arguments
from netmind_rentgpu.settings import TimeoutOption
from netmind_rentgpu.wire.caller import Caller
from netmind_rentgpu.wire.messages import Request
from netmind_rentgpu.wire.paging import AsyncPager, PageSize

__all__ = ["list_pager"]

Listed = TypeVar("Listed", Auth, Image, Container)


def list_pager(
    caller: Caller,
    model: type[Listed],
    path: str,
    query: Mapping[str, str],
    sizes: PageSize,
    *,
    marker: int | str | None,
    page_size: int | None,
    timeout: TimeoutOption,
) -> AsyncPager[Listed]:
    """Return the pager of one list.

    Raises:
        InvalidArgumentError: `marker` or `page_size` cannot be sent.
    """
    if page_size is not None:
        arguments.count("page_size", page_size)
    if marker is not None and type(marker) not in (int, str):
        raise InvalidArgumentError("marker", "must be an id")

    async def fetch(after: int | str | None, limit: int) -> tuple[list[Listed], tuple[UnexpectedResponseError, ...]]:
        asked = {**query, "limit": str(limit)}
        if after is not None:
            asked["marker"] = str(after)
        return await caller.many(model, Request(method="GET", path=path, query=asked), timeout)

    return AsyncPager(fetch, path=path, marker=marker, page_size=page_size, sizes=sizes)
