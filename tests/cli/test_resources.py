"""`machines`, `auths` and `images`: the service's own resources, and secrets that no output shows."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import canaries
import pytest
from command_line import PROGRAM, Done, Here, Site
from terminals import terminal

from netmind_rentgpu.cli.secret_input import _LONGEST
from netmind_rentgpu.emulator import Fault

pytestmark = pytest.mark.slow

FORMS = ["table", "json", "jsonl", "csv"]
IMAGE = ["--name", "server", "--image-name", "team/server", "--image-tag", "1.2", "--image-label", "server"]
SECRETS = (canaries.PASSWORD, canaries.DOCKER_PASSWORD, "MODE=secret", "serve --key=secret")


def items(done: Done, form: str) -> list[dict[str, Any]]:
    """Return the items of a result in any form; of a table, those of its columns."""
    match form:
        case "json":
            return done.json if isinstance(done.json, list) else [done.json]
        case "jsonl":
            return [json.loads(line) for line in done.text.splitlines()]
        case "csv":
            return list(csv.DictReader(io.StringIO(done.text)))
        case _:
            return [
                dict(zip(done.text.splitlines()[0].split("\t"), line.split("\t"), strict=True))
                for line in done.text.splitlines()[1:]
            ]


def has_secret(done: Done) -> bool:
    return any(secret in done.text + done.errors for secret in SECRETS)


# Machines.


@pytest.mark.parametrize("form", FORMS)
def test_machines_are_listed_in_every_form(here: Here, form: str) -> None:
    done = here.run("machines", "list", "--gpu", "4090", "-o", form)
    (machine,) = items(done, form)
    assert (done.code, done.errors) == (0, "")
    if form == "table":
        assert machine["GPUS"] == "2 x NVIDIA_GeForce_RTX_4090"
        assert machine["PRICE"] == "0.531"
    else:
        assert (machine["gpu_name"], float(machine["price"])) == ("NVIDIA_GeForce_RTX_4090", 0.531)
        assert str(machine["gpu_count"]) == "2"


def test_price_of_a_machine_is_an_exact_number(here: Here) -> None:
    assert '"price": 0.5310,' in here.run("machines", "list", "--gpu", "4090", "-o", "json").text


@pytest.mark.parametrize(
    ("words", "meets"),
    [
        (
            ["--gpu", "4090", "--gpu", "H100"],
            lambda row: row["gpu_name"] and ("4090" in row["gpu_name"] or "H100" in row["gpu_name"]),
        ),
        (["--gpus", "4"], lambda row: row["gpu_count"] >= 4),
        (["--region", "se", "--region", "us"], lambda row: row["region"] in ("SE", "US")),
        (["--min-price", "0.5", "--max-price", "1"], lambda row: 0.5 <= row["price"] <= 1),
        (["--min-memory", "100", "--max-memory", "300"], lambda row: 100 <= row["memory_total"] <= 300),
        (["--min-disk", "500", "--max-disk", "2000"], lambda row: 500 <= row["disk_total"] <= 2000),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_filter_of_machines_applies(here: Here, words: list[str], meets: Any) -> None:
    everything = here.run("machines", "list", "-o", "json").json
    found = here.run("machines", "list", *words, "-o", "json").json
    assert found == [row for row in everything if meets(row)]
    assert 0 < len(found) < len(everything)


def test_prices_come_in_the_currency_that_was_asked_for(here: Here) -> None:
    dollars = here.run("machines", "list", "--gpu", "4090", "-o", "json").json
    others = here.run("machines", "list", "--gpu", "4090", "--currency", "cny", "-o", "json").json
    assert others[0]["price"] != dollars[0]["price"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--gpu", "no such"], "--gpu: no GPU"),
        (["--region", "ZZ"], "--region: no machine is in 'ZZ'"),
        (["--gpus", "0"], "--gpus: must be at least 1"),
        (["--gpus", "many"], "'many' is not a valid integer"),
        (["--max-price", "cheap"], "'cheap' is no amount"),
    ],
)
def test_filter_that_cannot_be_used_is_refused_by_the_name_of_its_option(
    here: Here, words: list[str], problem: str
) -> None:
    done = here.run("machines", "list", *words)
    assert (done.code, done.out) == (2, b"")
    assert problem in done.errors


# Passwords.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("command", ["create", "ensure"])
def test_password_from_stdin_is_stored_and_never_shown(here: Here, site: Site, command: str, form: str) -> None:
    done = here.run(
        "auths", command, "--password-file", "-", "-o", form, "--debug", given=f"{canaries.PASSWORD}\n".encode()
    )
    assert done.code == 0, done.errors
    assert "***" in done.text
    assert not has_secret(done)
    (stored,) = here.run("auths", "list", "-o", "json").json
    assert stored["value"] == "***"
    assert str(stored["id"]) in done.text
    assert shown_password(here, stored["id"]) == canaries.PASSWORD


def shown_password(here: Here, auth_id: int) -> str:
    value: str = here.run("auths", "show", str(auth_id), "--reveal", "--yes", "-o", "json").json["value"]
    return value


def test_password_is_ensured_once_and_created_each_time(here: Here, site: Site) -> None:
    (site.folder / "password").write_text(canaries.PASSWORD)
    ids = [
        here.run("auths", command, "--password-file", "password", "-o", "json").json["id"]
        for command in ("ensure", "ensure", "create")
    ]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("words", [["list"], ["show", "1"]], ids=["list", "show"])
def test_passwords_are_masked_in_every_form(here: Here, words: list[str], form: str) -> None:
    here.run("auths", "create", "--password-file", "-", given=canaries.PASSWORD.encode())
    done = here.run("auths", *words, "-o", form, "--debug")
    assert (done.code, "***" in done.text, has_secret(done)) == (0, True, False)


@pytest.mark.parametrize(
    ("given", "password"),
    [
        (b"with spaces \n", "with spaces "),
        (b"from-windows\r\n", "from-windows"),
        (b"two lines\nof it", "two lines\nof it"),
        ("pässwörter".encode(), "pässwörter"),
    ],
)
def test_only_the_last_line_end_is_no_part_of_a_password(here: Here, given: bytes, password: str) -> None:
    auth_id = here.run("auths", "create", "--password-file", "-", "-o", "json", given=given).json["id"]
    assert shown_password(here, auth_id) == password


@pytest.mark.parametrize("reveal_where", ["pipe", "json"])
def test_password_is_revealed_into_a_pipe_only_with_yes(here: Here, reveal_where: str) -> None:
    here.run("auths", "create", "--password-file", "-", given=canaries.PASSWORD.encode())
    form = ["-o", "json"] if reveal_where == "json" else []
    done = here.run("auths", "show", "1", "--reveal", *form)
    assert (done.code, done.out) == (2, b"")
    assert "stdout is no terminal" in done.errors
    assert "--yes" in done.errors
    assert canaries.PASSWORD in here.run("auths", "show", "1", "--reveal", "-y", *form).text


@pytest.mark.parametrize(
    ("words", "given", "code", "problem"),
    [
        (["create"], b"", 2, "no terminal is here to ask for it on"),
        (["ensure", "--no-input"], b"", 2, "Give it with --password-file FILE, where - is stdin."),
        (["create", "--password-file", "no-such-file"], b"", 66, "'no-such-file': No such file"),
        (["create", "--password-file", "."], b"", 74, "'.': Is a directory"),
        (["create", "--password-file", "-"], b"", 2, "stdin is empty"),
        (["create", "--password-file", "-"], b"\n", 2, "stdin is empty"),
        (["create", "--password-file", "-"], b"hidden-\xff-word", 2, "stdin is no text in UTF-8"),
        (["create", "--password-file", "-"], b"x" * (_LONGEST + 1), 2, "stdin has more than 64 KiB"),
        (
            ["create", "--password-file", "-"],
            b"hidden",
            2,
            "the password: a password has 8 to 32 characters, and this one has 6",
        ),
        (["show", "7"], b"", 66, "404"),
        (["show", "many"], b"", 2, "not a valid integer"),
        (["show"], b"", 2, "Missing argument"),
        (["show", str(2**70)], b"", 2, "must fit in 64 bits"),
    ],
)
def test_mistake_with_a_password_has_its_code_and_shows_no_part_of_it(
    here: Here, words: list[str], given: bytes, code: int, problem: str
) -> None:
    done = here.run("auths", *words, given=given)
    assert (done.code, done.out) == (code, b""), done.errors
    assert problem in done.errors
    assert "hidden" not in done.errors
    assert here.run("auths", "list", "-o", "json").json == []


def test_password_on_the_command_line_is_no_option(here: Here) -> None:
    for words in (["auths", "create", "secret-password"], ["auths", "create", "--password", "secret-password"]):
        assert here.run(*words).code == 2


def test_lost_answer_to_a_create_is_unclear_and_one_of_a_list_is_not(here: Here, site: Site) -> None:
    site.emulator.faults.add(Fault("drop", call="create_auth", when="after", times="all"))
    done = here.run("auths", "create", "--password-file", "-", given=canaries.PASSWORD.encode())
    assert (done.code, has_secret(done)) == (76, False)
    site.emulator.faults.add(Fault("status", status=503, call="list_auths", times="all"))
    assert here.run("auths", "list", "--timeout", "2s").code == 69


def on_terminal(site: Site, *words: str) -> Any:
    return terminal([*PROGRAM, *words], folder=site.folder, environment=site.environment)


def test_password_is_typed_unseen_on_a_terminal(site: Site, here: Here) -> None:
    for words in ([], ["--password-file", "-"]):
        with on_terminal(site, "auths", "ensure", *words) as shown:
            shown.until("Password: ")
            shown.type(f"{canaries.PASSWORD}\n")
            assert shown.end() == 0
        assert canaries.PASSWORD not in shown.shown
        assert "***" in shown.shown
    assert shown_password(here, 1) == canaries.PASSWORD
    assert len(here.run("auths", "list", "-o", "json").json) == 1


@pytest.mark.parametrize(("keys", "code"), [("\n", 1), ("\x04", 1), ("\x03", 130)])
def test_password_that_is_not_typed_stores_nothing(site: Site, here: Here, keys: str, code: int) -> None:
    with on_terminal(site, "auths", "create") as shown:
        shown.until("Password: ")
        shown.type(keys)
        assert shown.end() == code
    assert here.run("auths", "list", "-o", "json").json == []


def test_password_is_revealed_on_a_terminal(site: Site, here: Here) -> None:
    here.run("auths", "create", "--password-file", "-", given=canaries.PASSWORD.encode())
    with on_terminal(site, "auths", "show", "1", "--reveal") as shown:
        assert shown.end() == 0
    assert canaries.PASSWORD in shown.shown


# Images.


@pytest.mark.parametrize("form", FORMS)
def test_images_are_listed_in_every_form(here: Here, form: str) -> None:
    done = here.run("images", "list", "-o", form)
    found = items(done, form)
    assert (done.code, done.errors, len(found)) == (0, "", 4)
    if form == "table":
        assert (found[0]["NAME"], found[0]["IMAGE"]) == ("PyTorch 2.4", "pytorch/pytorch:2.4.0")
    else:
        assert (found[0]["name"], found[0]["image_type"]) == ("PyTorch 2.4", "OFFICIAL")


def test_images_are_listed_by_types_of_any_case_or_number(here: Here) -> None:
    here.run("images", "create", *IMAGE)

    def names(*words: str) -> list[str]:
        return [image["image_type"] for image in here.run("images", "list", *words, "-o", "json").json]

    assert set(names()) == {"OFFICIAL"}
    assert names("--type", "custom") == names("--type", "2") == ["CUSTOM"]
    assert set(names("--type", "Official", "--type", "custom", "--type", "public")) == {"OFFICIAL", "CUSTOM", "PUBLIC"}
    done = here.run("images", "list", "--type", "odd")
    assert (done.code, "--type: the profile has no number for 'odd'" in done.errors) == (2, True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("command", ["create", "ensure"])
def test_image_is_stored_and_none_of_its_secrets_is_shown(here: Here, command: str, form: str) -> None:
    done = here.run(
        *("images", command, *IMAGE, "--description", "about it", "--docker-username", "robot"),
        *("--docker-password-file", "-", "--docker-registry", "https://registry.example.org/", "--public-port", "8080"),
        *("--onstart", "serve --key=secret", "--options", "-e MODE=secret", "-o", form, "--debug"),
        given=canaries.DOCKER_PASSWORD.encode(),
    )
    assert done.code == 0, done.errors
    assert not has_secret(done)
    assert done.text.count("***") == 3
    (image,) = here.run("images", "list", "--type", "custom", "-o", "json").json
    shown = here.run("images", "show", str(image["id"]), "-o", form, "--debug")
    assert (shown.text, has_secret(shown)) == (done.text, False)
    assert image | {"id": 0, "created_at": ""} == {
        "id": 0,
        "name": "server",
        "image_name": "team/server",
        "image_tag": "1.2",
        "image_label": "server",
        "image_type": "CUSTOM",
        "description": "about it",
        "docker_username": "robot",
        "docker_passwd": "***",
        "docker_registry": "https://registry.example.org/",
        "public_port": "8080",
        "onstart": "***",
        "options": "***",
        "created_at": "",
    }


def test_image_is_ensured_once_and_created_each_time(here: Here) -> None:
    ids = [here.run("images", word, *IMAGE, "-o", "json").json["id"] for word in ("ensure", "ensure", "create")]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["create", *IMAGE, "--docker-username", "robot"], 2, "Password of the registry: no terminal is here"),
        (["ensure", *IMAGE, "--docker-username", "robot"], 2, "Give it with --docker-password-file FILE"),
        (["create", *IMAGE, "--options", "--privileged"], 2, "--options: only --add-host, -e, -h, -w are supported"),
        (["create", *IMAGE[2:]], 2, "Missing option '--name'"),
        (["create", *IMAGE, "--docker-password", "x"], 2, "No such option"),
        (["show", "999"], 66, "404"),
    ],
)
def test_mistake_with_an_image_has_its_code(here: Here, words: list[str], code: int, problem: str) -> None:
    done = here.run("images", *words)
    assert (done.code, done.out) == (code, b"")
    assert problem in done.errors


def test_registry_password_is_typed_unseen_on_a_terminal(site: Site) -> None:
    with on_terminal(site, "images", "create", *IMAGE, "--docker-username", "robot") as shown:
        shown.until("Password of the registry: ")
        shown.type(f"{canaries.DOCKER_PASSWORD}\n")
        assert shown.end() == 0
    assert canaries.DOCKER_PASSWORD not in shown.shown
