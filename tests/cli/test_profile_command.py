"""`profile`: the assumptions in use, and what a service's answers say of them."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import attrs
import canaries
import pytest
from command_line import Here, Site
from short_forms import thinned

from netmind_rentgpu import Machine, ServiceProfile
from netmind_rentgpu.cli.profile_check import deciding_bound, judge_filter
from netmind_rentgpu.emulator import World
from netmind_rentgpu.emulator.presets import preset_names, preset_world

pytestmark = pytest.mark.slow

FORMS = ["table", "json", "jsonl", "csv"]
FIELDS = [field.name for field in attrs.fields(ServiceProfile)]
# The fields that calls that only read can decide.
DECIDABLE = {"authorization", "gpu_names_parameter", "validation_errors_key", "memory_field", "disk_field"}


def rows_of(text: str, form: str) -> list[dict[str, Any]]:
    match form:
        case "json":
            found: list[dict[str, Any]] = json.loads(text)
            return found
        case "jsonl":
            return [json.loads(line) for line in text.splitlines()]
        case "csv":
            return list(csv.DictReader(io.StringIO(text)))
        case _:
            head, *lines = (line.split("\t") for line in text.splitlines())
            return [dict(zip(map(str.lower, head), line, strict=True)) for line in lines]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("command", ["show", "check"])
def test_every_field_of_the_profile_has_a_row_in_every_form(here: Here, command: str, form: str) -> None:
    done = here.run("profile", command, "-o", form)
    assert (done.code, done.errors) == (0, "")
    assert [row["name"] for row in rows_of(done.text, form)] == FIELDS


def test_values_are_shown_with_their_sources_without_an_account(here: Here, site: Site) -> None:
    (site.folder / "own.toml").write_text('list_lag = 5\ncurrency = "NMT"\nimage_types = {OFFICIAL = 4}\n')
    done = here.run("profile", "show", "--profile", "own.toml", "-o", "json", NETMIND_API_KEY="")
    assert done.code == 0, done.errors
    rows = {row.pop("name"): row for row in done.json}
    in_file = {name: row["value"] for name, row in rows.items() if row["source"] == "file"}
    assert in_file == {"list_lag": 5.0, "currency": "NMT", "image_types": {"OFFICIAL": 4}}
    assert rows["list_lag"]["file"] == "own.toml"
    assert rows["page_size"] == {"value": 100, "source": "default", "file": None}
    assert rows["price_period"]["value"] == 3600.0
    text = here.run("profile", "show", "--profile", "own.toml").text
    assert "image_types\tOFFICIAL 4\town.toml\n" in text
    assert "deleted_stay_listed\tno\tdefault\n" in text


def test_file_of_the_environment_is_shown_as_the_source(here: Here, site: Site) -> None:
    rows = {row["name"]: row for row in here.run("profile", "show", "-o", "json").json}
    assert rows["create_lag"]["file"] == site.environment["NETMIND_RENTGPU_PROFILE"]
    rows = {row["name"]: row for row in here.run("profile", "show", "-o", "json", NETMIND_RENTGPU_PROFILE="").json}
    assert {row["source"] for row in rows.values()} == {"default"}


@pytest.mark.parametrize("command", ["show", "check"])
@pytest.mark.parametrize(("content", "problem"), [("nope = 1", "unknown key nope"), ("= ", "own.toml: Invalid")])
def test_profile_that_cannot_be_used_is_78(here: Here, site: Site, command: str, content: str, problem: str) -> None:
    (site.folder / "own.toml").write_text(content)
    done = here.run("profile", command, "--profile", "own.toml")
    assert (done.code, done.out, problem in done.errors) == (78, b"", True)


def verdicts(here: Here, *words: str) -> tuple[int, dict[str, str], dict[str, str]]:
    """Return the exit code of a check, and for each field its verdict, and what was seen."""
    done = here.run("profile", "check", "-o", "json", *words)
    assert done.errors == ""
    return (
        done.code,
        {row["name"]: row["verdict"] for row in done.json},
        {row["name"]: row["seen"] for row in done.json},
    )


def test_check_confirms_what_answers_decide_and_leaves_the_rest_open(here: Here, site: Site) -> None:
    code, found, seen = verdicts(here)
    assert code == 0
    assert {request.method for request in site.emulator.requests} == {"GET"}
    assert found == {name: "confirmed" if name in DECIDABLE else "open" for name in FIELDS}
    assert seen["payment_types"] == "only a bill shows it"
    assert seen["container_statuses"] == "no container is listed"


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ('authorization = "bare"', "accepts it in the form 'bearer'"),
        ('gpu_names_parameter = "gpu"', "the service refuses gpu="),
        ('validation_errors_key = "errors"', "a 422 has a list under 'detail'"),
        ('memory_field = "memory_per_gpu"', "lists the machines by memory_total"),
        ('memory_field = "gpu_memory"', "lists the machines by memory_total"),
        ('disk_field = "disk_per_gpu"', "lists the machines by disk_total"),
        ('currency = "GOLD"', "the service refuses the currency GOLD"),
        ("image_types = {OFFICIAL = 0, ODD = 7}", "the service refuses 7, for ODD"),
    ],
)
def test_wrong_assumption_is_contradicted_and_the_exit_code_is_1(
    here: Here, site: Site, setting: str, part: str
) -> None:
    (site.folder / "profile.toml").write_text(setting)
    code, found, seen = verdicts(here)
    field = setting.partition(" ")[0]
    assert (code, found[field]) == (1, "contradicted")
    assert part in seen[field]
    assert {name for name in FIELDS if found[name] == "contradicted"} == {field}


MACHINES = [
    Machine(node_name="a", memory_total=64, memory_per_gpu=64, gpu_memory=24),
    Machine(node_name="b", memory_total=128, memory_per_gpu=32, gpu_memory=24),
    Machine(node_name="c", memory_total=256, memory_per_gpu=32, gpu_memory=80),
    Machine(node_name="d"),
]


@pytest.mark.parametrize(
    ("listed", "verdict"),
    [
        ("abc", "confirmed"),
        ("a", "contradicted"),
        ("c", "contradicted"),
        ("", "open"),
        ("abcd", "open"),
        ("bcd", "open"),
    ],
)
def test_filter_is_judged_by_the_machines_that_it_lists(listed: str, verdict: str) -> None:
    bound = deciding_bound(MACHINES, "memory_total", "memory")
    assert bound == 33
    assert judge_filter(MACHINES, "memory_total", "memory", bound, set(listed)).verdict == verdict


def test_filter_is_not_judged_by_machines_that_do_not_tell_the_fields_apart() -> None:
    assert deciding_bound(MACHINES[:1], "memory_total", "memory") is None
    same = [Machine(node_name=name, disk_total=size, disk_per_gpu=size) for name, size in (("a", 10), ("b", 20))]
    assert deciding_bound(same, "disk_total", "disk") is None


@pytest.mark.parametrize("site", [{"world": World(limit="10", over_limit="refuse")}], indirect=True)
@pytest.mark.parametrize(("size", "verdict"), [(100, "contradicted"), (10, "open"), (4, "confirmed")])
def test_page_size_is_judged_by_a_page(here: Here, site: Site, size: int, verdict: str) -> None:
    (site.folder / "profile.toml").write_text(f"page_size = {size}\n")
    assert verdicts(here)[1]["page_size"] == verdict


def test_statuses_and_user_names_of_containers_are_seen(here: Here, site: Site) -> None:
    here.run("auths", "ensure", "--password-file", "-", given=canaries.PASSWORD.encode())
    words = ("--name", "mine", "--auth", "1", "--machine", "node-se-0012", "--image", "1")
    assert here.run("containers", "create", *words).code == 0
    assert here.run("containers", "wait", "1001", "--until", "has-ssh").code == 0
    seen = verdicts(here)[2]
    assert seen["container_statuses"] == "containers have status 1, without a name here"
    assert seen["ssh_username"] == "each container's ssh names its user, so that it is not needed"
    (site.folder / "profile.toml").write_text("container_statuses = {up = 1}\n")
    code, found, seen = verdicts(here)
    assert (code, found["container_statuses"]) == (0, "open")
    assert seen["container_statuses"] == "each status has a name here, and no answer names them"
    assert here.run("containers", "delete", "1001", "-y").code == 0


def test_token_that_is_refused_in_both_forms_is_77(here: Here) -> None:
    done = here.run("profile", "check", NETMIND_API_KEY="wrong")
    assert (done.code, done.out) == (77, b"")


@pytest.mark.parametrize(
    "site",
    [pytest.param({"world": preset_world(name)}, id=name) for name in preset_names()[:1]]
    + [
        pytest.param({"world": preset_world(str(each.values[0]))}, id=str(each.values[0]), marks=each.marks)
        for each in thinned(preset_names()[1:], every=4)
    ],
    indirect=True,
)
def test_right_assumption_is_contradicted_in_no_world(here: Here, site: Site) -> None:
    _, found, _ = verdicts(here)
    world = site.emulator.world
    wrong = {name for name in FIELDS if found[name] == "contradicted"}
    expected = {"authorization"} if world.token == "bare" else set[str]()
    assert wrong - {"page_size"} == expected
    if "page_size" in wrong:
        assert (world.over_limit, world.limit != "100") == ("refuse", True)
