"""The tests run against the package as it is shipped."""

import os
import runpy
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import netmind_rentgpu

PACKAGE = Path(netmind_rentgpu.__file__).parent
SOURCE = Path(__file__).parents[1]


@pytest.mark.skipif("CI" not in os.environ, reason="the install may be an editable one; CI's is not")
def test_tests_import_the_wheel_and_not_the_source_folder() -> None:
    assert PACKAGE.parent.name == "site-packages"
    installed = metadata.distribution("netmind-rentgpu")
    assert {str(file) for file in installed.files or ()} >= {"netmind_rentgpu/py.typed", "netmind_rentgpu/client.py"}


def test_version_is_that_of_the_installed_package() -> None:
    assert metadata.version("netmind-rentgpu") == netmind_rentgpu.__version__


def test_py_typed_is_shipped() -> None:
    assert (PACKAGE / "py.typed").exists()


def required_python(requires: str) -> None:
    """Run the hook that each build and each install from a source folder runs first."""
    hook = runpy.run_path(str(SOURCE / ".github" / "require_python.py"))["RequiredPython"]
    hook(str(SOURCE), {}).update({"requires-python": requires})


@pytest.mark.parametrize("running", [(3, 10, 13), (3, 9, 0), (3, 8, 18)])
def test_build_with_an_older_python_ends_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, running: tuple[int, ...]
) -> None:
    monkeypatch.setattr(sys, "version_info", running)
    with pytest.raises(SystemExit) as ended:
        required_python(">=3.11")
    assert "needs Python 3.11 or newer, and this is Python " + ".".join(map(str, running)) in str(ended.value)


@pytest.mark.parametrize("requires", [">=3.11", ">=3.10", ">=3"])
def test_build_with_a_new_enough_python_goes_on(requires: str) -> None:
    required_python(requires)


def test_hook_is_part_of_every_build() -> None:
    tables = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    assert tables["metadata"]["hooks"]["custom"]["path"] == ".github/require_python.py"
    assert "/.github" in tables["build"]["targets"]["sdist"]["include"]
