"""Rentals in fixtures, as pytest-asyncio and anyio's plugin run them: runs of pytest in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from nested_pytest import run_pytest
from programs import FOLDER
from short_forms import thinned

pytestmark = pytest.mark.slow

# Each plugin runs without the other; tests/programs/fixture_plugin.py makes its fixtures and marks its tests.
WITHOUT_ANYIO, WITHOUT_ASYNCIO = ("-p", "no:anyio"), ("-p", "no:asyncio")
PLUGINS = {
    "pytest-asyncio": (WITHOUT_ANYIO, ""),
    "pytest-asyncio, one loop": (WITHOUT_ANYIO, ""),
    "anyio's": (WITHOUT_ASYNCIO, ""),
    "anyio's, in auto mode": (WITHOUT_ASYNCIO, "anyio_mode = auto"),
}


def run(
    folder: Path, plugin: str, test: str = "", *, file: str | None = None, ttl: float = 3600
) -> tuple[dict[str, int], str]:
    """Run tests with a rental as a fixture; return how many tests had each result, and the output."""
    options, ini = PLUGINS[plugin]
    conftest = (FOLDER / "plugin_rental_conftest.py").read_text()
    settings = {"FIXTURE_PLUGIN": plugin, "RENTAL_TTL": str(ttl)}
    return run_pytest(folder, test, *options, "-s", file=file, conftest=conftest, ini=ini, **settings)


@pytest.mark.parametrize(
    "plugin",
    [*(pytest.param(plugin, marks=pytest.mark.full) for plugin in [*PLUGINS][:3]), [*PLUGINS][3]],
)
def test_rental_of_a_fixture_is_deleted_after_every_result_of_a_test(plugin: str, tmp_path: Path) -> None:
    counts, text = run(tmp_path, plugin, file="plugin_rental_outcomes.py")
    assert counts == {"passed": 2, "failed": 3, "skipped": 1}, text
    assert f"<{1 if 'one loop' in plugin else 6} rented>" in text
    assert text.count("TimeoutError") >= 2
    assert "still rented" not in text


@pytest.mark.parametrize("plugin", thinned(["pytest-asyncio", "anyio's"], every=2))
def test_rental_of_a_fixture_that_expires_during_the_test_is_reported(plugin: str, tmp_path: Path) -> None:
    counts, text = run(tmp_path, plugin, file="plugin_rental_expiry.py", ttl=1.5)
    assert counts == {"passed": 1, "error": 1}, text
    assert "RentalExpiredError" in text
    assert "<1 rented>" in text
    assert "still rented" not in text


@pytest.mark.parametrize("plugin", thinned(["anyio's", "pytest-asyncio"], every=2))
def test_rental_of_a_fixture_whose_setup_fails_is_deleted(plugin: str, tmp_path: Path) -> None:
    test = """
    import fixture_plugin

    pytestmark = fixture_plugin.MARKS

    async def test_rental(rental):
        pass
    """
    counts, text = run(tmp_path, plugin, test, ttl=0.01)
    assert counts == {"error": 1}, text
    assert "RentalExpiredError" in text
    assert "<1 rented>" in text
    assert "still rented" not in text
