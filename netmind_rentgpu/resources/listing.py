"""The pager for lists of resources, which all come in pages of the same form."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TypeVar

import attrs

from netmind_rentgpu.models import Auth, Container, Image
from netmind_rentgpu.requests import ListQuery
from netmind_rentgpu.settings import TimeoutOption
from netmind_rentgpu.wire.caller import Caller
from netmind_rentgpu.wire.messages import Request
from netmind_rentgpu.wire.paging import AsyncPager, ListedItems, PageSize

__all__ = ["list_pager"]

Listed = TypeVar("Listed", Auth, Image, Container)


def list_pager(
    caller: Caller,
    model: type[Listed],
    path: str,
    query: ListQuery,
    sizes: PageSize,
    *,
    image_types: Iterable[int | None] = (None,),
    timeout: TimeoutOption,
) -> AsyncPager[Listed]:
    """Return the pager of a list, or of several that follow each other.

    Args:
        query: the query of the first page. Later queries have other markers, and smaller sizes if the service refuses its.
        image_types: the number of each list's image type; None for other resources.
        timeout: the timeout of each page.
    """

    async def fetch(image_type: int | None, after: int | str | None, limit: int) -> ListedItems[Listed]:
        page = attrs.evolve(query, image_type=image_type, marker=after, page_size=limit)
        return await caller.many(model, Request(method="GET", path=path, query=caller.codec.query(page)), timeout)

    fetches = [partial(fetch, image_type) for image_type in image_types]
    return AsyncPager(*fetches, path=path, marker=query.marker, page_size=query.page_size, sizes=sizes)
