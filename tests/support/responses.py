"""Answers of a service by URL, for requests of aiohttp."""

from __future__ import annotations

from typing import Any
from unittest import mock

import aiohttp
from aioresponses import aioresponses


class _Response(aiohttp.ClientResponse):
    """aioresponses 0.7.9 builds responses as aiohttp did before 3.14, without a stream writer (its issue 289)."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **{"stream_writer": mock.Mock(), **keywords})


class Responses(aioresponses):
    """aioresponses that works with the aiohttp of today."""

    def add(self, *arguments: Any, **keywords: Any) -> None:
        super().add(*arguments, **{"response_class": _Response, **keywords})
