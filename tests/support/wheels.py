"""Wheels for pip without a network: made-up packages, and those that are installed beside the tests."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement


def libraries_of(python: Path) -> Path:
    """Return the folder of the packages of a virtual environment, given its Python."""
    [folder] = python.parents[1].glob("lib/python*/site-packages")
    return folder


def top_level(name: str) -> set[Path]:
    """Return the files and folders of an installed package that stand beside those of others."""
    distribution = metadata.distribution(name)
    parts = {entry.parts[0] for entry in distribution.files or ()} - {"..", "__pycache__"}
    return {Path(str(distribution.locate_file(part))) for part in parts}


def install(wheel: Path, python: Path) -> None:
    """Install a wheel of one module for a Python of a virtual environment, as pip does, but at once."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(libraries_of(python))


def made_up(folder: Path, name: str, version: str) -> Path:
    """Write the wheel of a package that holds nothing but a module of its name, and return its path."""
    information = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"__version__ = {version!r}\n".encode(),
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{information}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    _write(wheel, files, information)
    return wheel


def repacked(folder: Path, *names: str) -> None:
    """Write the wheels of installed packages, and of all that they require."""
    for distribution in _with_requirements(names):
        files: dict[str, bytes] = {}
        information = ""
        for entry in distribution.files or ():
            path = PurePosixPath(entry)
            if path.name == "WHEEL" and path.parent.suffix == ".dist-info":
                information = str(path.parent)
            # Of programs, pip makes new ones; the rest says how the package came here.
            is_part = path.parts[0] != ".." and "__pycache__" not in path.parts
            if is_part and path.name not in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
                files[str(path)] = Path(str(distribution.locate_file(entry))).read_bytes()
        stem = information.removesuffix(".dist-info")
        _write(folder / f"{stem}-{_tags(files[f'{information}/WHEEL'].decode())}.whl", files, information)


def _with_requirements(names: tuple[str, ...]) -> Iterator[metadata.Distribution]:
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        distribution = metadata.distribution(waiting.pop())
        if distribution.name in seen:
            continue
        seen.add(distribution.name)
        yield distribution
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)


def _tags(about: str) -> str:
    """Return the tags of a wheel as they stand in its name, such as `py2.py3-none-any`."""
    tags = [line.removeprefix("Tag: ").split("-") for line in about.splitlines() if line.startswith("Tag: ")]
    return "-".join(".".join(dict.fromkeys(column)) for column in zip(*tags, strict=True))


def _write(wheel: Path, files: dict[str, bytes], information: str) -> None:
    """Write the files of a wheel, and the record of them that pip requires."""
    record = io.StringIO()
    rows = csv.writer(record)
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.writerow([path, f"sha256={digest}", len(content)])
        rows.writerow([f"{information}/RECORD", "", ""])
        archive.writestr(f"{information}/RECORD", record.getvalue())
