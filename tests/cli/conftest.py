"""The command line on an emulated service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Here, Site, serving


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A service whose machines can be logged into; a test's parameter has options of the emulator."""
    with serving(tmp_path, **getattr(request, "param", {})) as site:
        yield site


@pytest.fixture
def here(site: Site, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Iterator[Here]:
    """The command line within this process."""
    here = Here(site, monkeypatch, capfdbinary)
    yield here
    here.close()
