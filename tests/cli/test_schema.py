"""`schema`: the JSON of each command is as its schema says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import canaries
import jsonschema
import pytest
from command_line import Done, Here, Site, serving
from until import until_sync

from netmind_rentgpu import RentGPU
from netmind_rentgpu.cli.schemas import RESULTS, schema_of_command
from netmind_rentgpu.models import Auth, Container, Image, Machine

# In one group, because each worker would rent a machine for this file otherwise.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("schemas")]
IMAGE = ["--name", "a", "--image-name", "b", "--image-tag", "c", "--image-label", "d"]


@cache
def validator(name: str) -> Any:
    return jsonschema.Draft202012Validator(
        schema_of_command(name), format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )


def check(name: str, value: Any) -> None:
    assert [f"{name}: {error.json_path}: {error.message}" for error in validator(name).iter_errors(value)] == []


@pytest.mark.parametrize("name", RESULTS)
def test_schema_is_valid_and_closed(name: str) -> None:
    schema = schema_of_command(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert name in schema["title"]
    assert list(objects_in(schema)) != []
    for each in objects_in(schema):
        assert set(each["properties"]) - set(each["required"]) <= {"extra"}
        assert each["additionalProperties"] is False


def objects_in(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "properties" in schema:
        yield schema
    for part in (schema.get("items"), *schema.get("anyOf", ())):
        if part is not None:
            yield from objects_in(part)


@pytest.mark.parametrize(
    ("model", "name"),
    [(Machine, "machines list"), (Auth, "auths list"), (Image, "images list"), (Container, "containers list")],
)
def test_schema_has_every_field_of_its_model(model: type[Any], name: str) -> None:
    (item,) = objects_in(schema_of_command(name))
    assert set(item["properties"]) == {field.name for field in attrs.fields(model)}


def test_schema_refuses_what_is_not_printed() -> None:
    good = {"id": 1, "value": "***", "created_at": "2027-01-01T00:00:00Z"}
    check("auths show", good)
    check("auths show", good | {"extra": {"new": [1]}, "value": None})
    for bad in ({"id": "1"}, {"value": 5}, {"odd": 1}, {"created_at": 7}):
        assert not validator("auths show").is_valid(good | bad)
    assert not validator("auths list").is_valid(good)
    assert not validator("auths show").is_valid({"id": 1})


@pytest.fixture(scope="module")
def module_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service with one detached rental, whose label is `mine`, with a job that is over."""
    with serving(tmp_path_factory.mktemp("site")) as site:
        words = ("--gpu", "4090", "--label", "mine", "--budget", "5", "--idle-timeout", "1h")
        done = site.run("rent", *words, "-d", "-q", "-o", "json")
        assert done.code == 0, done.errors
        check("rent", done.json)
        state = site.environment["NETMIND_RENTGPU_STATE"]
        with RentGPU(site.emulator.token, base_url=site.emulator.url, state=state) as gpu:
            with gpu.ssh(done.json["container_id"]) as shell:
                shell.start("echo out; echo err >&2", name="over").wait()
                shell.start("sleep 1000", name="running")
        yield site
        done = site.run("rentals", "release", "mine", "-y", "-o", "json")
        assert done.code == 0, done.errors
        check("rentals release", done.json)
        until_sync(site.has_ended)


@pytest.fixture
def site(module_site: Site, tmp_path: Path) -> Site:
    """The service, and a folder of the test's own."""
    return module_site.in_folder(tmp_path)


def checked(here: Here, name: str, *words: str, given: bytes = b"") -> Done:
    """Run a command, and check its JSON."""
    done = here.run(*name.split(), *words, "-o", "json", "-y", given=given)
    assert done.code == 0, done.errors
    check(name, done.json)
    return done


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rent", ["--dry-run", "--gpu", "4090", "--budget", "1"]),
        ("offers", []),
        ("logs", ["mine", "over"]),
        ("jobs list", ["mine"]),
        ("jobs wait", ["mine", "over"]),
        ("rentals list", []),
        ("rentals show", ["mine"]),
        ("rentals extend", ["mine", "--budget", "6"]),
        ("rentals reap", []),
        ("rentals spend", []),
        ("rentals spend", ["--by", "day"]),
        ("budgets set", ["team", "20", "--per", "month", "--hourly", "3"]),
        ("budgets list", []),
        ("budgets remove", ["team"]),
        ("budgets remove", ["gone"]),
        ("machines list", []),
        ("auths list", []),
        ("auths show", ["1"]),
        ("images list", []),
        ("images show", ["1"]),
        ("images ensure", IMAGE),
        ("images create", IMAGE),
        ("containers list", []),
        ("containers get", ["1001"]),
        ("containers wait", ["1001"]),
        ("containers ssh-config", ["1001"]),
        ("profile show", []),
        ("profile check", []),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_output_is_as_the_schema_says(here: Here, name: str, words: list[str]) -> None:
    checked(here, name, *words)


def test_output_about_accounts_is_as_the_schema_says(here: Here) -> None:
    checked(here, "login", "work", "--token-file", "-", given=here.site.emulator.token.encode())
    for name, *words in (["account list"], ["account use", "work"], ["account show"], ["config list"]):
        checked(here, name, *words)
    checked(here, "config get", "ttl")
    for _ in range(2):
        checked(here, "logout", "work")


def test_output_of_jobs_that_end_is_as_the_schema_says(here: Here) -> None:
    checked(here, "jobs stop", "mine", "running")
    checked(here, "jobs remove", "mine", "running")
    checked(here, "jobs remove", "mine", "running")


def test_output_about_a_container_s_life_is_as_the_schema_says(here: Here) -> None:
    secret = canaries.PASSWORD.encode()
    checked(here, "auths create", "--password-file", "-", given=secret)
    auth = checked(here, "auths ensure", "--password-file", "-", given=secret).json["id"]
    row = checked(
        here, "containers create", "--name", "a", "--auth", str(auth), "--machine", "node-se-0012", "--image", "1"
    ).json
    for command in ("containers stop", "containers restart"):
        checked(here, command, str(row["id"]))
    checked(here, "containers delete", str(row["id"]), "999")


@pytest.mark.parametrize(
    ("name", "words"),
    [("rentals watch", []), ("containers watch", []), ("forward", ["mine", "0:22", "-o", "jsonl"])],
    ids=["rentals watch", "containers watch", "forward"],
)
def test_line_of_what_goes_on_is_as_the_schema_says(site: Site, name: str, words: list[str]) -> None:
    process = site.start(*name.split(), *words)
    assert process.stdout is not None
    line = json.loads(process.stdout.readline())
    process.terminate()
    site.end(process)
    check(name, line if name.endswith("watch") else [line])


def test_list_without_items_is_as_the_schema_says() -> None:
    for name in RESULTS:
        if schema_of_command(name).get("type") == "array":
            check(name, [])


def test_schema_is_printed_for_the_words_of_a_command(here: Here) -> None:
    for name in ("rentals list", "offers"):
        done = here.run("schema", *name.split(), NETMIND_API_KEY="")
        assert (done.code, done.errors, done.json) == (0, "", schema_of_command(name))


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["cp"], 66, "no command 'cp' prints JSON"),
        (["rentals"], 66, "These do: rentals list, rentals show"),
        (["no", "such"], 66, "no command 'no such' prints JSON"),
        ([], 2, "Missing argument"),
    ],
)
def test_command_without_json_has_no_schema(here: Here, words: list[str], code: int, problem: str) -> None:
    done = here.run("schema", *words)
    assert (done.code, done.out) == (code, b"")
    assert problem in done.errors
