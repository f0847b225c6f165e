"""The tests run against the package as it is shipped."""

import os
from importlib import metadata
from pathlib import Path

import pytest

import netmind_rentgpu

PACKAGE = Path(netmind_rentgpu.__file__).parent


@pytest.mark.skipif("CI" not in os.environ, reason="the install may be an editable one; CI's is not")
def test_tests_import_the_wheel_and_not_the_source_folder() -> None:
    assert PACKAGE.parent.name == "site-packages"
    installed = metadata.distribution("netmind-rentgpu")
    assert {str(file) for file in installed.files or ()} >= {"netmind_rentgpu/py.typed", "netmind_rentgpu/client.py"}


def test_version_is_that_of_the_installed_package() -> None:
    assert metadata.version("netmind-rentgpu") == netmind_rentgpu.__version__


def test_py_typed_is_shipped() -> None:
    assert (PACKAGE / "py.typed").exists()
