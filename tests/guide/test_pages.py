"""The README, the guide's pages and the docstrings: complete, short, and of one form."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import pytest
from page_examples import languages_of

import netmind_rentgpu
from netmind_rentgpu import AsyncRentGPU, RentGPU, ServiceProfile
from netmind_rentgpu.emulator import World

README = Path(__file__).parents[2] / "README.md"
GUIDE = Path(netmind_rentgpu.__file__).parent / "guide"
PAGES = {str(page.relative_to(GUIDE)): page.read_text(encoding="utf-8") for page in sorted(GUIDE.rglob("*.md"))}
CONTRACT = PAGES["explanation/wire-contract.md"]
PUBLIC = {
    f"{module}.{name}": getattr(import_module(module), name)
    for module in ("netmind_rentgpu", *(f"netmind_rentgpu.{name}" for name in ("conditions", "emulator", "testing")))
    for name in import_module(module).__all__
}
# What is no class and no function: it has no docstring of its own at run time.
VALUES = {
    *(
        "DEFAULT",
        "CurrencyName",
        "EndCause",
        "GPUName",
        "IdleWhen",
        "OnRentalEvent",
        "PipeSink",
        "PipeSource",
        "RegionCode",
    ),
    *("Condition", "JobState", "__version__"),
}
KNOWN_LANGUAGES = {"python", "text", "console", "toml", "crontab", "sh", "{eval-rst}", "{toctree}"}


def test_readme_shows_exactly_two_set_up_commands() -> None:
    assert re.findall(r"^```sh\n(.*?)\n```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL) == [
        "python3 -m venv .venv && .venv/bin/pip install '.[all]' && .venv/bin/netmind-rentgpu demo",
        "python3 -m venv .venv && .venv/bin/pip install '.[all,test]' && .venv/bin/pytest",
    ]


@pytest.mark.parametrize("page", PAGES)
def test_page_is_short_and_its_fences_are_of_known_languages(page: str) -> None:
    text = PAGES[page]
    assert len(text.splitlines()) <= 200
    assert set(languages_of(text)) <= KNOWN_LANGUAGES - {"sh"}
    assert text.count("\n# ") == text.count("\n```python\n# ") + text.count("\n```toml\n# ")
    assert text.startswith("# ")


def test_readme_is_short_and_its_fences_are_of_known_languages() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert set(languages_of(text)) <= KNOWN_LANGUAGES


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith(("tutorial/", "how-to/"))])
def test_tutorial_or_how_to_begins_with_a_program(page: str) -> None:
    assert languages_of(PAGES[page])[0] in ("python", "console")
    assert PAGES[page].index("```") < 700


def test_index_links_every_page_twice() -> None:
    index = PAGES["index.md"]
    for page in PAGES.keys() - {"index.md"}:
        assert f"]({page})" in index
        assert f"\n{page.removesuffix('.md')}\n" in index


def test_wire_contract_names_every_setting_of_the_profile() -> None:
    assert [field.name for field in attrs.fields(ServiceProfile) if f"{field.name}`" not in CONTRACT] == []


def test_page_of_worlds_lists_every_switch_with_its_values() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGES["reference/worlds-and-faults.md"], re.MULTILINE)
    assert {name: tuple(re.findall("`([^`]+)`", values)) for name, values in rows} == World.switches()


# Docstrings.


def documented_members(value: type) -> Iterator[tuple[str, Any]]:
    for name in vars(value):
        item = inspect.getattr_static(value, name)
        if not name.startswith("_") and (inspect.isroutine(item) or isinstance(item, property)):
            yield name, item


def test_every_public_name_is_in_the_reference() -> None:
    reference = "\n".join(text for page, text in PAGES.items() if page.startswith("reference/"))
    missing = [
        full
        for full in PUBLIC
        if f":: {full}\n" not in reference
        and not re.search(rf":members: .*\b{full.rpartition('.')[2]}\b", reference)
        and not full.endswith("__version__")
    ]
    assert missing == []


@pytest.mark.parametrize("full", [full for full in PUBLIC if full.rpartition(".")[2] not in VALUES])
def test_public_name_and_its_members_have_docstrings(full: str) -> None:
    value = PUBLIC[full]
    assert inspect.getdoc(value)
    if not inspect.isclass(value):
        return
    assert "__doc__" in vars(value)
    assert [name for name, item in documented_members(value) if not inspect.getdoc(item)] == []
    if attrs.has(value):
        named = re.findall(r"^    (\w+(?:, \w+)*):", inspect.getdoc(value) or "", re.MULTILINE)
        documented = {name for names in named for name in names.split(", ")}
        fields = {field.name for field in attrs.fields(value) if not field.name.startswith("_")}
        assert fields - documented <= {"extra"}


def api_calls() -> dict[str, str]:
    """Return the request of each of the thirteen calls, by the page of the wire contract."""
    return dict(re.findall(r"^\| `(\w+\.\w+)` \| `(\w+ /v1/rentgpu/[^`]+)` \|", CONTRACT, re.MULTILINE))


@pytest.mark.parametrize("call", api_calls())
@pytest.mark.parametrize("client", [AsyncRentGPU, RentGPU])
def test_docstring_of_a_call_names_its_request(client: type, call: str) -> None:
    resource, method = call.split(".")
    prefix = "Async" if client is AsyncRentGPU else ""
    module = f"netmind_rentgpu.resources.{resource}" if prefix else "netmind_rentgpu.sync.client"
    function = getattr(getattr(import_module(module), f"{prefix}{resource.capitalize()}"), method)
    assert f"`{api_calls()[call]}`" in re.sub(r"; not paged|\s+", " ", function.__doc__).replace("` ", "`")
    assert "Raises:" in function.__doc__


def test_wire_contract_lists_thirteen_calls() -> None:
    assert len(api_calls()) == 13
