"""The plugin that runs async fixtures and tests in a nested run of pytest: how a fixture is made and tests are marked."""

from __future__ import annotations

import os
from typing import Any

import pytest

NAME = os.environ["FIXTURE_PLUGIN"]
FIXTURE: Any = pytest.fixture
MARKS: list[pytest.MarkDecorator] = []

if NAME.startswith("pytest-asyncio"):
    # Imported only here, because a run for anyio has this plugin disabled.
    import pytest_asyncio

    if NAME == "pytest-asyncio, one loop":
        FIXTURE = pytest_asyncio.fixture(loop_scope="session", scope="module")
        MARKS.append(pytest.mark.asyncio(loop_scope="session"))
    else:
        FIXTURE = pytest_asyncio.fixture
        MARKS.append(pytest.mark.asyncio)
elif NAME == "anyio's":
    MARKS.append(pytest.mark.anyio)
